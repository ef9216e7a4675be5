"""`scripts/cache_latents.py` and training on what it wrote, as users run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cosmos_predict.cli.cache_latents import build_parser, cache
from cosmos_predict.data.latent_cache import LatentCacheDataset
from cosmos_predict.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]


def run(*command: str, root: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OUTPUT_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=REPOSITORY, timeout=180, env=environment
    )


@pytest.mark.slow
def test_training_on_a_cache_reads_neither_videos_nor_tokenizer(tmp_path: Path) -> None:
    common, latents = ("experiment=tiny_video2world", "debug=true"), str(tmp_path / "latents")
    dataset = "dataloader_train.dataset.dataset_dir=assets/robot_arm"
    made = run("scripts/cache_latents.py", "--output_dir", latents, "--", *common, "text=tiny", dataset, root=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "48 clips written, 0 kept (already there), 0 failed" in made.stdout
    training = (*common, "data=latent_cache", f"dataloader_train.dataset.cache_dir={latents}")
    trained = run("-m", "train", "--", *training, "model.with_tokenizer=false", root=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "saved iteration 2" in trained.stderr
    other = run("-m", "train", "--", *training, "dataloader_train.dataset.num_frames=9", root=tmp_path / "other")
    assert other.returncode == 2 and "num_frames is 5 in the cache, 9 in the configuration" in other.stderr


def test_the_command_caches_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--output_dir", str(tmp_path), "--dtype", "float32", "--start_interval", "16", "--device", "cpu", "--"]
    flags += ["experiment=tiny_video2world", "debug=true", "text=tiny"]
    args = build_parser().parse_args([*flags, f"dataloader_train.dataset.dataset_dir={REPOSITORY}/assets/robot_arm"])
    assert cache(args) == 0
    dataset = LatentCacheDataset(tmp_path, 5, (48, 64), fit="crop")
    assert dataset.key["start_interval"] == 16 and len(dataset) == 48
    assert dataset[0]["latent"].shape == (16, 2, 6, 8) and dataset[0]["latent"].dtype == torch.float32
    windows = sum(clip["windows"] for clip in dataset.clips)
    assert f"48 clips written, 0 kept (already there), 0 failed; {windows} windows" in capsys.readouterr().out
    assert cache(args) == 0 and "0 clips written, 48 kept" in capsys.readouterr().out


def test_bad_input_is_named(tmp_path: Path) -> None:
    def call(*flags: str) -> None:
        cache(build_parser().parse_args(["--output_dir", str(tmp_path), "--", *flags]))

    with pytest.raises(ConfigError, match="give experiment=NAME behind --"):
        call()
    with pytest.raises(ConfigError, match="the run's dataset is SyntheticDataset; use data=video_folder"):
        call("experiment=tiny_video2world", "data=synthetic")

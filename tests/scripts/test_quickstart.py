"""The quickstart from clips to pictures, and the base model that it starts from."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cosmos_predict.cli import evaluate
from cosmos_predict.config.compose import compose
from cosmos_predict.config.files import load_config
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.data.video_reader import probe, write_video
from cosmos_predict.pipelines.load import load_world_model
from experiments.tiny import BASE

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_shipped_base_is_the_experiment() -> None:
    """The base's config.yaml describes the network and tokenizer that the experiments build; its weights fill it."""
    ours = compose(["experiment=tiny_video2world"], report=[])
    shipped = load_config(REPOSITORY / "assets" / "tiny_base" / "config.yaml")
    assert ours.model is not None and shipped.model is not None
    assert instantiate(shipped.model.config).pipe_config == instantiate(ours.model.config).pipe_config
    assert compose(["experiment=tiny_video2world_posttraining"], report=[]).checkpoint.load_path == BASE
    for ema in (False, True):
        loaded = load_world_model(REPOSITORY / BASE, load_ema=ema)
        assert sum(weight.numel() for weight in loaded.model.net.parameters()) < 5e6
        assert all(torch.isfinite(weight).all() for weight in loaded.model.net.parameters())
    assert (REPOSITORY / BASE).stat().st_size < 10e6


@pytest.mark.slow
def test_the_base_beats_copying_on_new_clips_of_its_tasks(tmp_path: Path) -> None:
    options = ("--dataset_path", str(REPOSITORY / "assets" / "robot_arm_base_heldout"), "--num_clips", "16")
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(
            [
                "--dit_path",
                str(REPOSITORY / BASE),
                *options,
                "--num_steps",
                "12",
                "--save_path",
                str(tmp_path / "e.json"),
            ]
        )
    assert stopped.value.code == 0
    gain = json.loads((tmp_path / "e.json").read_text())["differences"]["copy_last_frame"]["psnr"]
    assert gain["mean"] > gain["interval"]


def quickstart(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ITERATIONS": "3", "CLIPS": "2", "OUTPUT": str(output), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / "quickstart.sh"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        cwd=output,
    )


@pytest.mark.slow
@pytest.mark.skipif(not (REPOSITORY / ".venv").is_dir(), reason="scripts/setup_env.sh has not been run here")
def test_the_quickstart_leaves_what_it_prints(tmp_path: Path) -> None:
    result = quickstart(tmp_path)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "robot_arm"
    assert probe(out / "generated.mp4").frames == 17
    assert np.array(Image.open(out / "contact_sheet.png")).shape[0] == 16 + 5 * 98
    numbers = json.loads((out / "evaluation.json").read_text())
    assert list(numbers["methods"]) == ["this", "base", "copy_last_frame", "tokenizer"]
    assert "loss " in result.stdout and "held-out clips" in result.stdout
    for place in ("generated.mp4", "contact_sheet.png", "loss.png", "evaluation.txt"):
        assert str(out / place) in result.stdout and (out / place).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.skipif(not (REPOSITORY / ".venv").is_dir(), reason="scripts/setup_env.sh has not been run here")
def test_the_quickstart_on_own_videos(tmp_path: Path) -> None:
    own = tmp_path / "own"
    for number in range(2):
        frames = np.full((24, 160, 200, 3), 40 + 90 * number, np.uint8)
        for t in range(24):
            frames[t, 60:90, 4 * t : 4 * t + 30] = (200, 60, 40)
        write_video(own / f"block_{number}.mp4", frames, 12)
    result = quickstart(tmp_path, str(own))
    assert result.returncode == 0, result.stderr
    assert "clips of the training set" in result.stdout and "prompt: A video of block 0." in result.stdout
    generated = probe(tmp_path / "own" / "generated.mp4")
    assert (generated.frames, generated.fps) == (17, 12)  # the clips' own rate


def test_help() -> None:
    script = REPOSITORY / "scripts" / "quickstart.sh"
    shown = subprocess.run(["bash", str(script), "--help"], capture_output=True, text=True, check=True).stdout
    assert "VIDEO_FOLDER" in shown and "ITERATIONS=450" in shown and "OUTPUT" in shown

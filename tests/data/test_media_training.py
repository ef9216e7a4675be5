"""The published guide's sequence on real clips: captions and videos in a folder, the T5 script, torchrun, the checkpoint tree.

The clips are those of `../shared/media` beside the repository where it is there, else the repository's own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cosmos_predict.data.video_reader import probe

REPOSITORY = Path(__file__).resolve().parents[2]
MEDIA = REPOSITORY.parent / "shared" / "media"
FRAMES = 9  # the shortest clip, clips/video2world_input2.mp4, has just as many
EXPERIMENT = "predict2_video2world_training_2b_cosmos_nemo_assets"


def make_dataset(folder: Path) -> list[str]:
    """Lay out real clips as `videos/` and `metas/`; return their file names."""
    found: dict[str, tuple[Path, str]] = {}
    if MEDIA.is_dir():
        for annotation in sorted((MEDIA / "bridge" / "annotation").glob("*/*.json")):
            split, episode = annotation.parent.name, annotation.stem
            text = json.loads(annotation.read_text())["texts"][0]
            found[f"bridge_{episode}"] = MEDIA / "bridge" / "videos" / split / episode / "rgb.mp4", text
        for path in sorted([*(MEDIA / "driving").glob("*.mp4"), *(MEDIA / "clips").glob("*.mp4")]):
            found[f"{path.parent.name}_{path.stem}"] = path, f"A video of {path.stem.replace('_', ' ')}."
    else:
        for path in sorted((REPOSITORY / "assets" / "robot_arm" / "videos").glob("*.mp4"))[:3]:
            found[path.stem] = path, (path.parents[1] / "metas" / f"{path.stem}.txt").read_text()
    for kind in ("videos", "metas"):
        (folder / kind).mkdir(parents=True)
    for name, (path, caption) in found.items():
        assert probe(path).frames >= FRAMES, path
        shutil.copyfile(path, folder / "videos" / f"{name}.mp4")
        (folder / "metas" / f"{name}.txt").write_text(caption)
    return [f"{name}.mp4" for name in found]


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **environment}
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=env,
        start_new_session=True,
    )
    try:
        done = subprocess.CompletedProcess(process.args, 0, *process.communicate(timeout=240))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # torchrun then ends its ranks
            process.communicate()
    done.returncode = process.returncode
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["base", "lora"])
def test_the_published_sequence_on_real_clips(tmp_path: Path, architecture: str) -> None:
    dataset, names = tmp_path / "dataset", make_dataset(tmp_path / "dataset")
    made = run(sys.executable, "scripts/get_t5_embeddings.py", "--dataset_path", dataset, "--text_encoder", "tiny")
    assert f"{len(names)} written, 0 skipped (already there), 0 failed" in made.stdout
    assert sorted(path.stem for path in (dataset / "t5_xxl").iterdir()) == sorted(name[:-4] for name in names)

    updates = -(-len(names) // 2)  # two ranks: every clip is read once
    training = run(
        Path(sys.executable).with_name("torchrun"),
        "--nproc_per_node=2",
        "--standalone",
        *("-m", "train", "--", f"experiment={EXPERIMENT}", "debug=true"),
        f"dataloader_train.dataset.dataset_dir={dataset}",
        f"dataloader_train.dataset.num_frames={FRAMES}",
        f"trainer.max_iter={updates}",
        f"model.config.train_architecture={architecture}",
        OUTPUT_ROOT=str(tmp_path / "checkpoints"),
    )
    listing = next(line for line in training.stderr.splitlines() if f"reading from {dataset}/videos:" in line)
    assert all(name in listing for name in names)
    assert f"{len(names)} of {len(names)} clips usable" in training.stderr
    assert "replaced by another clip" not in training.stderr

    root = tmp_path / "checkpoints" / "posttraining" / "video2world" / "2b_cosmos_nemo_assets_debug"
    iteration, checkpoints = f"iter_{updates:09d}", root / "checkpoints"
    assert (root / "config.yaml").is_file()
    for part in ("trainer", "optim", "scheduler"):
        assert any((checkpoints / part / iteration).iterdir()), part
    index = json.loads((checkpoints / "trainer" / iteration / "index.json").read_text())
    assert index["sample_number"] == 2 * updates and index["world_size"] == 2
    if architecture == "lora":
        for kind in ("reg", "ema"):
            folder = checkpoints / "model" / f"{iteration}_lora" / kind
            assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}
        return
    assert (checkpoints / "latest_checkpoint.txt").read_text().strip() == f"{iteration}.pt"
    published = torch.load(checkpoints / "model" / f"{iteration}.pt", weights_only=True, mmap=True)
    kinds = {name.split(".")[0]: tensor.dtype for name, tensor in published.items()}
    assert kinds == {"net": torch.bfloat16, "net_ema": torch.float32}
    assert all(tensor.isfinite().all() for tensor in published.values())

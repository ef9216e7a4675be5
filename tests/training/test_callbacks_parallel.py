"""Validation, sample clips and the weights report over two processes: as over one, and unnoticed by the training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_predict.data.video_reader import read_image
from cosmos_predict.io.tensors import load_tensors
from tests.training.tiny_run import BASE

REPOSITORY = Path(__file__).parents[2]
UPDATES = [*BASE, "trainer.max_iter=3", "trainer.global_batch_size=2"]
# Three batches over two ranks: the second rank has one that must not count.
WATCH = [
    "callbacks=[validation,samples]",
    "trainer.validation_iter=2",
    "trainer.max_val_iter=3",
    "trainer.callbacks.validation.weights=both",
    "trainer.callbacks.samples.num_steps=2",
]
SHARDED = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "train", "--"]


def train(root: Path, program: list[str], *overrides: str) -> Path:
    """Run the training command; return the run folder."""
    command = [sys.executable, *program, *UPDATES, *overrides]
    env = {**os.environ, "OUTPUT_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "cosmos_predict" / "tiny" / "tiny_video2world_debug"


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    files = [path for part in ("trainer", "optim") for path in (folder / "checkpoints" / part).rglob("*.safetensors")]
    return {f"{path.parent.parent.name}/{path.name}:{k}": v for path in files for k, v in load_tensors(path).items()}


@pytest.mark.slow
def test_two_sharded_processes_watch_as_one(tmp_path: Path) -> None:
    shard = "model.config.fsdp_shard_size=2"
    two = train(tmp_path / "two", SHARDED, shard, *WATCH)
    plain = train(tmp_path / "plain", SHARDED, shard)
    one = train(tmp_path / "one", ["-m", "train", "--"], *WATCH)

    a, b = state_of(two), state_of(plain)
    assert a.keys() == b.keys() and [name for name in a if not torch.equal(a[name], b[name])] == []

    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (two, one)
    ]
    measured = [[line for line in each if "val/loss" in line] for each in lines]
    assert [line["iteration"] for line in measured[0]] == [0, 2, 3]
    for ours, alone in zip(*measured, strict=True):
        assert ours == pytest.approx(alone, rel=1e-5)
    assert [len(each) for each in lines] == [6, 6]  # one process writes

    reports = [json.loads((folder / "weights_report.json").read_text()) for folder in (two, one)]
    for group, entry in reports[1]["groups"].items():
        assert reports[0]["groups"][group] == pytest.approx(entry, rel=1e-3)
    pictures = [read_image(folder / "samples" / "iter_000000003.png").astype(float) for folder in (two, one)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.1
    assert len(list((two / "tensorboard").iterdir())) == 1

"""Training on several processes as users start it, and what two runs have in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.checkpoint.run_state import SavedState
from tests.parallel.ranks import REPOSITORY, check, run_ranks

BASE = ["experiment=tiny_video2world", "data=synthetic", "debug=true", "trainer.logging_iter=1"]
BASE += ["model.config.pipe_config.net.num_blocks=3"]
CONTEXT = "model_parallel.context_parallel_size"
SHARD = "model.config.fsdp_shard_size"
FOUR = ["trainer.global_batch_size=4"]
STEPS = 10
# Four latent frames, of which the first is given.
FRAMES = ["dataloader_train.dataset.num_frames=13"]
PIPE = "model.config.pipe_config"


def folder_of(root: Path) -> RunFolder:
    return RunFolder(root / "cosmos_predict" / "tiny" / "tiny_video2world_debug")


def train(
    root: Path, ranks: int, *overrides: str, steps: int = STEPS, torchrun: bool = False, allow: str = ""
) -> RunFolder:
    """Run the training command on `ranks` processes, started by torchrun itself or as torchrun does.

    allow: a package that the configuration may name classes of; not with torchrun.
    """
    options = [f"trainer.max_iter={steps}", *overrides]
    command = [*(["--allow", allow] if allow else []), "--", *BASE, *options]
    old = os.environ.get("OUTPUT_ROOT")
    os.environ["OUTPUT_ROOT"] = str(root)
    try:
        if torchrun:
            process = launch(root, *options, ranks=ranks)
            try:
                output = process.communicate(timeout=400)[0]
            finally:
                process.kill()
            assert process.returncode == 0, output
        elif ranks > 1:
            check(run_ranks("train", *command, ranks=ranks, timeout=400))
        else:
            done = subprocess.run(
                [sys.executable, "-m", "train", *command],
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
    finally:
        if old is None:
            del os.environ["OUTPUT_ROOT"]
        else:
            os.environ["OUTPUT_ROOT"] = old
    return folder_of(root)


def losses(folder: RunFolder) -> list[float]:
    lines = [json.loads(line) for line in (folder.root / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def state(folder: RunFolder) -> dict[str, torch.Tensor]:
    iteration = folder.newest()
    assert iteration is not None
    with SavedState(folder, iteration) as saved:
        kinds = ("weights", "ema", "optimizer")
        return {f"{kind}:{name}": saved.read(kind, name) for kind in kinds for name in saved.names(kind)}


def assert_same_run(folder: RunFolder, other: RunFolder, steps: int = STEPS) -> None:
    a, b = losses(folder), losses(other)
    assert len(a) == len(b) == steps
    assert a == pytest.approx(b, rel=1e-5)
    first, second = state(folder), state(other)
    assert first.keys() == second.keys()
    for kind, limit in {"weights:": 1e-5, "ema:": 1e-5, "optimizer:exp_avg.": 1e-4}.items():
        names = [name for name in first if name.startswith(kind)]
        assert relative_distance([first[n] for n in names], [second[n] for n in names]) <= limit
        if limit == 1e-5:  # each for itself: some start at zero, where Adam turns rounding into steps
            assert max(relative_distance([first[n]], [second[n]]) for n in names) <= 1e-3


def assert_identical(folder: RunFolder, other: RunFolder) -> None:
    a, b = state(folder), state(other)
    assert a.keys() == b.keys() and not [name for name in a if not torch.equal(a[name], b[name])]


def relative_distance(tensors: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    pairs = [(a.double().flatten(), b.double().flatten()) for a, b in zip(tensors, others, strict=True)]
    return float(torch.cat([a - b for a, b in pairs]).norm() / torch.cat([b for _, b in pairs]).norm().clamp(min=1e-30))


def launch(root: Path, *overrides: str, ranks: int = 2) -> subprocess.Popen[str]:
    """Start the training command with torchrun, in a process group of its own."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return subprocess.Popen(
        [*torchrun, "-m", "train", "--", *BASE, *overrides],
        cwd=REPOSITORY,
        env={**os.environ, "OUTPUT_ROOT": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run did not get there in time"
        time.sleep(0.02)


def rank_process(launcher: int, rank: int) -> int:
    """Return the process id of a rank that torchrun started."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError("no such rank")

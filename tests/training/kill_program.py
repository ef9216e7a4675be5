"""Kill a 60-step run at seeded moments, resume it each time, and compare with an undisturbed one, bit by bit.

    python -m tests.training.kill_program FOLDER SEED [OVERRIDE ...]

Each run is a process of its own, forked from this one, which has imported everything and computed nothing: a start
takes a fraction of a second. Prints every kill; raises where a tensor, a number or a line of metrics differs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.checkpoint.run_state import SavedState
from tests.training.tiny_run import run

STEPS, KILLS = 60, 10
COMMON = [f"trainer.max_iter={STEPS}", "checkpoint.save_iter=3", "checkpoint.keep_last_k=2", "trainer.logging_iter=1"]


def folder_of(root: Path) -> RunFolder:
    return RunFolder(root / "cosmos_predict" / "tiny" / "tiny_video2world_debug")


def start(root: Path, *overrides: str) -> int:
    """Run the training in a child; return its process id."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    status = 1
    try:
        with (root / "log.txt").open("a") as log:
            os.dup2(log.fileno(), 2)
        run(root, *COMMON, *overrides)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def starts(root: Path) -> int:
    """Return how many runs have begun to train: until then the metrics are those of the run before."""
    return (root / "log.txt").read_text().count(f"{folder_of(root).root}: iterations ")


def ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] != 0


def iterations_logged(folder: RunFolder) -> list[int]:
    path = folder.root / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["iteration"] for line in lines if line.endswith("}")]


def saving(folder: RunFolder) -> bool:
    """Whether a half-written file lies there, or a part of an iteration without its index."""
    parts = (path.name for part in ("trainer", "optim") for path in (folder.checkpoints / part).glob("iter_*"))
    open_parts = [name for name in parts if not folder.index(int(name[5:])).exists()]
    return bool(open_parts) or next(folder.checkpoints.rglob(".*.tmp"), None) is not None


def wait(condition: Callable[[], bool], child: int, root: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert not ended(child), (root / "log.txt").read_text()[-3000:]
        assert time.monotonic() < deadline, "the run did not get there in time"
        time.sleep(0.002)


def state(folder: RunFolder) -> dict[str, torch.Tensor]:
    with SavedState(folder, STEPS) as saved:
        kinds = ("weights", "ema", "optimizer", "rng")
        tensors = {f"{kind}:{name}": saved.read(kind, name) for kind in kinds for name in saved.names(kind)}
        numbers = {"sample": saved.index["sample_number"], "epoch": saved.scheduler["last_epoch"]}
    return {**tensors, **{name: torch.tensor(value) for name, value in numbers.items()}}


def main(root: Path, seed: int, *overrides: str) -> None:
    draw = random.Random(seed)
    for name in ("whole", "killed"):
        (root / name).mkdir()
        (root / name / "log.txt").touch()
    whole = start(root / "whole", *overrides)
    assert os.waitpid(whole, 0)[1] == 0, (root / "whole" / "log.txt").read_text()[-3000:]
    folder, during = folder_of(root / "killed"), 0
    for kill in range(KILLS):
        first = folder.newest() or 0
        steps, delay, in_save = draw.randint(2, 9), draw.uniform(0, 0.03), kill % 2 == 1
        child = start(root / "killed", *overrides)
        wait(lambda: starts(root / "killed") > kill, child, root / "killed")  # noqa: B023
        wait(lambda: max(iterations_logged(folder), default=0) >= min(first + steps, STEPS - 6), child, root / "killed")  # noqa: B023
        if in_save:
            wait(lambda: saving(folder), child, root / "killed")
            delay /= 4
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "the run ended by itself"
        cut = saving(folder)
        during += cut
        last = max(iterations_logged(folder), default=0)
        print(
            f"kill {kill}: from {first}, at {last}, newest {folder.newest()}, {'in a save' if cut else 'between saves'}"
        )
    child = start(root / "killed", *overrides)
    assert os.waitpid(child, 0)[1] == 0, (root / "killed" / "log.txt").read_text()[-3000:]
    a, b = state(folder), state(folder_of(root / "whole"))
    different = [name for name in b if name not in a or not torch.equal(a[name], b[name])]
    assert a.keys() == b.keys() and not different, different
    assert iterations_logged(folder) == list(range(1, STEPS + 1)), "lines of metrics are repeated or missing"
    assert not saving(folder) and folder.iterations() == folder_of(root / "whole").iterations()
    exports = [
        {p.name: p.read_bytes() for p in f.checkpoints.glob("model/*")} for f in (folder, folder_of(root / "whole"))
    ]
    assert exports[0] == exports[1], "the published files differ"
    assert during >= 4, f"only {during} kills hit a save"
    print(f"{len(a)} tensors equal after {KILLS} kills, {during} of them in a save")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])

"""No process holds more than its shards and a few tensors, whatever it does with the weights."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.parallel.ranks import check, run_ranks

HELD = {"build": 1, "ema": 2, "save": 2, "export": 2, "resume": 2, "load": 2}  # shards of weights, then of the EMA too


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_stage_takes_shards_and_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")  # what is freed is given back: no slack in the measure
    processes = run_ranks("tests.parallel.memory_program", str(tmp_path), ranks=2, timeout=400)
    shutil.rmtree(tmp_path)
    check(processes)
    for process in processes:
        peaks = {stage: float(peak) for stage, peak in (line.split() for line in process.stdout.splitlines())}
        tensor = peaks.pop("tensor")
        assert peaks.keys() == HELD.keys()
        for stage, peak in peaks.items():
            # One whole tensor, and parts of it on their way.
            assert peak <= HELD[stage] + 2 * tensor + 0.1, (stage, peak, tensor)

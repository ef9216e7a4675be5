"""Every benchmark runs on a CPU at its smallest sizes, writes its results where it is told, and leaves the measured ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results"
CLIP = "assets/robot_arm/videos/lift_000.mp4"
SMALL = {  # what a script is called with; seconds are those of imports, above all
    "bench_curate": "--size 64x48 --stride 20 --pairs 1 --workers 1 --executors threads --many --shots 2",
    "bench_data": f"--clips {CLIP} --num_frames 5 --video_size 32 48 --samples 2 --pairs 1 --backends pyav",
    "bench_dit": "--width 64 --blocks 1 --heads 2 --latent 2 4 4 --repeats 1 --threads 1 --passes forward",
    "bench_generate": "--width 64 --blocks 1 --steps 2 --repeats 1 --threads 1",
    "bench_import": "--repeats 1",
    "bench_optimizers": "--width 64 --repeats 1 --threads 1",
    "bench_prepare": f"--video {CLIP} --height 32 --width 48 --num_frames 9 --chunks 1 --pairs 1 --long 2",
    "bench_tokenizers": "--wan 5 16 16 --cosmos 9 32 32 --dim 8 --channels 32 --no-memory --repeats 1 --threads 1",
    "bench_trainer": "--width 48 --blocks 1 --heads 2 --latent 2 2 2 --pairs 3 --warm-up 1 --threads 1",
}
LEFT_OUT = {"bench_quickstart": "installs, and trains for minutes; what it calls has a test of its own"}


def test_every_benchmark_is_here() -> None:
    assert {path.stem for path in (REPOSITORY / "benchmarks").glob("bench_*.py")} == {*SMALL, *LEFT_OUT}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_runs_at_its_smallest(name: str, tmp_path: Path) -> None:
    measured = {path.name: path.read_bytes() for path in RESULTS.iterdir()}
    command = [sys.executable, f"benchmarks/{name}.py", *SMALL[name].split()]
    environment = {**os.environ, "BENCHMARK_RESULTS": str(tmp_path / "results"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(REPOSITORY)  # where the package is not installed
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=240, env=environment)
    assert ended.returncode == 0 and ended.stdout, ended.stdout + ended.stderr
    (written,) = (tmp_path / "results").iterdir()
    assert written.stem in (name, f"{name}_cpu")
    content = json.loads(written.read_text())
    assert content.get("rows") or content["runs"][-1]["rows"]
    assert {path.name: path.read_bytes() for path in RESULTS.iterdir()} == measured

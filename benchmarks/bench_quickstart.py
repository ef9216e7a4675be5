"""The quickstart from clips to figures: how long it takes after installation, and how good its clips are.

`python benchmarks/bench_quickstart.py` installs (not timed), runs `scripts/quickstart.sh` as it is in a folder that it makes and
removes, and writes `benchmarks/results/quickstart_cpu.json`: seconds in all and by step, and of the script's evaluation the
means with halves of their 95 % intervals: per method, and of the paired differences clip by clip. Goals: post-trained less
copying, and less the base, in PSNR more than the interval, on 16 held-out clips or more; at most 360 s on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = Path(os.environ.get("BENCHMARK_RESULTS") or REPOSITORY / "benchmarks" / "results") / "quickstart_cpu.json"


def run(output: Path) -> list[tuple[float, str]]:
    """Run the quickstart into `output`; return its lines with the seconds since the start, and one for the end."""
    begin, lines = time.perf_counter(), []
    command = [str(REPOSITORY / "scripts" / "quickstart.sh")]
    environment = {**os.environ, "OUTPUT": str(output)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            lines.append((time.perf_counter() - begin, line.rstrip("\n")))
            print(line, end="", flush=True)
    if process.returncode:
        raise SystemExit(process.returncode)
    return [*lines, (time.perf_counter() - begin, "== end")]


def record(folder: Path, lines: list[tuple[float, str]]) -> dict[str, Any]:
    """Return what is kept of a run that left `folder` and `lines`."""
    steps = [
        (seconds, line.removeprefix("== ").partition(" -> ")[0]) for seconds, line in lines if line.startswith("== ")
    ]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    methods = {
        name: {metric: {key: values[key] for key in ("mean", "interval")} for metric, values in entries.items()}
        for name, entries in evaluation["methods"].items()
    }
    return {
        "seconds": steps[-1][0],
        "seconds_by_step": {name: after - begin for (begin, name), (after, _) in itertools.pairwise(steps)},
        "loss": next(line.partition(": ")[2] for _, line in lines if ": loss " in line and "->" in line),
        "compared": next(name for _, name in steps if "comparison" in name).partition("real ")[2],
        "clips": len(evaluation["clips"]),
        "methods": methods,
        "differences": evaluation["differences"],
        "num_steps": evaluation["settings"]["num_steps"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--save_path", type=Path, default=RESULT, help="(default: benchmarks/results/quickstart_cpu.json)"
    )
    args = parser.parse_args()
    subprocess.run([REPOSITORY / "scripts" / "setup_env.sh"], check=True)
    python = [REPOSITORY / ".venv" / "bin" / "python", "-c", "import torch; print(torch.__version__)"]
    torch = subprocess.run(python, check=True, capture_output=True, text=True).stdout.strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as output:
        lines = run(Path(output))
        measured = record(Path(output) / "robot_arm", lines)
    content = {"device": f"{platform.machine()}, {cores} cores", "torch": torch, **measured}
    unfinished = args.save_path.with_suffix(".tmp")  # the package's own writer may not be installed where this runs
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, args.save_path)
    print(f"\n{content['seconds']:.0f} s after installation; written to {args.save_path}")


if __name__ == "__main__":
    main()

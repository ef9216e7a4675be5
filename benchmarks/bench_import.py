"""Seconds until the package is imported, until `--help` is printed, and until the experiments are listed.

`python benchmarks/bench_import.py [--repeats 5]` starts each command in a fresh process several times, in turn, and
takes the median; files are in the cache after the first. Prints a table, writes `benchmarks/results/bench_import.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).resolve().parent / "results") / "bench_import.json"
# Aims of the design, in seconds; by the kind of command.
AIMS = {"import": 0.3, "help": 1.0, "list": 4.0}


def commands() -> dict[str, tuple[str, list[str]]]:
    """Return {what: (kind, arguments after `python`)} for all that exists in this checkout."""
    found = {
        "python -c pass": ("baseline", ["-c", "pass"]),
        "import cosmos_predict": ("import", ["-c", "import cosmos_predict"]),
    }
    for folder in ("scripts", "inference"):
        for path in sorted((REPOSITORY / folder).glob("*.py")):
            if not path.name.startswith("_"):
                found[f"{folder}/{path.name} --help"] = ("help", [str(path), "--help"])
    if (REPOSITORY / "train.py").exists():
        found["train --help"] = ("help", ["-m", "train", "--help"])
        found["train --list"] = ("list", ["-m", "train", "--list"])
    return found


def seconds(arguments: list[str]) -> float:
    """Run `python ARGUMENTS` in the repository and return how long it took; raises CalledProcessError if it fails."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    todo = commands()
    times: dict[str, list[float]] = {what: [] for what in todo}
    for _ in range(args.repeats):  # in turn, so that a busy moment does not fall on one command alone
        for what, (_, arguments) in todo.items():
            times[what].append(seconds(arguments))
    rows = []
    print(f"{'command':50} {'median s':>8} {'min':>6} {'max':>6} {'aim':>5}")
    for what, (kind, _) in todo.items():
        taken, aim = times[what], AIMS.get(kind)
        row = {"command": what, "median": statistics.median(taken), "min": min(taken), "max": max(taken), "aim": aim}
        rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        print(f"{what:50} {row['median']:8.2f} {row['min']:6.2f} {row['max']:6.2f} {aim or '':>5}")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "repeats": args.repeats,
        "statistic": "median over fresh processes, run in turn",
        "rows": rows,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

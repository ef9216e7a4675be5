"""Runs of `split` in tests: with the command's defaults, in this process or as a command."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cosmos_predict.cli.curate import build_parser, read_options
from cosmos_predict.curate.split import split

REPOSITORY = Path(__file__).parents[2]


def run_split(source: Path, output: Path, *flags: str) -> dict[str, Any]:
    """Run `split` in this process with the flags of the command; return its summary."""
    args = build_parser().parse_args(
        ["split", "--input-video-path", str(source), "--output-clip-path", str(output), *flags]
    )
    names = {group: [name.replace("-", "_") for name in options] for group, options in read_options().items()}
    options = {name: getattr(args, name) for group in names.values() for name in group}
    return split(source, output, options, names["run"])


def command(source: Path, output: Path, *flags: str) -> subprocess.Popen[str]:
    """Start `scripts/curate.py split` as a user does."""
    words = [sys.executable, "scripts/curate.py", "split", "--input-video-path", str(source)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*words, "--output-clip-path", str(output), *flags],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(source: Path, output: Path, *flags: str) -> tuple[int, str, str]:
    """Run the command to its end; return status, stdout, stderr."""
    process = command(source, output, *flags)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def tree(output: Path) -> dict[str, str]:
    """Return all files but scratch and locks, with a hash of their content."""
    files = sorted(path for path in output.rglob("*") if path.is_file() and ".work" not in path.parts)
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

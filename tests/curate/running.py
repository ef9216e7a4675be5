"""Runs of `split` in tests: with the command's defaults, in this process or as a command."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from cosmos_predict.cli.curate import build_parser, read_options
from cosmos_predict.curate.split import split

REPOSITORY = Path(__file__).parents[2]


def options_of(*flags: str) -> dict[str, Any]:
    """Return the options of `split` as the command line has them, by name."""
    args = build_parser().parse_args(["split", "--input-video-path", "in", "--output-clip-path", "out", *flags])
    names = [name.replace("-", "_") for options in read_options().values() for name in options]
    return {name: getattr(args, name) for name in names}


def run_split(source: Path | str, output: Path | str, *flags: str) -> dict[str, Any]:
    """Run `split` in this process with the flags of the command; return its summary."""
    args = build_parser().parse_args(
        ["split", "--input-video-path", str(source), "--output-clip-path", str(output), *flags]
    )
    names = {group: [name.replace("-", "_") for name in options] for group, options in read_options().items()}
    options = {name: getattr(args, name) for group in names.values() for name in group}
    return split(source, output, options, names["run"])


def start(*words: str) -> subprocess.Popen[str]:
    """Start `scripts/curate.py` as a user does."""
    return subprocess.Popen(
        [sys.executable, "scripts/curate.py", *words],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )


def command(source: Path | str, output: Path | str, *flags: str) -> subprocess.Popen[str]:
    """Start `scripts/curate.py split`."""
    return start("split", "--input-video-path", str(source), "--output-clip-path", str(output), *flags)


def run_command(*words: str) -> tuple[int, str, str]:
    """Run `scripts/curate.py` to its end; return status, stdout, stderr."""
    process = start(*words)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def finished(source: Path | str, output: Path | str, *flags: str) -> tuple[int, str, str]:
    """Run `scripts/curate.py split` to its end; return status, stdout, stderr."""
    return run_command("split", "--input-video-path", str(source), "--output-clip-path", str(output), *flags)


def tree(output: Path) -> dict[str, str]:
    """Return all files but scratch and locks, with a hash of their content."""
    files = sorted(path for path in output.rglob("*") if path.is_file() and ".work" not in path.parts)
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

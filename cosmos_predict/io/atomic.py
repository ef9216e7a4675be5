"""Files appear whole or not at all: write beside the target, flush to disk, rename."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], staging: Path | None = None) -> Iterator[Path]:
    """Yield a path to write to; on success it is flushed to disk and renamed to `path`, on any error removed.

    The yielded path has the target's file name, so that writers which look at the suffix work, inside a hidden folder
    next to the target (`.NAME.XXXX.tmp/NAME`): a listing such as `*.mp4` never sees half a file, not even one that a
    killed writer left behind. An existing target stays untouched until the rename. Missing parent folders are made.

    staging: put that hidden folder in this one instead, which must be of the same file system.

    Raises:
        FileNotFoundError: the body wrote nothing.
        OSError: what the body or the file system raises (disk full, no permission); the target is then as before.
    """
    target = Path(path)
    make_folder(target.parent)
    if staging is not None:
        staging.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:64]}.", suffix=".tmp", dir=staging or target.parent))
    try:
        temporary = folder / target.name
        yield temporary
        if not temporary.is_file():
            raise FileNotFoundError(f"{target}: nothing was written to the temporary path {temporary}")
        _flush(temporary)
        os.replace(temporary, target)
        _flush_folder(target.parent)  # the rename itself lives in the folder's data
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    atomic_write_bytes(path, text.encode("utf-8"))


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder, and those above it that are missing, so that a power cut takes none of them away again."""
    folder = Path(path)
    missing = list(itertools.takewhile(lambda above: not above.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        _flush_folder(made.parent)


def _flush_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # file systems that cannot flush a folder say so with one
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

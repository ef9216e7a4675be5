"""One process at a time: a lock that dies with its process, whatever ends it."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from typing import IO

from cosmos_predict.errors import ConfigError
from cosmos_predict.io.atomic import make_folder

_LOCKS: weakref.WeakSet[IO[str]] = weakref.WeakSet()  # those that this process holds
# A forked child would hold them on after the death of its parent. No LOCK_UN, which would take them from the parent.
os.register_at_fork(after_in_child=lambda: [lock.close() for lock in _LOCKS])


def hold(path: Path, refusal: str) -> IO[str]:
    """Return the open lock file `path`, held until it is closed; raises ConfigError(`refusal`) where another process has it."""
    make_folder(path.parent)
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(refusal) from error
    _LOCKS.add(lock)
    return lock

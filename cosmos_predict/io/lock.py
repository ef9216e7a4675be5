"""One process at a time: a lock that dies with its process, whatever ends it."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path
from typing import IO

from loguru import logger

from cosmos_predict.errors import ConfigError
from cosmos_predict.io.atomic import make_folder

_LOCKS: weakref.WeakSet[IO[str]] = weakref.WeakSet()  # those that this process holds
# A forked child would hold them on after the death of its parent. No LOCK_UN, which would take them from the parent.
os.register_at_fork(after_in_child=lambda: [lock.close() for lock in _LOCKS])


def hold(path: Path, refusal: str, shared: bool = False) -> IO[str]:
    """Return the open lock file `path`, held until it is closed; raises ConfigError(`refusal`) where another process has it.

    shared: several processes may hold it so at a time, but none beside one that holds it alone.

    A file system without locks (some network ones) is told of once, and nothing is held.
    """
    make_folder(path.parent)
    lock = path.open("w")
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            lock.close()
            raise ConfigError(refusal) from error
        logger.warning("{}: this file system has no locks ({}): nothing keeps a second run away", path, error)
    _LOCKS.add(lock)
    return lock

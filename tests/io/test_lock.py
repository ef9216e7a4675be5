"""A lock has one holder, and ends with it: no forked child keeps it."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_predict.errors import ConfigError
from cosmos_predict.io.lock import hold

HOLD_AND_FORK = """
import os, signal, sys
from pathlib import Path
from cosmos_predict.io.lock import hold
lock = hold(Path(sys.argv[1]), "held")
if not os.fork():
    print(os.getpid(), flush=True)  # the lock is no longer the child's here
signal.pause()
"""


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    with hold(tmp_path / "new" / ".lock", ""), pytest.raises(ConfigError, match="wait for the other"):
        hold(tmp_path / "new" / ".lock", "wait for the other")
    hold(tmp_path / "new" / ".lock", "").close()


def test_shared_holders_keep_away_one_that_wants_it_alone(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with hold(path, "", shared=True), hold(path, "", shared=True), pytest.raises(ConfigError, match="not alone"):
        hold(path, "not alone")
    with hold(path, ""), pytest.raises(ConfigError, match="held alone"):
        hold(path, "held alone", shared=True)


def test_a_child_of_a_killed_holder_does_not_keep_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD_AND_FORK, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(ConfigError, match="held"):
                hold(tmp_path / ".lock", "held")
            holder.kill()
            holder.wait()
            hold(tmp_path / ".lock", "held").close()
        finally:
            holder.kill()
            os.kill(child, 9)


def test_a_file_system_without_locks_is_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    hold(tmp_path / ".lock", "held").close()

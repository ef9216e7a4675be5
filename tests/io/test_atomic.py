"""A file appears whole or not at all, whatever stops its writer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cosmos_predict.io.atomic import atomic_path, atomic_write_bytes, atomic_write_text


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "clip.mp4"
    atomic_write_bytes(target, b"one")
    atomic_write_text(target, "zwei, größer")
    assert target.read_text(encoding="utf-8") == "zwei, größer"
    assert os.listdir(target.parent) == ["clip.mp4"]


def test_new_folders_are_flushed_into_those_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, fsync = [], os.fsync

    def recorded(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    atomic_write_bytes(tmp_path / "a" / "b" / "state", b"x")
    assert flushed[:2] == [tmp_path, tmp_path / "a"] and flushed[-1] == tmp_path / "a" / "b"
    flushed.clear()
    atomic_write_bytes(tmp_path / "a" / "b" / "state", b"y")
    assert len(flushed) == 2  # the file, and its folder after the rename


def test_the_temporary_path_has_the_targets_name_and_file_system(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "clip.mp4") as temporary:
        assert temporary.name == "clip.mp4" and temporary.parent.parent == tmp_path
        temporary.write_bytes(b"x")
        assert list(tmp_path.glob("*.mp4")) == []  # a reader that lists the folder sees no half file


def test_staged_elsewhere_nothing_is_left_beside_the_target(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "out" / "clip.mp4", tmp_path / "work" / "new") as temporary:
        assert temporary.parent.parent == tmp_path / "work" / "new" and not os.listdir(tmp_path / "out")
        temporary.write_bytes(b"x")
    assert os.listdir(tmp_path / "out") == ["clip.mp4"] and not os.listdir(tmp_path / "work" / "new")


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    atomic_write_bytes(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "state"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["state"]


def test_a_body_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "state"
    target.write_bytes(b"old")
    with pytest.raises(FileNotFoundError, match="state: nothing was written"), atomic_path(target):
        pass
    assert target.read_bytes() == b"old"


def test_a_file_that_may_not_grow_leaves_the_old_file(tmp_path: Path) -> None:
    """A size limit on files makes the kernel refuse the write half way, as a full disk does."""
    target = tmp_path / "state"
    target.write_bytes(b"old")
    program = (
        "import resource, signal, sys\n"
        "from cosmos_predict.io.atomic import atomic_write_bytes\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "atomic_write_bytes(sys.argv[1], bytes(5000))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(target)], capture_output=True, text=True)
    assert done.returncode == 1 and "OSError" in done.stderr
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["state"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "state.pt"
    target.write_bytes(b"old")
    program = (
        "import sys, time\n"
        "from cosmos_predict.io.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n"
        "    path.write_bytes(b'half')\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"written\n"
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.glob("*.pt")) == [target]

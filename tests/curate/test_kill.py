"""A killed or interrupted run, started again, gives what an undisturbed one gives."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.curate.footage import make_set
from tests.curate.running import command, finished, run_split, tree


@pytest.mark.slow
def test_kill_and_resume_gives_the_same_tree(tmp_path: Path) -> None:
    source, moments = tmp_path / "in", random.Random(0)
    make_set(source, 4)
    started = time.monotonic()
    run_split(source, tmp_path / "whole", "--workers", "2")
    length, kills = time.monotonic() - started, 0
    for _ in range(40):
        process = command(source, tmp_path / "out", "--workers", "2", "--text-encoder", "none")
        deadline = time.monotonic() + 30
        while not (tmp_path / "out" / ".work" / "shard-1-1").is_dir() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.uniform(0, length))
        killed = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += killed
        if kills == 10:
            break
        if not killed:  # it came to its end: from the start again, over what is there
            for path in sorted((tmp_path / "out" / "processed_videos").rglob("*.json"))[::2]:
                path.unlink()
    assert kills == 10
    status, _, err = finished(source, tmp_path / "out", "--workers", "2", "--text-encoder", "none")
    assert status == 0, err
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not (tmp_path / "out" / ".work" / "shard-1-1").exists()


@pytest.mark.slow
def test_terminated_by_a_scheduler_nobody_is_suspected(tmp_path: Path) -> None:
    source, in_hand = tmp_path / "in", tmp_path / "out" / ".work" / "in-hand"
    make_set(source, 4)
    process = command(source, tmp_path / "out", "--workers", "2", "--text-encoder", "none")
    deadline = time.monotonic() + 30
    while len(list(in_hand.rglob("*.json"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == 143 and not list(in_hand.rglob("*.json"))
    run_split(source, tmp_path / "out")
    run_split(source, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_resumes(tmp_path: Path) -> None:
    source = tmp_path / "in"
    make_set(source, 4)
    process = command(source, tmp_path / "out", "--workers", "1", "--text-encoder", "none")
    deadline = time.monotonic() + 30
    while not list((tmp_path / "out").rglob("film_*.mp4.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err and "interrupted" in err
    run_split(source, tmp_path / "out")
    run_split(source, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")

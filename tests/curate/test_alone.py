"""A video that kills its process is found out, isolated and given up; those that were in hand with it come through."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cosmos_predict.curate import alone, records
from cosmos_predict.curate.records import CRASH, Records
from cosmos_predict.curate.stage import Stage, Video
from cosmos_predict.errors import CosmosPredictError, DataError, UnavailableError
from tests.curate.footage import make_set
from tests.curate.running import command, finished, run_split, tree

OWN = '''
import ctypes, os, signal, time
from cosmos_predict.curate.stage import Clip, Stage, Video

class Deadly(Stage):
    """Ends its process as it comes to one video, once the others are in hand."""

    name, after = "deadly", "ingest"

    def process(self, item: Video) -> None:
        if "film_0" in item.relative:
            time.sleep(0.3)
            {death}
'''
DEATHS = {"SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)", "SIGSEGV": "ctypes.string_at(0)"}


def video_of(work: Path, name: str = "a.mp4") -> Video:
    return Video(f"/in/{name}", name, work, [1, 2])


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS)
def test_a_video_that_kills_is_the_only_one_to_fail(tmp_path: Path, death: str) -> None:
    source, output, own = tmp_path / "in", tmp_path / "out", tmp_path / "own.py"
    make_set(source, 4)
    own.write_text(OWN.format(death=DEATHS[death]))
    flags = ["--workers", "2", "--text-encoder", "none", "--stage", f"{own}:Deadly", "--splitting-algorithm", "content"]
    status, _, err = finished(source, output, *flags)
    assert status == -signal.Signals[death]  # of nothing that ran is known that it was not to blame
    for attempts in (1, 2) if death == "SIGKILL" else (1,):
        status, out, err = finished(source, output, *flags)
        assert status == 1 and "Traceback" not in err, err
        assert f"failed: part0/film_0.mp4: any: its process was ended by {death}" in err
        record = json.loads((output / "processed_videos" / "part0" / "film_0.mp4.json").read_text())
        assert record["attempts"] == attempts and record["status"] == "failed" and record["error"]["type"] == CRASH
        assert "num_videos_done                  3" in out
    assert "come first, one at a time" in err
    status, _, err = finished(source, output, *flags, "--max-attempts", str(attempts))
    assert status == 1 and "1 given up after repeated failures, 3 done before, 0 to do" in err, err
    assert not list((output / ".work").rglob("*.mp4")) and not list((output / ".work" / "in-hand").rglob("*.json"))


@pytest.mark.slow
def test_who_is_killed_on_purpose_is_not_blamed(tmp_path: Path) -> None:
    """kill -9 again and again while one video is alone in hand; then the run ends as an undisturbed one."""
    source, output = tmp_path / "in", tmp_path / "out"
    make_set(source, 2)
    flags = ["--workers", "1", "--text-encoder", "none", "--splitting-algorithm", "content"]
    for attempt in range(4):
        process = command(source, output, *flags)
        in_hand, deadline = output / ".work" / "in-hand", time.monotonic() + 60
        alone_now = False
        while process.poll() is None and not alone_now:
            assert time.monotonic() < deadline
            time.sleep(0.005)
            notes = [path.read_text() for path in in_hand.rglob("*.json") if not path.parent.name.startswith(".")]
            alone_now = any('"alone": true' in note for note in notes) if attempt else bool(notes)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert alone_now and process.returncode == -signal.SIGKILL
    status, _, err = finished(source, output, *flags)
    assert status == 0, err
    run_split(source, tmp_path / "whole", *flags)
    assert tree(output) == tree(tmp_path / "whole")


def test_deaths_of_a_process_that_held_one_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory ran out, or on another machine, the process that is killed may be the one that started the others."""
    video = video_of(tmp_path)
    for attempts, killed_for_memory in enumerate((False, True, False, True)):
        with pytest.raises(ZeroDivisionError), Records(tmp_path, {}).lock():  # what a killed process does not come to
            raise ZeroDivisionError
        output = Records(tmp_path, {})
        output.mark(video, alone=True)
        if killed_for_memory:
            monkeypatch.setattr(records, "memory_kills", lambda at=attempts: ["other", f"oom_kill {at}"])
        output = Records(tmp_path, {})
        output.blame([video, video_of(tmp_path, "b.mp4")])
        (todo,), _ = output.todo([video], "none", 2) if attempts < 3 else ([video], None)
        assert output.suspects([todo]) == [video]
        assert output.read("a.mp4").get("attempts", 0) == (attempts + 1) // 2
    assert "out of memory?" in output.read("a.mp4")["error"]["message"]
    left, others = Records(tmp_path, {}).todo([video], "none", 2)
    assert not left and others == {"given up after repeated failures": 1}


def test_notes_of_videos_in_hand(tmp_path: Path) -> None:
    output, (first, second, third) = Records(tmp_path, {}), (video_of(tmp_path, f"{name}.mp4") for name in "abc")
    with pytest.raises(KeyboardInterrupt), output.lock():
        output.mark(first)
        output.mark(second, alone=True)
        output.mark(third)
        output.finish(third)
        assert [*output.in_hand.files()] == ["a.mp4.json", "b.mp4.json"]
        raise KeyboardInterrupt
    assert [*output.in_hand.files()] == ["b.mp4.json"]  # still to be tried alone, but its death counts no more
    again = Records(tmp_path, {})
    again.blame([first, second, third])
    todo, _ = again.todo([first, second, third], "none", 3)
    assert todo == [first, second] + ([third] if third in todo else []) and again.suspects(todo) == [second]


class Ends(Stage):
    """Does to its process what the video's name says."""

    name = "ends"

    def __init__(self, at_setup: str = "") -> None:
        self.at_setup = at_setup

    def setup(self) -> None:
        self.do(self.at_setup)

    def process(self, item: Video) -> None:
        item.footage.facts["process"] = os.getpid()
        self.do(item.relative)

    def do(self, what: str) -> None:
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "leave":
            os._exit(3)
        if what == "fail":
            raise DataError("it fails")
        if what == "stop":
            raise UnavailableError("no server any more")


def make(at_setup: str) -> list[Stage]:
    return [Ends(at_setup)]


def go(tmp_path: Path, names: list[str], at_setup: str = "") -> tuple[list[str], list[Video]]:
    begun, through = list[str](), list[Video]()

    def begin(video: Video) -> Any:
        begun.append(video.relative)

    alone.run((video_of(tmp_path, name) for name in names), make, (at_setup,), begin, through.append, 1)
    return begun, through


def test_one_process_until_it_dies(tmp_path: Path) -> None:
    begun, through = go(tmp_path, ["a", "fail", "die", "b", "leave"])
    assert begun == [video.relative for video in through] == ["a", "fail", "die", "b", "leave"]
    messages = [video.error.get("message", "") for video in through]
    killed = "its process was ended by SIGKILL (out of memory?)"
    assert messages == ["", "it fails", killed, "", "its process ended with status 3"]
    assert [video.error.get("type", "") for video in through] == ["", "DataError", CRASH, "", CRASH]
    first, second, third = (through[index].footage.facts["process"] for index in (0, 1, 3))
    assert first == second != third and os.getpid() not in (first, third)


def test_what_ends_the_run_is_raised(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no server any more"):
        go(tmp_path, ["a", "stop", "b"])
    with pytest.raises(DataError, match="it fails"):
        go(tmp_path, ["a"], at_setup="fail")
    with pytest.raises(
        CosmosPredictError, match="a process was ended by SIGKILL .* while it set up its stages, before"
    ):
        go(tmp_path, ["a"], at_setup="die")

"""Executors: every item through every stage, failures isolated, memory bounded, a clean end."""

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from cosmos_predict.curate import engine, progress
from cosmos_predict.curate.engine import reason, run
from cosmos_predict.curate.progress import Progress
from cosmos_predict.curate.records import Records
from cosmos_predict.curate.stage import Clip, Stage, Video
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import DataError
from tests.curate.footage import FPS, film
from tests.curate.running import run_split

LOCAL = ("threads", "inline")  # ray: test_ray.py


def videos(count: int) -> Iterator[Video]:
    for index in range(count):
        yield Video(f"/in/{index}.mp4", f"{index}", Path("scratch"))


class Divide(Stage):
    name = "divide"

    def process(self, item: Video) -> None:
        count = int(item.relative) % 4
        item.footage.facts["no_clips"] = "" if count else "nothing in it"
        item.clips = [
            Clip(item, index, index + 1, f"{item.relative}-{index}", (index, index + 1)) for index in range(count)
        ]


class Mark(Stage):
    """Notes what it saw; breaks or rejects where the name says so."""

    def __init__(
        self, name: str, scope: str = "clip", workers: int | None = None, bad: str = "", drop: str = ""
    ) -> None:
        self.name, self.scope, self.workers, self.bad, self.drop = name, scope, workers, bad, drop  # type: ignore[misc]
        self.seen: list[str] = []
        self.set_up = 0
        self.at_once, self.most, self.lock = 0, 0, threading.Lock()

    def setup(self) -> None:
        self.set_up += 1

    def process(self, item: Any) -> None:
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        time.sleep(0.002)
        name = item.uuid if isinstance(item, Clip) else item.relative
        with self.lock:
            self.at_once -= 1
            self.seen.append(name)
        if name == self.bad:
            raise RuntimeError(f"cannot do {name}")
        if name == self.drop:
            item.reject("dropped")

    def teardown(self) -> None:
        self.set_up -= 1


@pytest.mark.parametrize("executor", LOCAL)
def test_everything_passes_every_stage_once(executor: str) -> None:
    first, second, last = (
        Mark("first", bad="6-1", drop="3-2"),
        Mark("second", workers=1),
        Mark("last", "video", bad="5"),
    )
    done: list[Video] = []
    run(videos(20), [Divide(), first, second, last], done.append, executor, workers=3)
    clips = sorted(f"{video}-{clip}" for video in range(20) for clip in range(video % 4))
    assert sorted(first.seen) == clips
    assert sorted(second.seen) == sorted(set(clips) - {"6-1", "3-2"})
    assert sorted(last.seen, key=int) == [str(number) for number in range(20)]
    assert sorted(int(video.relative) for video in done) == list(range(20))
    assert second.most == 1 and (first.most > 1) == (executor == "threads")
    assert first.set_up == second.set_up == last.set_up == 0
    by_name = {video.relative: video for video in done}
    assert by_name["6"].clips[1].error == {
        "stage": "first",
        "type": "RuntimeError",
        "message": "RuntimeError: cannot do 6-1",
    }
    assert by_name["3"].clips[2].rejected == "dropped" and not by_name["3"].clips[2].error
    assert by_name["5"].error["message"] == "RuntimeError: cannot do 5" and not by_name["7"].error


def test_a_failure_is_named_and_its_traceback_logged() -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, level="DEBUG", format="{level} {message}")
    done: list[Video] = []
    run(videos(2), [Divide(), Mark("first", bad="1-0")], done.append, "inline")
    logger.remove(sink)
    (said,) = [line for line in lines if line.startswith("DEBUG first: RuntimeError: cannot do 1-0")]
    assert "Traceback" in said and "test_engine.py" in said
    assert reason(DataError("no video")) == "no video" and reason(OSError("full")) == "full"
    assert reason(KeyError("fps")) == "KeyError: 'fps'" and reason(TimeoutError()) == "TimeoutError: "


@pytest.mark.parametrize("executor", LOCAL)
def test_a_video_that_fails_skips_the_rest(executor: str) -> None:
    first, second = Mark("first", "video", bad="3"), Mark("second")
    done: list[Video] = []
    run(videos(8), [Divide(), first, second], done.append, executor, workers=2)
    assert len(done) == 8 and not any(name.startswith("3-") for name in second.seen)


def test_few_videos_are_in_hand() -> None:
    taken, done = [0], [0]
    most = [0]

    def feed() -> Iterator[Video]:
        for video in videos(200):
            taken[0] += 1
            most[0] = max(most[0], taken[0] - done[0])
            yield video

    def finish(video: Video) -> None:
        time.sleep(0.001)
        done[0] += 1

    run(feed(), [Divide(), Mark("clip")], finish, "threads", workers=2)
    assert done[0] == 200 and most[0] <= 5


@pytest.mark.parametrize("executor", LOCAL)
def test_an_error_of_finish_ends_the_run(executor: str) -> None:
    stage, done = Mark("clip"), []

    def finish(video: Video) -> None:
        done.append(video)
        if len(done) == 3:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(videos(100), [Divide(), stage], finish, executor, workers=2)
    assert len(done) < 20 and stage.set_up == 0


def test_a_stage_that_cannot_be_set_up_ends_the_run() -> None:
    class NoWeights(Stage):
        name = "weights"

        def setup(self) -> None:
            raise FileNotFoundError("no weights")

    good = Mark("good")
    with pytest.raises(FileNotFoundError, match="no weights"):
        run(videos(3), [good, NoWeights()], lambda video: None, "threads")
    assert good.set_up == 0 and not good.seen


def test_table_counts_clips_and_reasons(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}")
    with contextlib.closing(Progress(8)) as table:
        stages = [Divide(), Mark("first", bad="7-1", drop="3-2"), Mark("second", bad="6-1", drop="7-0")]
        run(videos(8), stages, table.add, "inline")
    logger.remove(sink)
    last = lines[-1]
    assert "videos: 8 of 8; clips: 8 kept, 2 rejected (dropped 2); 2 errors;" in last and "0.0 minutes left" in last
    assert sum("no clip: " in line for line in lines) == 2 and any("videos: 3 of 8" in line for line in lines)
    assert "ERROR 7: first: RuntimeError: cannot do 7-1\n" in lines
    with contextlib.closing(Progress(1)) as table:
        table.add(Video("/in/x.mp4", "x.mp4", Path("scratch")))  # of no clips, for no reason that is known
    capfd.readouterr()
    monkeypatch.setattr("os.isatty", lambda descriptor: True)
    with contextlib.closing(Progress(8)) as table:
        run(videos(8), stages[:2], table.add, "inline")
    shown = capfd.readouterr().err
    assert "8/8" in shown and "clips: 10 kept, 1 rejected (dropped 1); 1 errors" in shown


def test_clips_count_before_their_video_is_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setattr(progress, "TICK", 0.01)
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    with contextlib.closing(Progress(2, "last")) as table:
        assert str(table).endswith("time left: not known yet")

        class Watch(Mark):
            def process(self, item: Video) -> None:
                shown.append(str(table))
                time.sleep(0.1)  # meanwhile the clock goes on

        shown: list[str] = []
        stages = [Divide(), Mark("first", drop="3-1", bad="3-2"), Mark("last"), Watch("write", "video")]
        run(
            (video for video in videos(4) if video.relative in "3"),
            stages,
            table.add,
            "threads",
            1,
            passed=table.passed,
        )
    logger.remove(sink)
    assert shown[0].startswith("videos: 0 of 2; clips: 1 kept, 1 rejected (dropped 1); 0 errors; ")
    assert "; clips by stage: first 3, last 1; " in shown[0] and shown[0].endswith(" minutes left")
    assert sum(line.startswith("videos: 0 of 2; clips: 1 kept") for line in lines) >= 2
    assert lines[-1].startswith("videos: 1 of 2; clips: 1 kept, 1 rejected (dropped 1); 1 errors; ")


def test_an_error_that_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PAUSE", 0.01)

    class Fails(Stage):
        name = "fails"

        def __init__(self, error: Exception, times: int, **facts: Any) -> None:
            self.error, self.left, self.tries = error, times, 0
            vars(self).update(facts)

        def process(self, item: Video) -> None:
            self.tries, self.left = self.tries + 1, self.left - 1
            if self.left >= 0:
                raise self.error

    for error, times, facts, tries, failed in (
        (ConnectionResetError("reset"), 2, {}, 3, False),
        (OSError("stale file handle"), 3, {}, 3, True),
        (OSError("stale file handle"), 1, {"retries": 0}, 1, True),
        (ConnectionError("asked often enough"), 1, {"models": ["one"], "setup": list, "teardown": list}, 1, True),
        (FileNotFoundError("gone"), 1, {}, 1, True),
        (DataError("broken"), 1, {}, 1, True),
    ):
        stage, done = Fails(error, times, **facts), list[Video]()
        run(videos(1), [stage], done.append, "inline")
        assert (stage.tries, bool(done[0].error)) == (tries, failed), error


@pytest.mark.slow
def test_a_video_that_is_through_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(5):
        write_video(tmp_path / "in" / f"{index}.mp4", film([60], seed=index), FPS)
    seen, alive, finish = list[weakref.ref[Any]](), list[int](), Records.finish

    def noted(self: Records, video: Video) -> None:
        finish(self, video)
        alive.append(sum(reference() is not None for reference in seen))
        seen.extend(weakref.ref(thing) for thing in (video, video.footage, *video.clips))

    monkeypatch.setattr(Records, "finish", noted)
    flags = ["--captioning-algorithm", "template", "--num-frames", "16", "--splitting-algorithm", "content"]
    flags += ["--transnetv2-min-length-s", "0.5", "--transnetv2-min-length-frames", "16", "--text-encoder", "none"]
    gc.collect()
    gc.disable()  # what is in a ring would stay
    try:
        for redo in ("none", "all"):
            run_split(tmp_path / "in", tmp_path / "out", *flags, "--executor", "inline", "--redo", redo)
    finally:
        gc.enable()
    assert len(seen) == 2 * 5 * 3 and max(alive) == 0
    assert not any(reference() for reference in seen)

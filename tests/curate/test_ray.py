"""Executor `ray`: the tree of other executors, killed workers isolated, killed runs resumed."""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import time
from pathlib import Path

import pytest

from cosmos_predict.curate.on_ray import places
from cosmos_predict.errors import ConfigError
from tests.curate.footage import make_set
from tests.curate.running import command, finished, run_split, tree

pytest.importorskip("ray", reason="the extra `ray` is not installed")

OWN = '''
import os, signal
from cosmos_predict.curate.stage import Clip, Stage, Video

class Deadly(Stage):
    """Kills its process at one video, raises at another, rejects a clip of a third."""

    name, after = "deadly", "split"

    def setup(self):
        assert self.context.options["executor"] == "ray" and self.context.device == "cpu"
        self.ready = self.context.footage.files()

    def process(self, item: Video) -> None:
        assert self.ready
        if "film_0" in item.relative:
            os.kill(os.getpid(), signal.SIGKILL)
        if "film_1" in item.relative:
            raise RuntimeError("no film 1 here")
        item.clips[0].reject("first")

class NoSetup(Stage):
    name = "weights"

    def setup(self):
        raise FileNotFoundError("no weights at PLACE")
'''


def begun(work: Path, since: float) -> bool:
    """Tell whether a worker has begun with a video since a time."""
    with contextlib.suppress(FileNotFoundError):
        return any(path.stat().st_mtime > since for path in work.glob("*"))
    return False


def test_workers_that_do_not_fit_are_refused() -> None:
    cluster = {"CPU": 8.0, "GPU": 2.0}
    assert places(cluster, 0, 0.0) == 8 and places(cluster, 0, 0.25) == 8 and places(cluster, 0, 0.4) == 4
    assert places(cluster, 3, 0.5) == 3 and places(cluster, 0, 2.0) == 1
    for workers, gpus, room in ((9, 0.0, 8), (5, 0.5, 4), (3, 1.0, 2), (0, 4.0, 0)):
        with pytest.raises(
            ConfigError, match=rf"do not fit on the cluster: it has 8 CPUs and 2 GPUs, room for {room}$"
        ):
            places(cluster, workers, gpus)
    with pytest.raises(
        ConfigError, match=r"--workers 1 of one CPU and --ray-gpus-per-worker 0\.5 do not fit .* 0 GPUs"
    ):
        places({"CPU": 8.0}, 0, 0.5)


@pytest.mark.slow
def test_killed_workers_and_killed_runs(tmp_path: Path) -> None:
    source, flags = tmp_path / "in", ["--executor", "ray", "--workers", "2", "--text-encoder", "none"]
    flags += ["--splitting-algorithm", "content"]
    make_set(source, 4)
    own = tmp_path / "own.py"
    own.write_text(OWN)
    status, _, err = finished(source, tmp_path / "deadly", *flags, "--stage", f"{own}:Deadly")
    assert status == 1 and "Traceback" not in err
    assert re.search(r"failed: part0/film_0\.mp4: any: its worker died 2 times \(Actor\w+: .+", err), err
    assert "failed: part1/film_1.mp4: deadly: RuntimeError: no film 1 here" in err
    record = json.loads((tmp_path / "deadly" / "processed_videos" / "part0" / "film_2.mp4.json").read_text())
    rejected = [(clip["rejected"], clip["rejected_by"]) for clip in record["clips"].values()]
    assert record["status"] == "done" and rejected == [("first", "deadly"), ("", "")]

    run_split(source, tmp_path / "whole", "--workers", "2", "--splitting-algorithm", "content")
    moments, started = random.Random(1), time.monotonic()
    for _ in range(3):
        now = time.time()
        process = command(source, tmp_path / "out", *flags)
        while not begun(tmp_path / "out" / ".work" / "shard-1-1", now):
            assert time.monotonic() < started + 200 and process.poll() is None
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.7))
        killed = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert killed
    status, _, err = finished(source, tmp_path / "out", *flags)
    assert status == 0, err
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.slow
def test_a_stage_that_cannot_be_set_up_ends_the_run(tmp_path: Path) -> None:
    make_set(tmp_path / "in", 1)
    (tmp_path / "own.py").write_text(OWN)
    stage = ["--stage", f"{tmp_path / 'own.py'}:NoSetup"]
    status, _, err = finished(tmp_path / "in", tmp_path / "out", "--executor", "ray", "--workers", "1", *stage)
    assert status == 2 and "error: no weights at PLACE" in err and "Traceback" not in err

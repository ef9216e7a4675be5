"""`filter` that is killed while it writes: captions that were edited by hand are there, and the same command ends it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cosmos_predict.cli import curate as cli
from cosmos_predict.curate.records import DATASET
from cosmos_predict.data.video_reader import write_video
from tests.curate.footage import FPS, film, make_set
from tests.curate.running import run_split, tree
from tests.curate.test_revise import own

FLAGS = ["--captioning-window-size", "128", "--splitting-algorithm", "content"]


def main(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words])
    return int(ended.value.code or 0)


def killed(words: list[str], moment: int) -> bool:
    """Run the command in a process that kills itself before it moves or removes its `moment`-th file; was it killed?"""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = iter(range(moment - 1, -1, -1))

    def dying(change: Callable[..., None]) -> Callable[..., None]:
        def wrapped(path: Any, *more: Any, **keys: Any) -> None:
            if not keys and Path(path).suffix in (".json", ".txt", ".mp4") and next(left, 1) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            change(path, *more, **keys)

        return wrapped

    try:
        os.replace, os.unlink = dying(os.replace), dying(os.unlink)
        cli.main(words)
    finally:
        os._exit(0)


def texts(output: Path) -> dict[str, str]:
    """Return all captions that were edited, of the dataset and of metas, by sample."""
    found = {path.stem: path.read_text() for path in (output / DATASET / "metas").glob("*.txt")}
    for path in (output / "metas" / "v0").iterdir():
        for row in json.loads(path.read_text())["windows"]:
            if "edited_caption" in row:
                found.setdefault(f"{path.stem}_{row['start_frame']}_{row['end_frame']}", row["edited_caption"])
    return found


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    make_set(source, 1)
    write_video(source / "long.mp4", film([400], seed=7), FPS)
    (source / "long.txt").write_text("A long one.")
    run_split(source, tmp_path / "all", "--stage", own(tmp_path, -1), *FLAGS)
    edits = {path.stem: f"By hand, {path.stem}." for path in (tmp_path / "all" / DATASET / "metas").iterdir()}
    for name, text in edits.items():
        (tmp_path / "all" / DATASET / "metas" / f"{name}.txt").write_text(text)
    shutil.copytree(tmp_path / "all", tmp_path / "few")
    moments = dict[float, int]()
    for least, before, other in ((100, "all", "few"), (-1, "few", "all")):  # clips leave; and come back
        words = ["filter", str(output), "--stage", own(tmp_path, least), "--workers", "1"]
        assert main("filter", str(tmp_path / other), *words[2:]) == 0
        moment = 0
        while True:
            shutil.rmtree(output, ignore_errors=True)
            shutil.copytree(tmp_path / before, output)
            if not killed(words, moment := moment + 1):
                break
            assert texts(output) == edits, moment
            if moment % 4 or before == "few":
                assert main(*words) == 0
            else:  # split ends it, too, by the recorded scores
                videos = {path: path.stat().st_mtime_ns for path in (output / "clips").iterdir()}
                run_split(source, output, "--stage", own(tmp_path, least), *FLAGS, "--redo", "changed")
                assert videos == {path: path.stat().st_mtime_ns for path in (output / "clips").iterdir()}
            assert texts(output) == edits, moment
            assert not (changed := {*tree(output).items()} ^ {*tree(tmp_path / other).items()}), (moment, changed)
        moments[least] = moment
    assert min(moments.values()) > 12, moments

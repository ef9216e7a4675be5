"""`filter` and `caption` that are killed while they write: no edited caption is lost, dataset and metas agree, and the same
command ends it."""

from __future__ import annotations

import contextlib
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
from cosmos_predict.errors import ConfigError
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
    for least, old, before, other in ((100, -1, "all", "few"), (-1, 100, "few", "all")):  # clips leave; and come back
        words = ["filter", str(output), "--stage", own(tmp_path, least), "--workers", "1"]
        assert main("filter", str(tmp_path / other), *words[2:]) == 0
        moment = 0
        while True:
            shutil.rmtree(output, ignore_errors=True)
            shutil.copytree(tmp_path / before, output)
            if not killed(words, moment := moment + 1):
                break
            assert texts(output) == edits, moment
            if moment % 4 == 0:  # `split` leaves it alone, and says so; another command goes on from what was recorded
                with contextlib.suppress(ConfigError):  # videos that are through have other options
                    run_split(source, output, "--stage", own(tmp_path, old), *FLAGS)
                assert texts(output) == edits, moment
            if moment % 4 == 1:
                assert main("dedup", str(output), "--similarity", "1") == 0 and texts(output) == edits, moment
            assert main(*words[:3], own(tmp_path, least), *words[4:]) == 0
            assert texts(output) == edits, moment
            assert not (changed := {*tree(output).items()} ^ {*tree(tmp_path / other).items()}), (moment, changed)
        moments[least] = moment
    assert min(moments.values()) > 12, moments


@pytest.mark.slow
@pytest.mark.parametrize("everything", [True, False])
def test_captions_killed_at_any_moment(tmp_path: Path, everything: bool) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    write_video(source / "long.mp4", film([400], seed=7), FPS)
    if everything:
        (source / "long.txt").write_text("A long one.")
    run_split(source, tmp_path / "before", *FLAGS, "--captioning-algorithm", "sidecar" if everything else "none")
    flags = ["--captioning-algorithm", "template", "--caption-template", "New {stem}.", "--workers", "1"]
    flags += ["--all"] if everything else []
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    assert main("caption", str(tmp_path / "after"), *flags) == 0
    moment = 0
    while True:
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(tmp_path / "before", output)
        if not killed(["caption", str(output), *flags], moment := moment + 1):
            break
        if moment % 2:
            run_split(source, output, *FLAGS, "--captioning-algorithm", "sidecar" if everything else "none")
            assert main("filter", str(output)) == 0
            captions = {path.stem: path.read_text() for path in (output / DATASET / "metas").glob("*.txt")}
            noted = dict[str, str]()
            for path in (output / "metas" / "v0").iterdir():
                meta = json.loads(path.read_text())
                for row in meta["windows"]:
                    assert "edited_caption" not in row
                    if text := row[f"{meta['caption_source']}_caption"]:
                        noted[f"{path.stem}_{row['start_frame']}_{row['end_frame']}"] = text
            assert captions == noted, moment
        assert main("caption", str(output), *flags) == 0
        assert not (changed := {*tree(output).items()} ^ {*tree(tmp_path / "after").items()}), (moment, changed)
    assert moment > 6

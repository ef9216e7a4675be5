"""Buckets: captions beside the videos, working copies, few requests, and Ray from bucket to bucket."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest
from loguru import logger

from cosmos_predict.curate import storage
from cosmos_predict.curate.listing import list_videos, require_captions
from cosmos_predict.curate.records import DATASET
from cosmos_predict.curate.storage import Store, scratch_folder
from cosmos_predict.data.video_reader import write_video
from tests.curate.buckets import s3_server
from tests.curate.footage import FPS, film
from tests.curate.running import finished, run_command, run_split
from tests.curate.test_alone import DEATHS, OWN

FLAGS = ["--text-encoder", "none", "--splitting-algorithm", "content", "--transnetv2-crop-s", "0"]


def small_set(folder: Path) -> None:
    """Write 3 short films whose captions are beside them in 3 ways."""
    for seed, name in enumerate(("videos/a.mp4", "videos/deep/b.mp4", "videos/deep/c.mp4")):
        write_video(folder / name, film([100], seed=seed), FPS)
    (folder / "metas").mkdir()
    (folder / "metas" / "a.txt").write_text("Beside the folder.")
    (folder / "videos" / "metas").mkdir()
    (folder / "videos" / "metas" / "b.txt").write_text("Beside its folder.")
    (folder / "videos" / "deep" / "c.json").write_text(json.dumps([{"start": 0, "end": 9, "caption": "Of seconds."}]))


def upload(folder: Path, target: Store) -> None:
    for place in Store(folder).files():
        target.put(place, folder / place)


def captions(output: Store) -> set[str | None]:
    return {output.read(place) for place in output.files(f"{DATASET}/metas")}


CAPTIONS = {"Beside the folder.", "Beside its folder.", "Of seconds."}


@pytest.mark.slow
def test_captions_beside_videos_and_few_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_set(tmp_path / "in")
    work = f"--work-dir={tmp_path / 'work'}"
    run_split(tmp_path / "in" / "videos", tmp_path / "out", *FLAGS)
    assert captions(Store(tmp_path / "out")) == CAPTIONS
    with s3_server(monkeypatch):
        upload(tmp_path / "in", Store("s3://footage/set"))
        output, reads = Store("s3://footage/out"), Counter[str]()
        run_split("s3://footage/set/videos", output.root, *FLAGS, work, "--captioning-algorithm", "none")
        assert captions(output) == set()
        status, out, err = run_command("caption", output.root, work, "--captioning-algorithm", "sidecar")
        assert status == 0 and "3 clips captioned, 0 failed" in out, err
        assert captions(output) == CAPTIONS
        flags = ["s3://footage/set/videos", output.root, *FLAGS, work]
        run_split(*flags, "--redo", "changed")
        assert captions(output) == CAPTIONS
        read = Store.read

        def count(store: Store, place: str) -> str | None:
            reads.update({place.partition("/")[0]: 1})
            assert threading.current_thread() is not threading.main_thread() or "processed_videos" not in place
            return read(store, place)

        monkeypatch.setattr(Store, "read", count)
        monkeypatch.setattr("cosmos_predict.curate.split.conclude", lambda *_: {})
        run_split(*flags)  # all is done
        assert reads == {"processed_videos": 3}
        reads.clear()
        run_split(*flags, "--redo", "all")
        assert reads["processed_videos"] == 6, (
            reads
        )  # at the start, and where a video begins: nothing is kept meanwhile


def test_lines_of_tables_that_name_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning is the one of a folder."""
    for name in ("a.mp4", "day2/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    rows = ["file,caption", "a,A.", "day2/b.mp4,B.", "gone.mp4,Gone.", "day2/a.mp4,Elsewhere."]
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    (tmp_path / "day2" / "captions.jsonl").write_text("no table")
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    with s3_server(monkeypatch):
        upload(tmp_path, Store("s3://footage/tables"))
        for source in (Store(tmp_path), Store("s3://footage/tables")):
            require_captions(source, list_videos(source)[1])
    logger.remove(sink)
    told = "2 lines of caption tables name no video here: captions.csv: gone.mp4, captions.csv: day2/a.mp4; a table"
    assert len(lines) == 2 and all(line.startswith(told) for line in lines)


def killed_in_a_copy(root: str, marker: str) -> None:
    """Change a working copy, and be killed once that is uploaded."""
    storage.PAUSE = 0.05
    store = Store(root)
    with scratch_folder() as scratch, store.local("data", scratch) as copy:
        Path(marker).write_text(str(scratch))
        (copy / "made.txt").write_text("made")
        (copy / "old.txt").unlink()
        while store.read("data/made.txt") is None or store.read("data/old.txt") is not None:
            pass
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_working_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch):
        store, marker = Store("s3://footage/copies"), tmp_path / "marker"
        for name in ("old", "kept", "edited"):
            store.write(f"data/{name}.txt", name)
        process = multiprocessing.get_context("spawn").Process(target=killed_in_a_copy, args=(store.root, str(marker)))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        left = Path(marker.read_text())
        assert left.is_dir() and left.is_relative_to(tempfile.gettempdir())
        assert {*store.files()} == {"data/made.txt", "data/kept.txt", "data/edited.txt"}
        with pytest.raises(ZeroDivisionError), scratch_folder() as scratch, store.local("data", scratch) as copy:
            assert not left.exists() and sorted(path.name for path in copy.iterdir()) == [
                "edited.txt",
                "kept.txt",
                "made.txt",
            ]
            (copy / "edited.txt").write_text("edited anew")
            (copy / "made.txt").unlink()
            with scratch_folder():  # another process's: this one stays
                assert copy.is_dir()
            raise ZeroDivisionError
        assert not scratch.exists() and {*store.files()} == {"data/kept.txt", "data/edited.txt"}
        assert store.read("data/edited.txt") == "edited anew"


@pytest.mark.slow
def test_a_video_that_kills_on_a_machine_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in hand is noted in the bucket: the next run may be elsewhere."""
    small_set(tmp_path / "in")
    own = tmp_path / "own.py"
    own.write_text(OWN.format(death=DEATHS["SIGKILL"]).replace("film_0", "b.mp4"))
    with s3_server(monkeypatch):
        upload(tmp_path / "in", Store("s3://footage/set"))
        output, flags = Store("s3://footage/out"), [*FLAGS, "--stage", f"{own}:Deadly", "--workers", "2"]
        status, _, _ = finished("s3://footage/set/videos", output.root, *flags, f"--work-dir={tmp_path / 'one'}")
        assert status == -signal.SIGKILL
        assert "deep/b.mp4.json" in Store(output.uri(".work/in-hand")).files()
        status, out, err = finished("s3://footage/set/videos", output.root, *flags, f"--work-dir={tmp_path / 'other'}")
        assert status == 1 and "num_videos_done                  2" in out, err
        assert "failed: deep/b.mp4: any: its process was ended by SIGKILL (out of memory?)" in err
        assert captions(output) == CAPTIONS - {"Beside its folder."}
        assert not Store(output.uri(".work/in-hand")).files()


@pytest.mark.slow
def test_ray_from_bucket_to_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    small_set(tmp_path / "in")
    with s3_server(monkeypatch):
        upload(tmp_path / "in", Store("s3://footage/set"))
        flags = [*FLAGS, f"--work-dir={tmp_path / 'work'}"]
        ray = ["--executor", "ray", "--workers", "2"]
        status, _, err = finished("s3://footage/set/videos", "s3://footage/ray", *flags, *ray)
        assert status == 0 and "Traceback" not in err, err
        run_split("s3://footage/set/videos", "s3://footage/threads", *flags)
        one, other = Store("s3://footage/ray"), Store("s3://footage/threads")
        assert captions(one) == CAPTIONS
        assert {place: mark[0] for place, mark in one.files().items()} == {p: m[0] for p, m in other.files().items()}
        assert not list((tmp_path / "work").rglob("*.mp4"))

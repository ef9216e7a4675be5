"""Places, local and in a bucket: the same calls do the same; a whole `split` from bucket to bucket equals a local one."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from cosmos_predict.curate.records import DATASET
from cosmos_predict.curate.storage import Store
from cosmos_predict.errors import ConfigError, DataError, MissingDependencyError
from tests.curate.buckets import s3_server
from tests.curate.footage import make_set
from tests.curate.running import finished, run_command, run_split


def exercise(store: Store, folder: Path) -> None:
    """Write, list, read, fetch and remove."""
    assert store.files() == {} and store.read("a/text.txt") is None
    store.check_writable()
    store.write("a/text.txt", "é")
    (folder / "file").write_bytes(b"12345")
    store.put("a/b/file.bin", folder / "file")
    store.put("a/b/file.bin", folder / "file")  # over itself
    store.write(".hidden", "")
    store.write("a/.name.tmp/name", "half")  # as another process leaves it while it writes
    assert {place: mark[0] for place, mark in store.files().items()} == {"a/b/file.bin": 5, "a/text.txt": 2}
    assert [*store.files("a/b")] == ["a/b/file.bin"] and store.files("a/b") == store.files("a/b")
    mark = store.files()["a/text.txt"]
    assert store.read("a/text.txt") == "é" and store.has("a/text.txt") and not store.has("a/none")
    assert store.fetch("a/b/file.bin", folder / "copy" / "x").read_bytes() == b"12345"
    again = pickle.loads(pickle.dumps(store))
    again.write("a/text.txt", "other")
    assert store.files()["a/text.txt"] != mark
    with store.local("a", folder / "scratch", "b") as local:
        assert (local / "text.txt").read_text() == "other"
        (local / "new.txt").write_text("made")
    assert store.read("a/new.txt") == "made" and store.read("a/b/file.bin") == "12345"
    for place in store.files():
        store.remove(place)
    store.remove("a/text.txt")  # gone already
    assert store.files() == {}


def test_a_folder(tmp_path: Path) -> None:
    exercise(Store(tmp_path / "store"), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/out: cannot write there \(NotADirectoryError"):
        Store(tmp_path / "file" / "out").check_writable()
    assert Store(f"{tmp_path}//x/../y/").root == str(tmp_path / "y")


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work folder may be on another file system, where a link fails and a copy may be cut off."""
    store, source = Store(tmp_path / "store"), tmp_path / "new"
    store.write("clips/a.mp4", "old")
    source.write_text("new")

    def refuse(*_: object) -> None:
        raise OSError("another file system")

    def break_off(_: Path, target: Path) -> None:
        Path(target).write_text("n")
        raise OSError("disk full")

    monkeypatch.setattr("os.link", refuse)
    with monkeypatch.context() as broken:
        broken.setattr("shutil.copyfile", break_off)
        with pytest.raises(OSError, match="disk full"):
            store.put("clips/a.mp4", source)
    assert store.read("clips/a.mp4") == "old" and len(list((tmp_path / "store" / "clips").iterdir())) == 1
    store.put("clips/a.mp4", source)
    assert store.read("clips/a.mp4") == "new"


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", refuse)  # the tests may run as root, whom no mode keeps out
    with pytest.raises(DataError, match=r"in: cannot be listed \(PermissionError: Permission denied\)"):
        Store(tmp_path / "in").files()


def test_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch):
        exercise(Store("s3://footage/some/key/"), tmp_path)
        assert Store("s3://nowhere").files() == {}
        with pytest.raises(ConfigError, match=r"s3://nowhere/out: cannot write there"):
            Store("s3://nowhere/out").check_writable()
        with pytest.raises(DataError, match=r"s3://footage/none\.mp4: cannot be fetched"):
            Store("s3://footage").fetch("none.mp4", tmp_path / "none.mp4")


def test_an_address_that_nothing_serves() -> None:
    with pytest.raises((MissingDependencyError, ValueError), match="nosuch"):
        Store("nosuch://bucket").files()


@pytest.mark.slow
def test_split_from_bucket_to_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_set(tmp_path / "in", 2)
    (tmp_path / "in" / "part0" / "film_0.txt").unlink()
    row = {"file": "film_0.mp4", "caption": "From a table."}
    (tmp_path / "in" / "part0" / "captions.jsonl").write_text(json.dumps(row))
    flags = ["--text-encoder", "none", "--transnetv2-crop-s", "0", "--splitting-algorithm", "content"]
    run_split(tmp_path / "in", tmp_path / "out", *flags)
    local = Store(tmp_path / "out")
    with s3_server(monkeypatch):
        source, output = Store("s3://footage/raw"), Store("s3://footage/curated")
        for place in Store(tmp_path / "in").files():
            source.put(place, tmp_path / "in" / place)
        words = [f"--work-dir={tmp_path / 'work'}", *flags, "--text-encoder", "tiny"]
        status, out, err = finished(source.root, output.root, *words)
        assert status == 0, err
        assert "num_clips_passed                 5" in out and "s3://footage/curated/report.html" in out
        assert f"not checked: python scripts/curate.py check s3://footage/curated/{DATASET} downloads it" in out
        status, out, err = run_command("check", f"s3://footage/curated/{DATASET}")
        assert status == 0 and f"s3://footage/curated/{DATASET}: 5 samples of 93 frames load, 0 do not" in out, err
        status, _, err = run_command("check", "s3://footage/none")
        assert status == 2 and "s3://footage/none: expected a dataset, or the folder above it, with videos/ and" in err
        status, out, err = run_command("check", "s3://footage/curated")
        assert status == 0 and f"s3://footage/curated/{DATASET}: 5 samples of 93 frames load, 0 do not" in out, err
        assert [*output.files("clips")] != [] and not list((tmp_path / "work" / "shard-1-1").glob("*"))
        videos = {place for place in output.files(DATASET) if "/videos/" in place}
        sizes = sorted(mark[0] for mark in output.files("clips").values())
        assert sizes == sorted(mark[0] for mark in local.files("clips").values())  # ids derive from the address
        texts = {output.read(place.replace("/videos/", "/metas/").replace(".mp4", ".txt")) for place in videos}
        assert texts == {"From a table.", "Coloured blocks, film 1."} and len(videos) == 5
        assert len(output.files(f"{DATASET}/t5_xxl")) == 5 and output.read(f"{DATASET}/t5_xxl.json")
        before = output.files()
        summary = run_split(source.root, output.root, *flags, f"--work-dir={tmp_path / 'work'}")  # nothing to do
        assert summary["num_videos_done"] == 2
        assert {place: mark[0] for place, mark in before.items()} == {p: m[0] for p, m in output.files().items()}
        with pytest.raises(ConfigError, match="--transcode-crf was 18, is 30"):
            run_split(source.root, output.root, *flags, "--transcode-crf", "30", f"--work-dir={tmp_path / 'work'}")
        work = f"--work-dir={tmp_path / 'work'}"
        flags_of_caption = ["--all", "--captioning-algorithm", "template", "--caption-template", "About {stem}."]
        status, out, err = run_command("caption", output.root, work, *flags_of_caption)
        assert status == 0 and "5 clips captioned, 0 failed" in out, err
        status, out, err = run_command("embed", output.root, "--text_encoder", "tiny")
        assert status == 0 and "5 written" in out, err
        status, out, err = run_command("dedup", output.root, work)
        assert status == 0 and "num_clips_passed                 5" in out, err
        texts = {output.read(place) for place in output.files(f"{DATASET}/metas")}
        assert texts == {"About film_0.", "About film_1."}
        status, out, err = run_command("shard", output.root, "--output-dataset-path", "s3://footage/tars")
        assert status == 0 and "5 clips packed" in out, (out, err)
        assert sum(place.endswith(".tar") for place in Store("s3://footage/tars").files()) == 3
        flags[-1:] = ["content", *flags_of_caption[1:]]
        source.put("part0/film_0.mp4", tmp_path / "in" / "part1" / "film_1.mp4")
        with pytest.raises(ConfigError, match=r"part0/film_0\.mp4: the file has changed"):
            run_split(source.root, output.root, *flags, f"--work-dir={tmp_path / 'work'}")
        status, _, err = finished("s3://footage/none", output.root)
        assert status == 2 and "s3://footage/none: no folder with videos" in err
        status, _, err = finished(source.root, "s3://nowhere/out", *flags)
        assert status == 2 and "s3://nowhere/out: cannot write there" in err and "Traceback" not in err

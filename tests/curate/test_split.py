"""`split` from end to end on generated footage: the dataset, resume, redo, bad files, shards."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from loguru import logger

from cosmos_predict.curate.records import DATASET, Records
from cosmos_predict.curate.split import check, list_videos
from cosmos_predict.data.video_reader import probe, read_frames, write_video
from cosmos_predict.errors import ConfigError, CorruptFileError, DataError
from cosmos_predict.io.embeddings import write_embedding
from tests.curate.footage import FPS, film, make_set, numbers
from tests.curate.running import finished, run_command, run_split, tree


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    folder = tmp_path_factory.mktemp("footage")
    return folder, make_set(folder, 3)


def record(output: Path, name: str) -> dict:
    return json.loads((output / "processed_videos" / f"{name}.json").read_text())


@pytest.mark.slow
def test_dataset_is_what_the_trainer_reads(footage: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    source, lengths = footage
    status, out, err = finished(source, tmp_path, "--text-encoder", "tiny")
    assert status == 0, err
    assert "no weights of TransNetV2, so the content detector finds the shots" in err
    assert "7 samples of 93 frames load, 0 do not" in out
    dataset = tmp_path / DATASET
    stems = {path.stem for path in (dataset / "videos").glob("*.mp4")}
    assert stems == {path.stem for path in (dataset / "metas").glob("*.txt")} and len(stems) == 7
    assert stems == {path.stem for path in (dataset / "t5_xxl").glob("*.pickle")}
    crop = int(0.5 * FPS)
    for name, parts in lengths.items():
        starts = np.cumsum([0, *parts])
        clips = record(tmp_path, name)["clips"]
        assert record(tmp_path, name)["status"] == "done" and len(clips) == len(parts)
        for (uuid, clip), start, end in zip(clips.items(), starts, starts[1:], strict=False):
            first, last = clip["frames"]
            assert abs(first - start - crop) <= 1 and abs(end - last - crop) <= 1
            (path,) = (dataset / "videos").glob(f"{uuid}_*.mp4")
            assert path.stem == f"{uuid}_0_{last - first - 1}"
            assert numbers(read_frames(path, range(last - first))) == list(range(first, last))
            assert probe(path).fps == FPS and not probe(path).variable_frame_rate
            caption = (dataset / "metas" / f"{path.stem}.txt").read_text()
            assert caption == Path(source / name).with_suffix(".txt").read_text()
            meta = json.loads((tmp_path / "metas" / "v0" / f"{uuid}.json").read_text())
            assert meta["valid"] and meta["has_caption"] and meta["num_frames"] == last - first
            assert meta["windows"] == [{"start_frame": 0, "end_frame": last - first - 1, "sidecar_caption": caption}]
            assert (tmp_path / "clips" / f"{uuid}.mp4").read_bytes() == path.read_bytes()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["num_videos_done"] == 3 and summary["num_clips_passed"] == 7
    assert not list((tmp_path / ".work" / "shard-1-1").glob("*"))


@pytest.mark.slow
def test_executors_and_repeats_agree(footage: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    source, _ = footage
    run_split(source, tmp_path / "a", "--executor", "inline")
    before = tree(tmp_path / "a")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "clips").iterdir()}
    run_split(source, tmp_path / "a")  # nothing to do
    assert tree(tmp_path / "a") == before
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "clips").iterdir()}
    run_split(source, tmp_path / "b", "--workers", "3")
    assert tree(tmp_path / "b") == before


def test_shards_make_the_same(footage: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    source, _ = footage
    parts = [list_videos(source, f"{part}/3")[0] for part in (1, 2, 3)]
    assert sorted(path for part in parts for path in part) == [*list_videos(source)[0]] and sum(map(bool, parts)) > 1
    run_split(source, tmp_path / "whole")
    for shard in ("1/3", "2/3", "3/3"):
        run_split(source, tmp_path / "parts", "--shard", shard)
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    with pytest.raises(ConfigError, match="--shard 3/2: expected I/N"):
        list_videos(source, "3/2")


@pytest.mark.slow
def test_limit_walks_through_the_folder(footage: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    for done in (1, 2, 3, 3):
        summary = run_split(footage[0], tmp_path, "--limit", "1", "--splitting-algorithm", "content")
        assert summary["num_videos_done"] == done


@pytest.mark.slow
def test_other_options_are_refused_and_redone(footage: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(footage[0], source)
    run_split(source, tmp_path / "out", "--text-encoder", "none")
    before = tree(tmp_path / "out")
    flags = ["--transnetv2-crop-s", "0.25", "--transcode-crf", "30"]
    with pytest.raises(ConfigError) as caught:
        run_split(source, tmp_path / "out", *flags)
    message = str(caught.value)
    assert (
        "--transcode-crf was 18, is 30; --transnetv2-crop-s was 0.5, is 0.25" in message and "--redo changed" in message
    )
    assert tree(tmp_path / "out") == before
    assert run_split(source, tmp_path / "out", *flags, "--redo", "changed")["num_clips_passed"] == 7
    run_split(source, tmp_path / "fresh", *flags)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")  # nothing of the first run is left
    write_video(source / "part0" / "film_0.mp4", film([150, 160], seed=9), FPS)
    with pytest.raises(ConfigError, match=r"part0/film_0\.mp4: the file has changed"):
        run_split(source, tmp_path / "out", *flags)
    with pytest.raises(ConfigError, match=r"part1/film_1\.mp4: the file has changed, or was /"):
        run_split(footage[0], tmp_path / "out", *flags)  # a folder of the same names elsewhere
    run_split(source, tmp_path / "out", *flags, "--redo", "changed")
    assert record(tmp_path / "out", "part0/film_0.mp4")["num_frames"] == 310


@pytest.mark.slow
def test_bad_files_do_not_take_the_run_down(footage: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(footage[0], source)
    good = (source / "part0" / "film_0.mp4").read_bytes()
    (source / "truncated.mp4").write_bytes(good[: len(good) // 2])
    (source / "damaged.mp4").write_bytes(good[:48] + bytes(len(good) - 4048) + good[-4000:])
    (source / "empty.mp4").touch()
    (source / "text.mp4").write_text("no video\n" * 100)
    write_video(source / "short.mp4", film([60], seed=3), FPS)
    write_video(source / "uncaptioned.mp4", film([130], seed=4), FPS)
    for name in ("truncated", "damaged", "empty", "text", "short"):
        (source / f"{name}.txt").write_text("A caption.")
    status, out, err = finished(source, output, "--text-encoder", "none")
    assert status == 1 and "Traceback" not in err
    assert "num_clips_passed                 8" in out and "num_videos_empty                 1" in out
    for name, message in {
        "truncated.mp4": "ingest: .*(truncated|not a readable video)",
        "damaged.mp4": "damaged",
        "empty.mp4": "ingest: .*0 bytes",
        "text.mp4": "ingest: ",
        "uncaptioned.mp4": "caption: no caption of uncaptioned.mp4",
    }.items():
        lines = [line for line in err.splitlines() if line.startswith(f"failed: {name}")]
        assert len(lines) == 1, (name, err)
        assert re.search(message, lines[0]), lines[0]
    assert "short.mp4: no clip: 1 shot of 60 frames, 12 cropped off" in err
    assert record(output, "short.mp4")["status"] == "empty" and record(output, "text.mp4")["attempts"] == 1
    for attempts in (2, 3, 3):  # tried again, then given up
        run_split(source, output)
        assert record(output, "text.mp4")["attempts"] == attempts
    (source / "uncaptioned.txt").write_text("Now it has one.")
    summary = run_split(source, output, "--redo", "failed")
    assert summary["num_clips_passed"] == 8 and not any("uncaptioned" in where for where in summary["errors"])


@pytest.mark.slow
def test_a_decoder_that_crashes_takes_its_clips_only(
    footage: tuple[Path, dict[str, list[int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_at(tmp_path, "*film_1.mp4*libx264*", monkeypatch)
    summary = run_split(footage[0], tmp_path / "out")
    assert summary["num_videos_done"] == 2 and summary["num_videos_failed"] == 1 and summary["num_clips_passed"] == 4
    assert len(summary["errors"]) == 3
    for text in summary["errors"].values():
        assert re.fullmatch(r"transcode: film_1\.mp4: ffmpeg failed \(-11\) while it made [0-9a-f-]+\.mp4", text), text


def crash_at(folder: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ffmpeg die of a segmentation fault where its words fit a pattern of the shell."""
    crashing = folder / "ffmpeg"
    real = imageio_ffmpeg.get_ffmpeg_exe()
    crashing.write_text(f'#!/bin/sh\ncase "$*" in {pattern}) kill -SEGV $$;; esac\nexec {real} "$@"\n')
    crashing.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(crashing))


def test_a_crash_at_a_window_takes_its_clip_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last stage works on whole videos; what it cuts out of one clip fails that clip."""
    write_video(tmp_path / "in" / "a.mp4", film([420, 130], seed=6), FPS)
    flags = ["--captioning-algorithm", "template", "--transnetv2-crop-s", "0"]
    with monkeypatch.context() as crashing:
        crash_at(tmp_path, "*_256_[0-9]*.mp4", crashing)
        summary = run_split(tmp_path / "in", tmp_path / "out", *flags)
    assert summary["num_videos_done"] == 1 and summary["num_clips_passed"] == 1 and len(summary["errors"]) == 1
    ((where, why),) = summary["errors"].items()
    assert why.startswith("write: ") and "ffmpeg failed (-11) while it made" in why and where.startswith("a.mp4 ")
    lost = where.removeprefix("a.mp4 ")
    assert not [place for place in tree(tmp_path / "out") if lost in place]  # no half of it
    assert len([*(tmp_path / "out" / DATASET / "videos").iterdir()]) == 1
    assert lost in (tmp_path / "out" / "report.html").read_text()
    assert run_split(tmp_path / "in", tmp_path / "out", *flags, "--redo", "failed")["num_clips_passed"] == 2
    run_split(tmp_path / "in", tmp_path / "whole", *flags)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    path = tmp_path / "out" / "processed_videos" / "a.mp4.json"
    known = record(tmp_path / "out", "a.mp4")
    known["outputs"] = [place for place in known["outputs"] if f"{lost}_256_" not in place]
    path.write_text(json.dumps(known))  # so that the window has to be cut again
    before = tree(tmp_path / "out")
    with monkeypatch.context() as crashing:
        crash_at(tmp_path, "*_256_[0-9]*.mp4", crashing)
        status, _, err = run_command("filter", str(tmp_path / "out"))
    assert status == 1 and "while it made" in err and "; it stays as it was" in err, err
    assert tree(tmp_path / "out") == before


def test_clips_that_cannot_be_captioned_stay(tmp_path: Path) -> None:
    """In `clips/`, without samples; `caption` makes up for it, and then nothing is as if it had failed."""
    source, output = tmp_path / "in", tmp_path / "out"
    write_video(source / "a.mp4", film([130, 140], seed=7), FPS)
    write_video(source / "b.mp4", film([130], seed=8), FPS)
    (source / "b.txt").write_text("Blocks.")
    summary = run_split(source, output)
    assert summary["num_videos_done"] == 2 and summary["num_clips_passed"] == 3 and len(summary["errors"]) == 2
    assert all(why.startswith("caption: no caption of a.mp4") for why in summary["errors"].values())
    failed = {where.removeprefix("a.mp4 ") for where in summary["errors"]}
    assert failed < {path.stem for path in (output / "clips").iterdir()}
    assert not [path for path in (output / DATASET).rglob("*.*") if path.stem.split("_")[0] in failed]
    for uuid in failed:
        meta = json.loads((output / "metas" / "v0" / f"{uuid}.json").read_text())
        assert meta["errors"] == ["caption"] and not meta["has_caption"] and meta["num_frames"] > 100
    chunk = json.loads((output / "processed_clip_chunks" / "a.mp4_0.json").read_text())
    assert {*chunk["clips"]} == failed and chunk["num_clips_with_caption"] == 0 and chunk["num_clips_passed"] == 2
    assert run_split(source, output)["errors"] == summary["errors"]  # done; told again
    before = tree(output)
    status, _, err = run_command("caption", str(output), "--captioning-algorithm", "sidecar")
    assert status == 1 and err.count("no caption of a.mp4") == 2, err  # each once
    status, out, err = run_command("caption", str(output), "--captioning-algorithm", "template")
    assert status == 0 and "2 clips captioned, 0 failed" in out, err
    assert {*tree(output)} > {*before} and len([*(output / DATASET / "metas").iterdir()]) == 3
    assert not [clip for clip in record(output, "a.mp4")["clips"].values() if clip["error"]]


def test_a_run_killed_while_writing_leaves_nothing(footage: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    run_split(footage[0], tmp_path / "whole", "--limit", "1")
    (name,) = [str(path.relative_to(tmp_path / "whole")) for path in tmp_path.rglob("film_?.mp4.json")]
    stray = tmp_path / "out" / "clips" / "stray.mp4"
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    stray.parent.mkdir()
    stray.touch()
    record = {"status": "writing", "outputs": ["clips/stray.mp4"], "options": {"of": "another run"}, "attempts": 0}
    (tmp_path / "out" / name).write_text(json.dumps(record))
    run_split(footage[0], tmp_path / "out", "--limit", "1")
    assert not stray.exists() and tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_long_clips_have_windows(tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "push_red_block_01.mp4", film([430], seed=5), FPS)
    flags = ["--captioning-algorithm", "template", "--transnetv2-crop-s", "0"]
    summary = run_split(tmp_path / "in", tmp_path / "out", *flags)
    assert summary["num_clips_passed"] == 1
    videos = sorted((tmp_path / "out" / DATASET / "videos").iterdir(), key=lambda path: probe(path).frames)
    assert [path.stem.split("_", 1)[1] for path in videos] == ["256_429", "0_255"]
    assert numbers(read_frames(videos[0], range(174))) == list(range(256, 430))
    texts = {path.read_text() for path in (tmp_path / "out" / DATASET / "metas").iterdir()}
    assert texts == {"A video of push red block."}


def test_fixed_stride(footage: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    flags = ["--splitting-algorithm", "fixed-stride", "--fixed-stride-split-duration", "5"]
    run_split(footage[0], tmp_path, *flags, "--captioning-algorithm", "none")
    clips = record(tmp_path, "part1/film_1.mp4")["clips"]  # 408 frames, 17 s
    assert [clip["frames"] for clip in clips.values()] == [[0, 120], [120, 240], [240, 360]]
    assert not (tmp_path / DATASET / "metas").exists() and len(list((tmp_path / DATASET / "videos").iterdir())) == 7


def test_dry_run_lists_and_writes_nothing(footage: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    status, out, _ = finished(footage[0], tmp_path / "out", "--dry-run")
    assert status == 0 and not (tmp_path / "out").exists()
    assert out.count("part1/film_1.mp4: frames ") == 3


def test_bad_input_is_one_message(footage: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    source = footage[0]
    with pytest.raises(DataError, match="no folder with videos"):
        run_split(tmp_path, tmp_path.parent / "elsewhere")
    with pytest.raises(DataError, match="no folder with videos"):
        run_split(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ConfigError, match="one lies in the other"):
        run_split(source, source / "out")
    with pytest.raises(ConfigError, match="max-length-s is smaller"):
        run_split(source, tmp_path / "out", "--transnetv2-max-length-s", "1")
    (tmp_path / "file").touch()
    status, _, err = finished(source, tmp_path / "file" / "out")
    assert status != 0 and "Traceback" not in err and "file" in err
    (tmp_path / "options.yaml").write_text("captioning_algorithm: cosmos\n")
    status, _, err = finished(source, tmp_path / "out", "--config", str(tmp_path / "options.yaml"))
    assert status == 2 and "invalid choice: 'cosmos'" in err
    path = tmp_path / "out" / "processed_videos" / "part0" / "film_0.mp4.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(CorruptFileError, match=r"film_0\.mp4\.json: not a record .*remove it"):
        run_split(source, tmp_path / "out")


def test_options_from_a_file(footage: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("transcode-crf: 30\nlimit: 2\nexecutor: inline\ntext_encoder: none\n")
    flags = ["-v", "--config", str(tmp_path / "options.yaml"), "--limit", "1"]
    status, _, err = finished(footage[0], tmp_path / "out", *flags)
    assert status == 0, err
    (path,) = (tmp_path / "out" / "processed_videos").rglob("*.json")
    assert json.loads(path.read_text())["options"]["transcode_crf"] == 30


@pytest.mark.slow
def test_check_names_what_is_unusable(footage: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    run_split(footage[0], tmp_path, "--limit", "1")
    videos = sorted((tmp_path / DATASET / "videos").iterdir())
    with pytest.raises(DataError, match="no text embeddings; make them with: python scripts/get_t5_embeddings"):
        check(tmp_path / DATASET, 93)
    for path in videos:
        write_embedding(tmp_path / DATASET / "t5_xxl" / f"{path.stem}.pickle", np.ones((3, 1024), np.float16))
    assert check(tmp_path / DATASET, 93) == (len(videos), {})
    videos[0].write_bytes(videos[0].read_bytes()[:3000])
    good, bad = check(tmp_path / DATASET, 93)
    assert good == len(videos) - 1 and list(bad) == [videos[0].name]


def test_a_name_that_is_not_text_is_left_out(tmp_path: Path) -> None:
    for name in (b"b\xff.mp4", b"a.mp4"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).touch()
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}")
    assert [*list_videos(tmp_path)[0]] == ["a.mp4"]
    logger.remove(sink)
    assert "ERROR 'b\\udcff.mp4' is left out: its name is not UTF-8" in lines[0]


def test_links_to_folders_are_told_of(footage: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    (tmp_path / "in" / ".hidden").mkdir(parents=True)
    for name in ("link", ".hidden/link"):
        (tmp_path / "in" / name).symlink_to(footage[0])
    with pytest.raises(DataError, match=r"no folder with videos .*; links to folders are not followed, as link/: name"):
        list_videos(tmp_path / "in")
    (tmp_path / "in" / "a.mp4").symlink_to(footage[0] / "part0" / "film_0.mp4")  # a link to a file is as good as one
    (tmp_path / "in" / "gone.MP4").symlink_to(tmp_path / "nothing")  # of git-annex, say
    videos, inputs = list_videos(tmp_path / "in")
    assert [*videos] == ["a.mp4"] and inputs.num_ignored == 2
    assert inputs.ignored == {
        "link/": "a link to a folder, which is not followed; name its target as --input-video-path",
        "gone.MP4": "a link to nothing",
    }


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        Records(tmp_path, {}).lock(),
        Records(tmp_path, {}, "2/2").lock(),
        pytest.raises(ConfigError, match=r"another process works on it; .*--shard"),
        Records(tmp_path, {}).lock(),
    ):
        pass

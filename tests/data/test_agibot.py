"""AgiBot windows, unpacking and captions on small real archives and clips."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cosmos_predict.cli import get_t5_embeddings
from cosmos_predict.cli.prepare_agibot_fisheye_data import build_parser, prepare
from cosmos_predict.data import agibot, video_reader
from cosmos_predict.errors import ConfigError, DataError

REPOSITORY = Path(__file__).parents[2]
CAMERA = "head_center_fisheye_color"


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def task(tmp_path: Path, clip: Path) -> Path:
    """A downloaded task with one archive of two episodes (40 frames at 20 fps each) and other files."""
    task_dir = tmp_path / "agibot" / "observations" / "327"
    task_dir.mkdir(parents=True)
    with tarfile.open(task_dir / "1-2.tar", "w") as archive:
        for episode in (1, 2):
            add(archive, f"{episode}/videos/{CAMERA}.mp4", clip.read_bytes())
            add(archive, f"{episode}/videos/hand_left_color.mp4", b"another camera")
        add(archive, f"../../../evil/videos/{CAMERA}.mp4", b"outside")
        add(archive, "../../3/notes.txt", b"outside")
        link = tarfile.TarInfo(f"4/videos/{CAMERA}.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return task_dir


def test_windows_cover_the_clip_without_gaps() -> None:
    for duration in (0.3, 4.9, 5.0, 7.5, 7.6, 12.5, 12.6, 31.7):
        for size, last in ((5.0, 7.5), (5.0, 2.0), (2.0, 0.0)):
            windows = agibot.split_windows(duration, size, last)
            assert windows[0].start == 0 and windows[-1].end == duration
            assert all(a.end == b.start for a, b in itertools.pairwise(windows))
            assert all(window.length > 0 for window in windows)
    assert agibot.window_name(327, 685393, 2, agibot.Window(10.0, 12.51), 29.97) == (
        "task_327_episode_685393_window_2_frame_299-373.mp4"
    )
    with pytest.raises(DataError, match="duration and window_size must be positive"):
        agibot.split_windows(0.0)


def test_only_the_camera_is_unpacked_and_nothing_outside(task: Path) -> None:
    written, tars = agibot.unpack(task, CAMERA)
    assert written == 2 and [path.name for path in tars] == ["1-2.tar"]
    root = task.parents[2]
    assert sorted(str(path.relative_to(task)) for path in root.rglob("*") if path.is_file()) == [
        "1-2.tar",
        f"1/videos/{CAMERA}.mp4",
        f"2/videos/{CAMERA}.mp4",
    ]
    assert agibot.unpack(task, CAMERA)[0] == 0
    (task / "3.tar").write_bytes((task / "1-2.tar").read_bytes()[:5000])
    with pytest.raises(DataError, match="3.tar: damaged archive"):
        agibot.unpack(task, CAMERA)


def test_cut_and_caption(task: Path, tmp_path: Path) -> None:
    agibot.unpack(task, CAMERA)
    output = tmp_path / "out"
    report = agibot.cut_episodes(task, CAMERA, output, [2], window_size=0.5, min_last_window=0.75)
    assert report.written == 8 and not report.failed
    names = sorted(path.name for path in (output / "train" / "videos").iterdir())
    assert names == [f"task_327_episode_1_window_{k}_frame_{10 * k}-{10 * k + 9}.mp4" for k in range(4)]
    assert video_reader.probe(output / "train" / "videos" / names[0]).frames == 10
    assert agibot.cut_episodes(task, CAMERA, output, [2], 0.5, 0.75).kept == 8

    table = tmp_path / "captions.jsonl"
    rows = [{"video_clip": name, "caption": f" window {n} ", "episode_id": 1} for n, name in enumerate(names)]
    rows.append({"video_clip": "gone", "caption": "x", "episode_id": 2})
    table.write_text("\n".join(json.dumps(row) for row in rows))
    count, unmatched = agibot.write_captions(table, output, [2])
    assert count == 5 and len(unmatched) == 5
    assert "line 5: no clip gone.mp4" in unmatched[0] and "no caption in captions.jsonl" in unmatched[1]
    assert (output / "train" / "metas" / f"{Path(names[1]).stem}.txt").read_text() == "window 1\n"
    table.write_text('{"video_clip": "a"}')
    with pytest.raises(DataError, match="line 1: expected an object with video_clip, caption and episode_id"):
        agibot.write_captions(table, output)


def test_a_damaged_episode_is_named_and_the_others_cut(task: Path, tmp_path: Path) -> None:
    agibot.unpack(task, CAMERA)
    (task / "1" / "videos" / f"{CAMERA}.mp4").write_bytes(b"no video")
    report = agibot.cut_episodes(task, CAMERA, tmp_path / "out")
    assert report.written == 1 and len(report.failed) == 1
    with pytest.raises(DataError, match="no <episode>/videos/other.mp4"):
        agibot.cut_episodes(task, "other", tmp_path / "out")


def test_the_command_asks_before_it_removes(task: Path) -> None:
    data = task.parents[1]
    command = [sys.executable, str(REPOSITORY / "scripts" / "prepare_agibot_fisheye_data.py"), "--data_dir", str(data)]
    (task / "notes.json").write_text("{}")

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *flags], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)

    refused = run("--delete-only")
    assert refused.returncode == 2 and "would remove 2 files" in refused.stderr and "--yes" in refused.stderr
    assert (task / "1-2.tar").is_file() and (task / "notes.json").is_file()

    kept = run("--delete-only", "--yes", "--keep_tar")
    assert kept.returncode == 0, kept.stderr
    assert (task / "1-2.tar").is_file() and not (task / "notes.json").exists()
    assert run("--delete-only", "--yes").returncode == 0
    assert sorted(path.name for path in task.iterdir()) == ["1", "2"]

    split = run("--split-only", "--val_episode_ids", "2", "--window-size", "0.5", "--min-last-window", "0.75")
    assert split.returncode == 0, split.stderr
    assert "8 windows written" in split.stdout and f"agibot_{CAMERA}.jsonl is not there" in split.stderr
    assert len(list((data.parent / f"agibot_{CAMERA}" / "val" / "videos").iterdir())) == 4
    missing = run("--split-only", "--task_ids", "9")
    assert missing.returncode == 2 and "no <episode>/videos" in missing.stderr


def test_the_message_without_captions_says_how_to_go_on(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And that way leads to the guide's text embeddings."""
    data, output = task.parents[1], task.parents[2] / f"agibot_{CAMERA}"
    agibot.unpack(task, CAMERA)
    flags = ["--data_dir", str(data), "--split-only", "--val_episode_ids", "2"]
    assert prepare(build_parser().parse_args(flags)) == 0
    advice = capsys.readouterr().err
    assert f"no captions: {output}.jsonl is not there" in advice
    assert "Put it there, an object a line with video_clip (the name of a window), caption and episode_id" in advice
    assert "again with --split-only" in advice and f"{output}/{{train,val}}/metas/WINDOW.txt yourself" in advice
    windows = [path.stem for path in output.glob("*/videos/*.mp4")]
    rows = [{"video_clip": name, "caption": "It waits.", "episode_id": int(name.split("_")[3])} for name in windows]
    output.with_name(f"{output.name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prepare(build_parser().parse_args(flags)) == 0
    assert "2 captions written, 0 names unmatched" in capsys.readouterr().out
    for part in ("train", "val"):
        embed = ["--dataset_path", str(output / part), "--text_encoder", "tiny"]
        assert get_t5_embeddings.embed_with_table(get_t5_embeddings.build_parser().parse_args(embed)) == 0
        (made,) = (output / part / "t5_xxl").iterdir()
        assert made.stem in windows


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--split-only", "--delete-only"], ConfigError, "exclude each other"),
        (["--camera", "../x"], ConfigError, "must be the name of a video file"),
        (["--split-only", "--window-size", "0"], DataError, "window_size must be positive"),
        (["--delete-only", "--data_dir", "/nowhere"], DataError, "run without --delete-only"),
    ],
)
def test_bad_input_is_named(flags: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prepare(build_parser().parse_args(flags))


def test_defaults_are_the_published_ones() -> None:
    args = build_parser().parse_args([])
    assert (args.task_ids, str(args.data_dir), args.camera) == ([327], "datasets/agibot", CAMERA)
    assert (args.window_size, args.min_last_window, args.keep_tar) == (5.0, 7.5, False)

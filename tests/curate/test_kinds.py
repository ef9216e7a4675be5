"""Every kind of file that people have, good and bad, in one folder: one clear line for each bad one, in the report, too."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from cosmos_predict.curate.records import DATASET
from cosmos_predict.data.video_reader import probe, write_video
from tests.curate.footage import FPS, film
from tests.curate.running import REPOSITORY, finished, run_command, run_split

MEDIA = REPOSITORY.parent / "shared" / "media"
RULES = ["--num-frames", "16", "--transnetv2-min-length-s", "0.5", "--transnetv2-min-length-frames", "17"]
RULES += ["--transnetv2-crop-s", "0.1", "--splitting-algorithm", "content", "--captioning-algorithm", "template"]


def ffmpeg(*words: str | Path) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, words)], check=True)


def make_kinds(folder: Path) -> dict[str, str]:
    """Write a file of each kind; return what is said of the bad ones, as patterns."""
    folder.mkdir()
    plain = folder / "five_seconds.mp4"
    write_video(plain, film([120], seed=1), FPS)
    good = plain.read_bytes()
    ffmpeg("-i", plain, "-c", "copy", "-f", "mpegts", folder / "stream.ts")
    ffmpeg("-i", plain, "-pix_fmt", "yuv420p10le", "-c:v", "libx264", folder / "ten_bit.mkv")
    ffmpeg("-i", plain, "-vf", "select='not(eq(mod(n,7),3))'", "-fps_mode", "vfr", folder / "variable_rate.mp4")
    ffmpeg("-display_rotation", "90", "-i", plain, "-c", "copy", folder / "rotated.mp4")
    ten = folder / "ten.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=8:duration=10", "-preset", "ultrafast", ten)
    ffmpeg("-stream_loop", "359", "-i", ten, "-c", "copy", folder / "one_hour.mp4")
    ten.unlink()
    (folder / "corrupt.mp4").write_bytes(good[:48] + np.random.default_rng(0).bytes(len(good) - 4048) + good[-4000:])
    (folder / "truncated.mp4").write_bytes(good[: len(good) // 2])
    (folder / "zero.mp4").touch()
    ffmpeg("-f", "lavfi", "-i", "sine=duration=2", folder / "sound.mp4")
    Image.new("RGB", (64, 48), "red").save(folder / "picture.jpg")
    (folder / "picture.jpg").rename(folder / "picture.mp4")
    (folder / "words.mp4").write_text("no video\n" * 100)
    (folder / "notes.txt").write_text("not looked at")
    return {
        "corrupt.mp4": "",
        "truncated.mp4": "truncated|not a readable video",
        "zero.mp4": "0 bytes",
        "sound.mp4": "no video stream",
        "picture.mp4": "picture",
        "words.mp4": "not a readable video|text",
    }


@pytest.mark.slow
def test_each_kind(tmp_path: Path) -> None:
    bad = make_kinds(tmp_path / "in")
    status, _, err = finished(tmp_path / "in", tmp_path / "out", *RULES, "--limit-clips", "2", "--text-encoder", "none")
    assert status == 1 and "Traceback" not in err
    assert "1 other files ignored" in err
    report = (tmp_path / "out" / "report.html").read_text()
    for name, message in bad.items():
        lines = [line for line in err.splitlines() if line.startswith(f"failed: {name}")]
        assert len(lines) == 1 and re.search(message, lines[0]), (name, err)
        assert f"<td>{name}" in report
    good = {path.name for path in (tmp_path / "in").iterdir()} - {*bad, "notes.txt"}
    sizes = {}
    for name in good:
        record = json.loads((tmp_path / "out" / "processed_videos" / f"{name}.json").read_text())
        assert record["status"] == "done" and record["clips"], (name, record)
        for uuid in record["clips"]:
            sizes[name] = probe(tmp_path / "out" / "clips" / f"{uuid}.mp4")
            assert not sizes[name].variable_frame_rate
    assert len(good) == 6 and (sizes["rotated.mp4"].width, sizes["rotated.mp4"].height) == (96, 160)
    assert sizes["one_hour.mp4"].frames == 480 - 2 * int(0.1 * 8)  # 60 s at 8 frames a second, cropped


@pytest.mark.slow
def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "a.mp4", film([120], seed=1), FPS)
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "out", *([Path("/proc/none")] if Path("/proc/1").is_dir() else [])):
        status, _, err = finished(tmp_path / "in", output, *RULES)
        assert status == 2 and f"error: {output}: cannot write there" in err and "Traceback" not in err, err


@pytest.mark.slow
def test_no_captions_at_all(tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "a.mp4", film([120], seed=1), FPS)
    words = [word for word in RULES if word not in ("--captioning-algorithm", "template")]
    status, _, err = finished(tmp_path / "in", tmp_path / "out", *words, "--text-encoder", "none")
    assert status == 1 and "failed: a.mp4" in err and "no caption of a.mp4" in err
    assert "or choose --captioning-algorithm template" in err
    assert "no caption of a.mp4" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_what_is_made_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real clips beside the repository where they are there, else generated ones."""
    from cosmos_predict.config.compose import compose
    from cosmos_predict.training.trainer import Trainer

    source = tmp_path / "in"
    source.mkdir()
    for place in ("clips/test_clip_10s.mp4", "clips/hiker_tiny.mp4", "driving/1.mp4", "bridge/videos/val/27/rgb.mp4"):
        if (MEDIA / place).is_file():
            shutil.copyfile(MEDIA / place, source / place.replace("/", "_"))
    if not any(source.iterdir()):
        write_video(source / "a.mp4", film([140, 130], seed=1), FPS)
    status, out, err = finished(source, tmp_path / "out", *RULES, "--text-encoder", "tiny", "--limit-clips", "1")
    assert status == 0, err
    assert re.search(r"\d+ samples of 16 frames load, 0 do not", out)
    dataset = tmp_path / "out" / DATASET
    assert run_command("check", str(dataset), "--num-frames", "16")[0] == 0
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "runs"))
    words = ["experiment=predict2_video2world_training_2b_video2world_data", "debug=true"]
    config = compose([*words, f"dataloader_train.dataset.dataset_dir={dataset}"], report=[])
    trainer = Trainer(config, device="cpu")
    trainer.train()
    lines = [json.loads(line) for line in (trainer.folder.root / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) >= 2 and all(line["loss"] > 0 for line in lines if "loss" in line)


def test_run_split_with_nothing_but_bad_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "zero.mp4").touch()
    summary = run_split(tmp_path / "in", tmp_path / "out", *RULES)
    assert summary["num_videos_failed"] == 1 and not summary["num_clips_passed"]

"""Every kind of file that people have, good and bad, in one folder: one clear line for each bad one, in the report, too."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from cosmos_predict.curate.records import DATASET
from cosmos_predict.data.video_reader import probe, write_video
from tests.curate.footage import FPS, film, make_set
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
    assert status == 2 and "Traceback" not in err
    told = "no captions beside any of 1 videos (NAME.txt, NAME.json, captions.jsonl or captions.csv); choose"
    assert f"error: {tmp_path / 'in'}: {told} --captioning-algorithm template (from file names), none (" in err
    assert not (tmp_path / "out").exists()
    (tmp_path / "metas").mkdir()
    (tmp_path / "metas" / "a.txt").write_text("Blocks, from the folder beside.")
    status, _, err = finished(tmp_path / "in", tmp_path / "out", *words, "--text-encoder", "none")
    assert status == 0, err


@pytest.mark.slow
def test_what_is_left_to_do_is_told(tmp_path: Path) -> None:
    """Parts that are in no clip, clips without a caption, samples of as many frames as there are, kept minutes."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, lengths in (("a.mp4", [60, 12, 60]), ("b.mp4", [48, 48])):
        write_video(source / name, film(lengths, seed=3), FPS)
    (source / "a.txt").write_text("Blocks.")
    part = "a.mp4: 4.6 of 5.5 s in clips: 1 of 3 shots without a clip (0.5 s), a clip needs 17 frames (--num-frames 16, and "
    flags = [*RULES, "--captioning-algorithm", "sidecar"]
    status, text, err = finished(source, out, *flags, "--dry-run")
    assert status == 0 and part in text and not out.exists(), (text, err)
    status, text, err = finished(source, out, *flags, "--text-encoder", "none")
    assert status == 1 and "--num-frames 16: training takes 4 k + 1 frames, as 13 or 17" in err
    for name, value in (("num_clips_passed", 4), ("num_samples", 2), ("minutes_kept", "0.1 of 0.2")):
        assert f"{name:32} {value}\n" in text, text
    assert text.index(
        f"2 clips have no caption; next: python scripts/curate.py caption {out}\nthen, the text embeddings"
    )
    assert f"<td>{part[:5]}</td><td>{part[7:]}" in (out / "report.html").read_text()
    status, text, err = run_command("caption", str(out), "--captioning-algorithm", "template")
    assert status == 0 and "2 clips captioned, 0 failed; next: python" in text and "no caption" not in text, (text, err)
    assert f"{'num_samples':32} 4\n" in text
    assert run_command("embed", str(out), "--text_encoder", "tiny")[0] == 0
    for folder in (out, out / DATASET):
        status, text, _ = run_command("check", str(folder))
        assert status == 0 and text == f"{folder}: 4 samples of 16 frames load, 0 do not\n"
    status, text, _ = run_command("check", str(out), "--num-frames", "93")
    assert status == 1 and "0 samples of 93 frames load" in text
    (next((out / DATASET / "t5_xxl").iterdir())).unlink()
    status, text, err = run_command("check", str(out))
    assert status == 1 and f"get_t5_embeddings.py --dataset_path {out / DATASET} --text_encoder tiny" in err


@pytest.mark.slow
def test_what_is_made_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real clips beside the repository where they are there, else its own. Each gives a clip."""
    from cosmos_predict.config.compose import compose
    from cosmos_predict.training.trainer import Trainer

    source = tmp_path / "in"
    source.mkdir()
    for place in ("clips/test_clip_10s.mp4", "clips/hiker_tiny.mp4", "driving/1.mp4", "bridge/videos/val/27/rgb.mp4"):
        if (MEDIA / place).is_file():
            shutil.copyfile(MEDIA / place, source / place.replace("/", "_"))
    for path in () if any(source.iterdir()) else sorted((REPOSITORY / "assets/robot_arm/videos").glob("*.mp4"))[:3]:
        shutil.copyfile(path, source / path.name)
    count = len([*source.iterdir()])
    status, out, err = finished(source, tmp_path / "out", *RULES, "--text-encoder", "tiny", "--limit-clips", "1")
    assert status == 0, err
    assert count >= 3 and re.search(rf"num_clips_passed +{count}\n", out) and "num_videos_empty" not in out, out
    assert f"{count} samples of 16 frames load, 0 do not" in out
    dataset = tmp_path / "out" / DATASET
    assert run_command("check", str(dataset), "--num-frames", "16")[0] == 0
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "runs"))
    words = ["experiment=predict2_video2world_training_2b_video2world_data", "debug=true"]
    config = compose([*words, f"dataloader_train.dataset.dataset_dir={dataset}"], report=[])
    trainer = Trainer(config, device="cpu")
    trainer.train()
    lines = [json.loads(line) for line in (trainer.folder.root / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) >= 2 and all(line["loss"] > 0 for line in lines if "loss" in line)


@pytest.mark.slow
def test_the_generated_set_from_footage_to_training(tmp_path: Path) -> None:
    """Eight films with known cuts: each shot a clip, at its frames; then the commands of the guide, as a user types them."""
    lengths = make_set(tmp_path / "in", 8)
    shots = sum(map(len, lengths.values()))
    status, out, err = finished(tmp_path / "in", tmp_path / "out", "--text-encoder", "none")
    assert status == 0 and re.search(rf"num_clips_passed +{shots}\n", out) and "num_videos_empty" not in out, out + err
    crop = int(0.5 * FPS)
    for name, parts in lengths.items():
        clips = json.loads((tmp_path / "out" / "processed_videos" / f"{name}.json").read_text())["clips"]
        ends = np.cumsum(parts)
        found = np.array([clip["frames"] for clip in clips.values()])
        assert found.shape == (len(parts), 2) and abs(found[:, 0] - crop - (ends - parts)).max() <= 1
        early = ends - crop - found[:, 1]
        fades = name.endswith("film_7.mp4") * 12 * (np.arange(len(parts)) == 0)  # frames at the end of its first shot
        assert (early >= -1).all() and (early <= 1 + fades).all(), (name, found, ends)
    dataset = tmp_path / "out" / DATASET
    assert run_command("embed", str(tmp_path / "out"), "--text_encoder", "tiny")[0] == 0
    status, out, err = run_command("check", str(dataset))
    assert status == 0 and f"{shots} samples of 93 frames load, 0 do not" in out, err
    experiment = ["experiment=predict2_video2world_training_2b_video2world_data", "debug=true", "trainer.max_iter=2"]
    training = subprocess.run(
        [sys.executable, "-m", "train", "--", *experiment, f"dataloader_train.dataset.dataset_dir={dataset}"],
        cwd=REPOSITORY,
        env={**os.environ, "OUTPUT_ROOT": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
    )
    assert training.returncode == 0, training.stderr
    assert f"{shots} of {shots} clips usable" in training.stderr and "replaced by another clip" not in training.stderr
    (log,) = (tmp_path / "runs").rglob("metrics.jsonl")
    losses = [row["loss"] for row in map(json.loads, log.read_text().splitlines()) if "loss" in row]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)


def test_run_split_with_nothing_but_bad_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "zero.mp4").touch()
    summary = run_split(tmp_path / "in", tmp_path / "out", *RULES)
    assert summary["num_videos_failed"] == 1 and not summary["num_clips_passed"]

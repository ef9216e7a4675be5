"""`scripts/evaluate.py`, `scripts/plot_loss.py` and the contact sheet, on a debug run and the shipped clips."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosmos_predict.cli import contact_sheet, evaluate
from cosmos_predict.data.video_reader import probe, read_frames, write_video
from tests.training.tiny_run import run

REPOSITORY = Path(__file__).parents[2]
HELDOUT = str(REPOSITORY / "assets" / "robot_arm_heldout")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("run")).folder.root


def call(main: object, *arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in arguments])  # type: ignore[operator]
    return int(stopped.value.code or 0)


def test_a_checkpoint_against_itself_copies_and_the_ceiling(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--dataset_path", HELDOUT, "--num_clips", 2, "--num_steps", 2)
    places = ("--save_path", tmp_path / "out.json", "--save_clips", tmp_path / "clips")
    assert call(evaluate.main, "--dit_path", trained, "--compare_with", f"same={trained}", *options, *places) == 0
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["clips"] == ["lift_000", "lift_001"] and numbers["settings"]["num_steps"] == 2
    methods = numbers["methods"]
    assert list(methods) == ["this", "same", "copy_last_frame", "tokenizer"]
    assert methods["this"]["psnr"] == methods["same"]["psnr"]  # the same noise
    assert numbers["differences"]["same"]["psnr"] == {"mean": 0, "interval": 0}
    assert methods["tokenizer"]["psnr"]["mean"] > methods["copy_last_frame"]["psnr"]["mean"]
    assert methods["tokenizer"]["ssim"]["mean"] > methods["this"]["ssim"]["mean"]  # which had two updates
    assert len(methods["this"]["psnr"]["per_frame"]) == 4  # five frames, the first is given
    assert {path.stem for path in (tmp_path / "clips").iterdir()} == {*methods, "real"}
    assert probe(tmp_path / "clips" / "this.mp4").frames == 5
    shown = capsys.readouterr().out
    assert "2 clips of" in shown and "PSNR dB" in shown and "this - copy_last_frame" in shown


def test_another_seed_is_another_clip(trained: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        options = ("--num_clips", 1, "--num_steps", 2, "--seed", seed, "--baseline", "none")
        places = ("--dataset_path", HELDOUT, "--save_path", tmp_path / f"{seed}.json")
        assert call(evaluate.main, "--dit_path", trained, *options, *places) == 0
    first, second = (json.loads((tmp_path / f"{seed}.json").read_text())["methods"] for seed in (0, 1))
    assert first["tokenizer"] == second["tokenizer"] and first["this"] != second["this"]
    assert "copy_last_frame" not in first


def test_clips_at_another_rate_are_resampled_by_time(trained: Path, tmp_path: Path) -> None:
    source = tmp_path / "clips"
    frames = np.repeat(np.arange(30, dtype=np.uint8) * 8, 48 * 64 * 3).reshape(30, 48, 64, 3)
    write_video(source / "videos" / "ramp.mp4", frames, 10)
    (source / "metas").mkdir()
    (source / "metas" / "ramp.txt").write_text("It becomes brighter.")
    options = ("--dataset_path", source, "--num_steps", 1, "--baseline", "none", "--fps", 2)
    assert call(evaluate.main, "--dit_path", trained, *options, "--save_clips", tmp_path / "saved") == 0
    real = tmp_path / "saved" / "real.mp4"
    assert (probe(real).frames, probe(real).fps) == (5, 2)
    levels = read_frames(real, range(5)).mean(axis=(1, 2, 3))
    assert np.abs(np.diff(levels) - 5 * 8).max() < 3  # every fifth frame


def test_bad_input_is_one_message(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(evaluate.main, "--dit_path", trained, "--dataset_path", tmp_path / "none") == 2
    assert "none/videos: no such folder" in capsys.readouterr().err
    assert call(evaluate.main, "--dit_path", tmp_path / "none.pt", "--dataset_path", HELDOUT) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    larger = run(tmp_path, "dataloader_train.dataset.video_size=[64,64]").folder.root
    both = ("--dit_path", trained, "--compare_with", f"larger={larger}", "--dataset_path", HELDOUT)
    assert call(evaluate.main, *both) == 2
    assert "larger makes 5 frames of (64, 64)" in capsys.readouterr().err


def test_a_contact_sheet_of_an_image_and_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = np.full((5, 32, 48, 3), 90, np.uint8)
    write_video(tmp_path / "a.mp4", frames, 8)
    Image.fromarray(frames[0]).resize((96, 64)).save(tmp_path / "start.png")
    rows = (f"start frame={tmp_path / 'start.png'}", f"clip={tmp_path / 'a.mp4'}")
    assert call(contact_sheet.main, *rows, "--save_path", tmp_path / "sheet.png", "--columns", 3) == 0
    sheet = np.array(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert sheet.shape == (16 + 2 * 34, 96 + 3 * 50, 3)
    first, second = sheet[20:44, 96:], sheet[54:80, 96:]
    assert (first[:, 60:] == 255).all() and not (second[:, 60:90] == 255).all()  # the image fills one column
    assert call(contact_sheet.main, "nothing", "--save_path", tmp_path / "sheet.png") == 2
    assert "'nothing' is not LABEL=FILE" in capsys.readouterr().err


def plot(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "plot_loss.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_loss_is_drawn(tmp_path: Path) -> None:
    lines = [json.dumps({"iteration": n, "loss": 100 / n}) for n in range(1, 41)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    result = plot(tmp_path, "--save_path", tmp_path / "loss.png")
    assert result.returncode == 0, result.stderr
    # Means of the first and last four points: 100 (1 + 1/2 + 1/3 + 1/4) / 4 and about 100 / 38.5.
    assert "loss 52.083 -> 2.600 over 40 iterations" in result.stdout
    colors = set(map(tuple, np.array(Image.open(tmp_path / "loss.png")).reshape(-1, 3).tolist()))
    assert (200, 60, 40) in colors
    assert "has no 'acc'; it has iteration, loss" in plot(tmp_path, "--key", "acc").stderr
    missing = plot(tmp_path / "nowhere")
    assert missing.returncode == 2 and "no metrics at" in missing.stderr and "Traceback" not in missing.stderr

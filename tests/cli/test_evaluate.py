"""`scripts/evaluate.py`, `scripts/plot_loss.py` and the contact sheet, on a debug run and the shipped clips."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cosmos_predict.checkpoint.lora_forms import network_adapter, write_adapter
from cosmos_predict.checkpoint.lora_runs import file_hash
from cosmos_predict.cli import contact_sheet, evaluate
from cosmos_predict.data.video_reader import probe, read_frames, write_video
from cosmos_predict.networks.dit import DiT
from cosmos_predict.networks.lora import inject_lora
from cosmos_predict.pipelines.load import Checkpoint, load_world_model
from cosmos_predict.text_encoders.tiny import TinyTextEncoder
from tests.pipelines.small import write_run
from tests.training.tiny_run import run

REPOSITORY = Path(__file__).parents[2]
QUICK = ("--text_encoder", "tiny", "--num_steps", 1, "--num_clips", 1)
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


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--save_path", "/proc/none/out.json"), "cannot write to /proc/none"),
        (("--save_path", "out.txt"), "--save_path out.txt: expected a name that ends in .json"),
        (("--device", "gpu"), "--device gpu: expected cpu, cuda, or cuda:N"),
        (("--device", "cuda:99"), "--device cuda:99: torch finds"),
        (("--seed", -1), "argument --seed: -1 is not a whole number from 0"),
        (("--fps", 0), "argument --fps: 0 is not above 0"),
        (("--guidance", "nan"), "argument --guidance: nan is not a finite number"),
    ],
)
def test_what_cannot_work_is_told_before_any_work(
    tmp_path: Path, flags: tuple[object, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ("--dit_path", tmp_path / "none.pt", "--dataset_path", HELDOUT)
    assert call(evaluate.main, *rest, *flags) == 2
    assert told in capsys.readouterr().err


def numbers(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    options = ("--dataset_path", HELDOUT, "--num_clips", 2, "--num_steps", 2, "--save_path", tmp_path / "out.json")
    assert call(evaluate.main, *arguments, *options) == 0
    return json.loads((tmp_path / "out.json").read_text())


@pytest.mark.parametrize("options", [(), ("--guidance", 3)])
def test_every_checkpoint_has_its_own_sampler(tmp_path: Path, options: tuple[object, ...]) -> None:
    """A Predict1 network makes the same clips beside a Predict2 one as alone, and the reverse."""
    first = {family: write_run(tmp_path / family, family=family) for family in ("predict2", "predict1")}
    alone = {family: numbers(tmp_path, "--dit_path", file, *options) for family, file in first.items()}
    for family, other in (("predict2", "predict1"), ("predict1", "predict2")):
        both = numbers(tmp_path, "--dit_path", first[family], "--compare_with", f"other={first[other]}", *options)
        assert both["methods"]["this"] == alone[family]["methods"]["this"]
        assert both["methods"]["other"] == alone[other]["methods"]["this"]
        assert both["samplers"] == {
            "this": alone[family]["samplers"]["this"],
            "other": alone[other]["samplers"]["this"],
        }
    solvers = [alone[family]["samplers"]["this"]["solver"] for family in first]
    assert solvers == ["2ab", "euler"]
    assert alone["predict2"]["methods"]["this"] != alone["predict1"]["methods"]["this"]


def test_adapters_against_their_base(tmp_path: Path) -> None:
    """--lora_path is --dit_path's alone; with --load_ema the base is the one that the adapters were trained beside."""
    file = write_run(tmp_path / "run")
    net = load_world_model(file).model.net
    inject_lora(net, rank=4)
    for part, shift in (("reg", 0.2), ("ema", -0.2)):
        for name, value in net.named_parameters():
            torch.nn.init.constant_(value, shift) if "lora_B" in name else None
        adapter = network_adapter(net, base=str(file), base_hash=file_hash(file))
        write_adapter(adapter, tmp_path / "iter_000000001_lora" / part)
    lora = ("--lora_path", tmp_path / "iter_000000001_lora", "--compare_with", f"base={file}", "--baseline", "none")
    base = numbers(tmp_path, "--dit_path", file)["methods"]["this"]
    regular = numbers(tmp_path, "--dit_path", file, *lora)["methods"]
    averaged = numbers(tmp_path, "--dit_path", file, *lora, "--load_ema")["methods"]
    assert regular["base"] == averaged["base"] == base
    assert regular["this"] != base != averaged["this"] != regular["this"]


def test_a_file_without_its_run_takes_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_run(tmp_path / "run")
    inside = numbers(tmp_path, "--dit_path", file)
    moved = file.rename(tmp_path / "moved.pt")
    config = ("--config", tmp_path / "run" / "config.yaml", "--compare_with", f"again={moved}")
    outside = numbers(tmp_path, "--dit_path", moved, *config)["methods"]
    assert outside["this"] == outside["again"] == inside["methods"]["this"]
    bfloat16 = numbers(tmp_path, "--dit_path", moved, *config[:2], "--dtype", "bfloat16")["methods"]
    assert bfloat16["tokenizer"] == outside["tokenizer"] and bfloat16["this"] != outside["this"]
    assert bfloat16["this"]["psnr"]["mean"] == pytest.approx(outside["this"]["psnr"]["mean"], abs=0.5)
    options = ("--dataset_path", HELDOUT, "--save_path", tmp_path / "x.json")
    assert call(evaluate.main, "--dit_path", moved, "--config", tmp_path / "none.yaml", *options) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_one_network_at_a_time(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a network's weights are read, captions are encoded, their encoder and every other network are gone."""
    alive: list[list[str]] = []
    load, encode = Checkpoint.load, TinyTextEncoder.encode

    def living() -> list[Any]:
        return [each for each in gc.get_objects() if type(each) in (DiT, TinyTextEncoder)]

    def watched(self: Checkpoint, *arguments: Any) -> None:
        known = {id(each) for each in (*before, self.model.net)}
        alive.append([type(each).__name__ for each in living() if id(each) not in known])
        load(self, *arguments)

    def noted(self: TinyTextEncoder, *arguments: Any, **options: Any) -> Any:
        alive.append(["encoding"])
        return encode(self, *arguments, **options)

    monkeypatch.setattr(Checkpoint, "load", watched)
    monkeypatch.setattr(TinyTextEncoder, "encode", noted)
    before = living()  # of other tests
    numbers(tmp_path, "--dit_path", trained, "--compare_with", f"a={trained}", f"b={trained}")
    encoded = [entry for entry in alive if entry]
    assert encoded == [["encoding"]] * len(encoded) and alive[len(encoded) :] == [[], [], []] and encoded


def test_what_cannot_be_compared(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--dataset_path", HELDOUT, "--dit_path", trained, "--save_path", tmp_path / "x.json")
    assert call(evaluate.main, *options, "--compare_with", trained, trained) == 2
    assert f"--compare_with {trained}: the name {trained.name} is taken; give another, as NAME={trained}" in (
        capsys.readouterr().err
    )
    file, config = write_run(tmp_path / "run", num_frames=5), tmp_path / "run" / "config.yaml"
    assert "text_encoder: tiny" in config.read_text()
    config.write_text(config.read_text().replace("text_encoder: tiny", "text_encoder: t5"))
    assert call(evaluate.main, *options, "--compare_with", f"other={file}") == 2
    assert f"other reads text through t5, {trained} through tiny: only checkpoints of one" in capsys.readouterr().err
    assert call(evaluate.main, *options, "--compare_with", f"other={file}", *QUICK) == 0
    assert call(evaluate.main, *options, "--num_conditional_frames", 5) == 2
    assert "5 given frames leave nothing of 5 to generate" in capsys.readouterr().err
    assert call(evaluate.main, *options, "--lora_path", tmp_path / "none") == 2
    assert f"no LoRA adapters at {tmp_path / 'none'}" in capsys.readouterr().err


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
    same = (f"clip={tmp_path / 'a.mp4'}",) * 3  # a label need not be another one
    assert call(contact_sheet.main, *same, "--save_path", tmp_path / "same.png", "--columns", 3) == 0
    assert np.array(Image.open(tmp_path / "same.png")).shape[0] == 16 + 3 * 34
    assert call(contact_sheet.main, "nothing", "--save_path", tmp_path / "sheet.png") == 2
    assert "'nothing' is not LABEL=FILE" in capsys.readouterr().err
    for start in (-1, 5):
        assert call(contact_sheet.main, *same, "--save_path", tmp_path / "sheet.png", "--start", start) == 2
        assert f"--start {start}: {tmp_path / 'a.mp4'} has 5 frames" in capsys.readouterr().err


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

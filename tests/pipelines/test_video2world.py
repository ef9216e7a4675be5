"""From a trained run to an mp4, through real files: what `inference/video2world.py` does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_predict.checkpoint.export import export_checkpoint
from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.cli.video2world import build_parser, generate_clip
from cosmos_predict.config.compose import compose
from cosmos_predict.data import video_reader
from cosmos_predict.errors import CheckpointError, ConfigError, DataError
from cosmos_predict.models.sampling import SamplerSettings
from cosmos_predict.pipelines.load import load_world_model
from cosmos_predict.pipelines.video2world import Clip, generate, read_condition, to_frames
from cosmos_predict.training.trainer import Trainer

QUICK = SamplerSettings(num_steps=2, guidance=0.0)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one update of the tiny experiment on synthetic clips of 9 frames, 48 x 64."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTPUT_ROOT", str(root))
        overrides = ["experiment=tiny_video2world", "data=synthetic", "debug=true", "trainer.max_iter=1"]
        config = compose([*overrides, "dataloader_train.dataset.num_frames=9"], report=[])
        config.freeze()
        Trainer(config, device="cpu").train()
    return root / "cosmos_predict" / "tiny" / "tiny_video2world_debug"


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "moving.mp4"
    frames = np.full((12, 48, 64, 3), 90, np.uint8)
    for index in range(12):
        frames[index, 10:30, 2 * index : 2 * index + 16] = (220, 60, 40)
    video_reader.write_video(path, frames, fps=16)
    return path


def test_the_whole_command(run_folder: Path, clip_path: Path, tmp_path: Path) -> None:
    save_path = tmp_path / "deep" / "clip.mp4"
    command = ["--dit_path", str(run_folder), "--load_ema", "--input_path", str(clip_path), "--prompt", "a red block"]
    command += ["--save_path", str(save_path), "--num_steps", "2", "--device", "cpu"]
    generate_clip(build_parser().parse_args(command))
    info = video_reader.probe(save_path)
    assert (info.frames, info.height, info.width, info.fps) == (9, 48, 64, 16)
    sidecar = json.loads(save_path.with_suffix(".json").read_text())
    assert sidecar["checkpoint"].endswith("iter_000000001.pt") and sidecar["prompt"] == "a red block"


def test_clip_starts_with_the_given_frame(run_folder: Path, clip_path: Path) -> None:
    loaded = load_world_model(run_folder)
    frames = generate(loaded.model, Clip(clip_path, 9, (48, 64)), torch.zeros(1, 512, 1024), settings=QUICK)
    given = read_condition(clip_path, (48, 64), 1)
    kept = to_frames(loaded.model.decode(loaded.model.encode(given))[0])[0]
    assert np.abs(frames[0].astype(int) - kept.astype(int)).max() <= 1
    assert np.abs(frames[0].astype(int) - given[0, :, 0].permute(1, 2, 0).numpy()).mean() < 12


def test_five_given_frames_continue_a_video(run_folder: Path, clip_path: Path) -> None:
    model = load_world_model(run_folder).model
    clip = Clip(clip_path, 9, (48, 64), num_conditional_frames=5)
    frames = generate(model, clip, torch.zeros(1, 512, 1024), settings=QUICK)
    kept = to_frames(model.decode(model.encode(read_condition(clip_path, (48, 64), 5)))[0])
    assert frames.shape == (9, 48, 64, 3)
    assert np.abs(frames[:5].astype(int) - kept.astype(int)).max() <= 1


def test_other_sizes_lengths_and_the_seed(run_folder: Path, clip_path: Path) -> None:
    model, text = load_world_model(run_folder).model, torch.zeros(1, 512, 1024)
    first, again, other = (
        generate(model, Clip(clip_path, 13, (64, 48), seed=seed), text, settings=QUICK) for seed in (1, 1, 2)
    )
    assert first.shape == (13, 64, 48, 3)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_an_exported_file_alone_and_the_run_folder_agree(run_folder: Path, clip_path: Path) -> None:
    exported = run_folder / "checkpoints" / "model" / "iter_000000001.pt"
    clip, text = Clip(clip_path, 9, (48, 64)), torch.zeros(1, 512, 1024)
    a, b = (generate(load_world_model(path).model, clip, text, settings=QUICK) for path in (run_folder, exported))
    assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 10}, "9 or 13"),
        ({"size": (50, 64)}, "must be a multiple of 16; nearest: 48 x 64"),
        ({"num_frames": 1}, "leave nothing of 1 to generate"),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(run_folder: Path, clip_path: Path, changes: dict, message: str) -> None:
    model = load_world_model(run_folder).model
    clip = Clip(**{"input_path": clip_path, "num_frames": 9, "size": (48, 64), **changes})
    with pytest.raises(ConfigError, match=message):
        generate(model, clip, torch.zeros(1, 512, 1024), settings=QUICK)


def test_inputs_that_do_not_fit(clip_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 12 frames, num_conditional_frames=13 needs at least as many"):
        read_condition(clip_path, (48, 64), 13)
    from PIL import Image

    Image.new("RGBA", (70, 50), (255, 0, 0, 0)).save(tmp_path / "clear.PNG")
    assert read_condition(tmp_path / "clear.PNG", (48, 64), 1).min() >= 254  # transparent is white
    with pytest.raises(DataError, match="is an image: num_conditional_frames must be 1, not 5"):
        read_condition(tmp_path / "clear.PNG", (48, 64), 5)


def test_missing_checkpoints_say_what_to_give(tmp_path: Path, run_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give a .pt or .safetensors file, or a run folder"):
        load_world_model(tmp_path / "nothing.pt")
    empty = tmp_path / "run"
    (empty / "checkpoints").mkdir(parents=True)
    (empty / "config.yaml").write_text((run_folder / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match="holds no complete iteration yet"):
        load_world_model(empty)


def test_ema_weights_are_the_ones_asked_for(run_folder: Path, tmp_path: Path) -> None:
    loaded = load_world_model(run_folder)
    weights = {f"net.{name}": value for name, value in loaded.model.net.state_dict().items()}
    ema = {name: value + 1 for name, value in weights.items()}
    copy = RunFolder(tmp_path / "copy")
    export_checkpoint(copy, 1, weights, ema)
    (copy.root / "config.yaml").write_text((run_folder / "config.yaml").read_text())
    name = "t_embedding_norm.weight"
    regular, average = (
        load_world_model(copy.exports(1)["both"], load_ema=flag).model.net.get_parameter(name) for flag in (False, True)
    )
    torch.testing.assert_close(average, regular + 1)

"""From a trained run to an mp4, through real files: what `inference/video2world.py` does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_predict.cli.generate import generate as generate_clip
from cosmos_predict.cli.generation import build_parser
from cosmos_predict.config.compose import compose
from cosmos_predict.data import video_reader
from cosmos_predict.errors import CheckpointError, ConfigError, DataError
from cosmos_predict.models.sampling import SamplerSettings
from cosmos_predict.pipelines.load import load_world_model
from cosmos_predict.pipelines.video2world import Clip, check_input, generate, read_condition, to_frames
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
    generate_clip(build_parser("video2world").parse_args(command))
    info = video_reader.probe(save_path)
    assert (info.frames, info.height, info.width, info.fps) == (9, 48, 64, 16)
    sidecar = json.loads(save_path.with_suffix(".json").read_text())
    assert sidecar["arguments"]["dit_path"].endswith("iter_000000001.pt")


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


def test_inputs_that_cannot_be_read(tmp_path: Path) -> None:
    for name, message in (("a.png", "a.png: not a readable image"), ("b.mp4", "b.mp4: not a readable video")):
        (tmp_path / name).write_bytes(b"something else")
        with pytest.raises(DataError, match=message):
            check_input(tmp_path / name, 1)


def test_missing_checkpoints_say_what_to_give(tmp_path: Path, run_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give a .pt or .safetensors file, or a run folder"):
        load_world_model(tmp_path / "nothing.pt")
    empty = tmp_path / "run"
    (empty / "checkpoints").mkdir(parents=True)
    (empty / "config.yaml").write_text((run_folder / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match="holds no complete iteration yet"):
        load_world_model(empty)
    (empty / "checkpoints" / "base_ema.safetensors").touch()
    with pytest.raises(
        CheckpointError, match=rf"holds no complete iteration yet; give {empty}/checkpoints/base_ema\.saf"
    ):
        load_world_model(empty)


def test_ema_weights_are_the_ones_asked_for(run_folder: Path, tmp_path: Path) -> None:
    name = "t_embedding_norm.weight"
    weights = load_world_model(run_folder).model.net.state_dict()
    file = tmp_path / "both.pt"
    torch.save(
        {f"{part}.{key}": value + (part == "net_ema") for part in ("net", "net_ema") for key, value in weights.items()},
        file,
    )
    regular, average = (
        load_world_model(file, load_ema=flag, config=run_folder / "config.yaml").model.net.get_parameter(name)
        for flag in (False, True)
    )
    torch.testing.assert_close(average, regular + 1)


# ---- long clips, text alone, and what is computed ---------------------------------------------------------------------


@pytest.mark.parametrize(("given", "chunks", "frames"), [(1, 3, 9 + 2 * 8), (5, 3, 9 + 2 * 4), (5, 1, 9)])
def test_long_video_has_the_published_number_of_frames(
    run_folder: Path, clip_path: Path, given: int, chunks: int, frames: int
) -> None:
    assert Clip("", 93, (704, 1280), num_conditional_frames=given, num_chunks=6).total_frames == 93 + 5 * (93 - given)
    model = load_world_model(run_folder).model
    clip = Clip(clip_path, 9, (48, 64), num_conditional_frames=given, num_chunks=chunks, seed=3)
    text = torch.zeros(1, 512, 1024)
    whole = generate(model, clip, text, settings=QUICK)
    assert len(whole) == frames == clip.total_frames
    if chunks == 1:
        return
    first = generate(model, dataclasses.replace(clip, num_chunks=1), text, settings=QUICK)
    assert np.array_equal(whole[:9], first)
    # The next chunk has the next seed and continues the last frames (here through uint8, there unrounded).
    next_clip = dataclasses.replace(clip, input_path=first, num_chunks=1, seed=4)
    second = generate(model, next_clip, text, settings=QUICK)[given:]
    assert np.abs(second.astype(int) - whole[9 : 9 + len(second)]).mean() < 2


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"guidance": 0.0}, [1, 1, 1]),
        ({"guidance": 3.0, "cfg_batch": "on"}, [2, 2, 2]),
        ({"guidance": 3.0, "cfg_batch": "off"}, [1] * 6),
        ({"guidance": 3.0}, [2, 2, 2]),
    ],
)
def test_network_calls(run_folder: Path, clip_path: Path, changes: dict, sizes: list[int]) -> None:
    """2ab with 2 steps evaluates 3 times; guidance 0 runs one branch; only the given frames are encoded."""
    model, calls, encoded = load_world_model(run_folder).model, [], []
    model.net.register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0])))
    encode = model.tokenizer.encode
    model.tokenizer.encode = lambda video: (encoded.append(video.shape[2]), encode(video))[1]
    clip = Clip(clip_path, 9, (48, 64), num_conditional_frames=5)
    generate(model, clip, torch.ones(1, 512, 1024), settings=dataclasses.replace(QUICK, **changes))
    assert calls == sizes and encoded == [5]


def test_from_text_alone(run_folder: Path) -> None:
    model, text = load_world_model(run_folder).model, torch.zeros(1, 512, 1024)
    assert generate(model, Clip(None, 9, (48, 64)), text, settings=QUICK).shape == (9, 48, 64, 3)
    assert generate(model, Clip(None, 1, (48, 64)), text, settings=QUICK).shape == (1, 48, 64, 3)
    with pytest.raises(ConfigError, match="only a clip that is continued has several"):
        generate(model, Clip(None, 9, (48, 64), num_chunks=2), text, settings=QUICK)


def test_frames_in_memory_are_a_condition(run_folder: Path, clip_path: Path) -> None:
    model, text = load_world_model(run_folder).model, torch.zeros(1, 512, 1024)
    frames = video_reader.read_frames(clip_path, range(12))
    a, b = (generate(model, Clip(source, 9, (48, 64)), text, settings=QUICK) for source in (clip_path, frames))
    assert np.array_equal(a, b)

"""The published experiments carry the published numbers, and `model=NAME` brings everything that a model needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cosmos_predict.config.compose import compose
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.config.registry import list_experiments
from cosmos_predict.errors import ConfigError
from cosmos_predict.models.published import PUBLISHED, clip_for, pipe_for, published_config, published_model
from cosmos_predict.networks.dit import build_dit
from cosmos_predict.training.trainer import Trainer

V2W, AGIBOT = "predict2_video2world_training", "agibot_head_center_fisheye_color"


@dataclasses.dataclass
class Row:
    """A line of the published tables. lr: as a power of two; schedule: warm-up, cycle, f_max, f_min."""

    data: str
    lr: float
    schedule: tuple[int, int, float, float]
    context: int
    shard: int
    frames: int = 93
    size: tuple[int, int] = (704, 1280)
    decay: float = 0.1
    max_iter: int = 1000
    save_iter: int = 500
    given: tuple[int, int] = (1, 2)
    average: bool = True
    rank: int | None = None
    weights: str = "model-720p-16fps.pt"


def agibot(size: str, shard: int, fps: int = 16, **changes: Any) -> Row:
    schedule, context = {"2b": ((2000, 400_000, 0.99, 0.0), 2), "14b": ((2000, 50_000, 0.2, 0.0), 8)}[size]
    row = Row(f"{AGIBOT}/train", -15.5, schedule, context, shard, decay={"2b": 0.1, "14b": 0.2}[size])
    row = dataclasses.replace(row, max_iter=100_000, given=(1, 1), frames={10: 61, 16: 93}[fps])
    return dataclasses.replace(row, weights=f"model-720p-{fps}fps.pt", **changes)


def agibot_480p(size: str, fps: int) -> Row:
    row = agibot(size, 8, fps)
    row.size, row.weights = (432, 768), f"model-480p-{fps}fps.pt"
    return dataclasses.replace(row, context=1) if size == "2b" else row


ASSETS, CURATED = "cosmos_nemo_assets", "cosmos_predict2_video2world_dataset"
VIDEO = {
    "2b": Row(ASSETS, -14.5, (0, 1000, 0.6, 0.0), 2, 8),
    "14b": Row(ASSETS, -14.5, (0, 1000, 0.25, 0.0), 8, 32, decay=0.2),
}
IMAGE = Row(
    "cosmos_nemo_assets_images", -15, (0, 1000, 0.17, 0.0), 1, 1, 1, (768, 1360), given=(0, 0), weights="model.pt"
)
GROOT = Row(
    "benchmark_train/gr1", -14.5, (1000, 100_000, 0.2, 0.1), 1, 8, size=(432, 768), max_iter=400_000, save_iter=200
)
GROOT.average = False

TABLE: dict[str, Row] = {
    "predict2_text2image_training_2b_cosmos_nemo_assets": IMAGE,
    "predict2_text2image_training_14b_cosmos_nemo_assets": dataclasses.replace(
        IMAGE, lr=-14.5, schedule=(0, 1000, 0.4, 0.0), decay=0.2, shard=8
    ),
    f"{V2W}_2b_groot_gr1_480": GROOT,
    f"{V2W}_14b_groot_gr1_480": dataclasses.replace(GROOT, context=4, shard=32),
}
for _size, _row in VIDEO.items():
    TABLE[f"{V2W}_{_size}_cosmos_nemo_assets"] = _row
    TABLE[f"{V2W}_{_size}_video2world_data"] = dataclasses.replace(_row, data=CURATED)
    TABLE[f"predict2_video2world_lora_training_{_size}_cosmos_nemo_assets"] = dataclasses.replace(
        _row, save_iter=200, rank={"2b": 16, "14b": 32}[_size]
    )
    TABLE[f"{V2W}_{_size}_{AGIBOT}"] = agibot(_size, {"2b": 8, "14b": 32}[_size])
    for _fps in (10, 16):
        TABLE[f"{V2W}_{_size}_{AGIBOT}_720p_{_fps}fps"] = agibot(_size, 8, _fps)
        TABLE[f"{V2W}_{_size}_{AGIBOT}_480p_{_fps}fps"] = agibot_480p(_size, _fps)


@pytest.mark.parametrize("name", TABLE)
def test_published_numbers(name: str) -> None:
    row, config = TABLE[name], compose([f"experiment={name}"], report=[])
    config.validate()
    assert config.model is not None and config.dataloader_train is not None and config.optimizer is not None
    model, dataset = instantiate(config.model.config), config.dataloader_train.dataset
    task, size = name.split("_")[1], "14b" if "_14b" in name else "2b"
    assert model.pipe_config.net == published_config(f"predict2_{size}_{task}")
    assert dataset.dataset_dir == f"datasets/{row.data}" and dataset.fit == "stretch"
    assert (dataset.num_frames, tuple(dataset.video_size)) == (row.frames, row.size)
    assert config.optimizer.lr == 2**row.lr and config.optimizer.weight_decay == row.decay
    assert (list(config.optimizer.betas), config.optimizer.eps) == ([0.9, 0.99], 1e-8)
    schedule = config.scheduler
    assert schedule is not None and list(schedule.f_start) == [1e-6]
    told = (schedule.warm_up_steps[0], schedule.cycle_lengths[0], schedule.f_max[0], schedule.f_min[0])
    assert told == row.schedule
    assert config.model_parallel.context_parallel_size == row.context and model.fsdp_shard_size == row.shard
    assert (config.trainer.max_iter, config.checkpoint.save_iter) == (row.max_iter, row.save_iter)
    pipe = model.pipe_config
    assert (pipe.min_num_conditional_frames, pipe.max_num_conditional_frames) == row.given
    assert pipe.ema.enabled is row.average and pipe.ema.rate == 0.1
    assert (pipe.text_dropout, pipe.video_condition_dropout, model.loss_scale) == (0.2, 0.0, 10.0)
    assert model.high_sigma_ratio == (0.0 if task == "text2image" else 0.05)
    assert pipe.sampler["guidance"] == (4.0 if task == "text2image" else 7.0)
    assert model.train_architecture == ("base" if row.rank is None else "lora")
    if row.rank is not None:
        assert (model.lora_rank, model.lora_alpha) == (row.rank, row.rank)
    kind = {"text2image": "Text2Image", "video2world": "Video2World"}[task]
    folder = f"checkpoints/nvidia/Cosmos-Predict2-{size.upper()}-{kind}"
    assert model.model_manager_config.dit_path == f"{folder}/{row.weights}"
    assert pipe.tokenizer.path == f"{folder}/tokenizer/tokenizer.pth"
    group = "video2world_lora" if row.rank else task
    short = name.partition("training_")[2]
    assert config.job.path == f"posttraining/{group}/{short}"


def test_the_table_is_complete() -> None:
    """Every Predict2 experiment on images and single videos has its line here."""
    names = {name for name, _ in list_experiments() if name.startswith("predict2_")}
    assert {name for name in names if "multiview" not in name and "action" not in name} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_network_is_built_without_memory(name: str) -> None:
    """On the meta device, at the published size."""
    config = compose([f"experiment={name}"], report=[])
    assert config.model is not None
    net = build_dit(instantiate(config.model.config.pipe_config.net), device="meta")
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(14.265e9 if "_14b" in name else 1.956e9, rel=1e-3)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_model_choice_brings_everything(name: str) -> None:
    published = PUBLISHED[name]
    base = "model.config.model_manager_config.dit_path=base.pt"
    arguments = ["experiment=tiny_video2world", f"model={name}", "model.config.pipe_config.ema.rate=0.05"]
    config = compose([*arguments, base] if published.family == "predict2.5" else arguments, report=[])
    assert config.model is not None and config.dataloader_train is not None
    model = instantiate(config.model.config)
    ema = model.pipe_config.ema
    assert ema.rate == 0.05  # the run's own
    expected = published_model(name)
    expected.pipe_config.ema = ema
    expected.model_manager_config = model.model_manager_config
    assert model == expected
    clip, dataset = clip_for(published.family, published.task), config.dataloader_train.dataset
    assert (dataset.num_frames, tuple(dataset.video_size)) == (clip.num_frames, clip.video_size)
    assert model.loss_add_logvar is (published.family == "predict1")
    assert model.model_manager_config.dit_path.endswith(".pt")


def test_a_model_choice_leaves_nothing_of_another() -> None:
    """The order of two choices decides; the last one's sampler, given frames and loss are all there is."""
    image, video = "model=predict2_2b_text2image", "model=predict2_2b_video2world"
    one = compose(["experiment=tiny_video2world", image, video], report=[])
    other = compose(["experiment=tiny_video2world", video], report=[])
    assert one.model == other.model


def test_weights_that_no_one_published_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"model_manager_config.dit_path has no value .*dit_path=VALUE"):
        compose(["experiment=tiny_video2world", "model=predict2.5_2b_base"])


@pytest.mark.parametrize(
    ("family", "task", "expected"),
    [
        ("predict2.5", "base", {"sigma_conditional": None, "conditional_frames_probs": (0.5, 0.25, 0.25), "views": 1}),
        ("predict2", "multiview", {"views": 7, "max_num_conditional_frames": 1}),
        (
            "predict1",
            "video2world_multiview",
            {"views": 6, "augment_sigma_mean": -3.0, "max_num_conditional_frames": 2},
        ),
        ("predict2", "action", {"min_num_conditional_frames": 1, "max_num_conditional_frames": 1}),
    ],
)
def test_what_a_task_is_trained_with(family: str, task: str, expected: dict[str, Any]) -> None:
    pipe = pipe_for(family, task)
    assert {name: getattr(pipe, name) for name in expected} == expected


def test_sampler_of_multiview() -> None:
    assert pipe_for("predict2", "multiview").sampler == {"guidance": 7.0, "sigma_min": 0.01, "sigma_max": 200.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["predict1_7b_text2world", "predict1_14b_video2world", "predict2_2b_text2image", "predict2.5_2b_base"]
)
def test_any_model_trains_small(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss, given frames and text projection, on the tiny experiment's mesh and optimizer."""
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path))
    arguments = ["experiment=tiny_video2world", f"model={name}", "debug=true", "data=synthetic"]
    config = compose(arguments, report=[])
    config.validate()
    config.freeze()
    assert Trainer(config, device="cpu").train().iteration == 2

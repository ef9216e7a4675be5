"""Published Cosmos-Predict2 post-training experiments on images and single videos: one factory, one table per dataset."""

from __future__ import annotations

import dataclasses
from typing import Any

from cosmos_predict.config.debug import shrink
from cosmos_predict.config.lazy import LazyCall as L
from cosmos_predict.config.lazy import LazyDict
from cosmos_predict.config.registry import register_experiment
from cosmos_predict.models.config import EMAConfig, ModelManagerConfig
from cosmos_predict.models.published import clip_for, published_files, published_model
from experiments.callbacks import basic_callbacks

VIDEO_FOLDER = "cosmos_predict.data.video_folder.VideoFolderDataset"
IMAGE_FOLDER = "cosmos_predict.data.image_folder.ImageFolderDataset"
WEIGHT_DECAY = {"2b": 0.1, "14b": 0.2}
SHARD = {"2b": 8, "14b": 32}  # ranks over which the weights are divided
CONTEXT = {"2b": 2, "14b": 8}  # ranks that share a clip


def folder(dataset_dir: str, num_frames: int, video_size: tuple[int, int], kind: str = VIDEO_FOLDER) -> LazyDict:
    """Return a folder dataset as published: consecutive frames at the files' own rate, stretched to `video_size`."""
    return L(kind)(
        dataset_dir=dataset_dir,
        num_frames=num_frames,
        video_size=list(video_size),
        fit="stretch",
        seed="${trainer.seed}",
    )


def loader(dataset: LazyDict, batch_size: int = 1, num_workers: int = 8) -> LazyDict:
    return L("cosmos_predict.data.loader.build_dataloader")(
        dataset=dataset, batch_size=batch_size, num_workers=num_workers, pin_memory=True
    )


def post_training(
    model: str,
    *,
    name: str,
    train: LazyDict,
    val: LazyDict | None = None,
    group: str = "video2world",
    lr: float,
    schedule: tuple[int, int, float, float],
    weight_decay: float = 0.1,
    context: int = 1,
    shard: int,
    max_iter: int = 1000,
    save_iter: int = 500,
    average: bool = True,
    weights: str | None = None,
    pipe: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the recipe that post-trains the published `model` on `train`.

    schedule: warm-up updates, length of the cycle in updates, factor on `lr` at its start and at its end. average: keep an
    EMA. weights: base checkpoint, that of the published model where None. pipe, config: fields of PipeConfig and
    ModelConfig beside the published ones.
    """
    made = published_model(model)
    ema = EMAConfig(enabled=average, rate=0.1, iteration_shift=0)
    made = dataclasses.replace(
        made,
        pipe_config=dataclasses.replace(made.pipe_config, ema=ema, **(pipe or {})),
        model_manager_config=ModelManagerConfig(dit_path=weights or made.model_manager_config.dit_path),
        fsdp_shard_size=shard,
        **(config or {}),
    )
    warm_up, cycle, f_max, f_min = schedule
    return {
        "job": {"project": "posttraining", "group": group, "name": name},
        "model": L("cosmos_predict.models.build.build_world_model")(config=made),
        "optimizer": L("cosmos_predict.training.optimizers.adamw")(
            lr=lr, weight_decay=weight_decay, betas=[0.9, 0.99], eps=1e-8
        ),
        "scheduler": L("cosmos_predict.training.schedulers.LambdaLinearScheduler")(
            warm_up_steps=[warm_up], cycle_lengths=[cycle], f_start=[1e-6], f_max=[f_max], f_min=[f_min]
        ),
        "dataloader_train": train,
        "dataloader_val": val,
        "trainer": {
            "max_iter": max_iter,
            "compute_dtype": "bfloat16",
            "activation_checkpointing": "selective",
            "logging_iter": 10,
            "callbacks": basic_callbacks(),
        },
        "model_parallel": {"context_parallel_size": context},
        "checkpoint": {"save_iter": save_iter},
    }


def text2image(size: str) -> dict[str, Any]:
    images = folder(
        "datasets/cosmos_nemo_assets_images", 1, clip_for("predict2", "text2image").video_size, IMAGE_FOLDER
    )
    return post_training(
        f"predict2_{size}_text2image",
        group="text2image",
        name=f"{size}_cosmos_nemo_assets",
        train=loader(images),
        lr={"2b": 2**-15, "14b": 2**-14.5}[size],
        schedule=(0, 1000, {"2b": 0.17, "14b": 0.4}[size], 0.0),
        weight_decay=WEIGHT_DECAY[size],
        shard={"2b": 1, "14b": 8}[size],
    )


def video2world(size: str, data: str, dataset_dir: str, **changes: Any) -> dict[str, Any]:
    """Return the 720p, 16 fps recipe of one size on a folder of clips."""
    clip = clip_for("predict2", "video2world")
    settings: dict[str, Any] = {
        "name": f"{size}_{data}",
        "train": loader(folder(dataset_dir, clip.num_frames, clip.video_size)),
        "lr": 2**-14.5,
        "schedule": (0, 1000, {"2b": 0.6, "14b": 0.25}[size], 0.0),
        "weight_decay": WEIGHT_DECAY[size],
        "context": CONTEXT[size],
        "shard": SHARD[size],
    }
    return post_training(f"predict2_{size}_video2world", **{**settings, **changes})


def lora(size: str) -> dict[str, Any]:
    rank = {"2b": 16, "14b": 32}[size]
    return video2world(
        size,
        "cosmos_nemo_assets",
        "datasets/cosmos_nemo_assets",
        group="video2world_lora",
        save_iter=200,
        config={"train_architecture": "lora", "lora_rank": rank, "lora_alpha": rank},
    )


def agibot(size: str, resolution: str = "720p", fps: str = "16fps", suffix: str = "") -> dict[str, Any]:
    """Return the recipe on windows of AgiBot's fisheye camera. The weights are those made for its resolution and rate."""
    frames, data = {"10fps": 61, "16fps": 93}[fps], "agibot_head_center_fisheye_color"
    video_size = {"480p": (432, 768), "720p": (704, 1280)}[resolution]
    train, val = (
        loader(folder(f"datasets/{data}/{part}", frames, video_size), num_workers=4) for part in ("train", "val")
    )
    base = published_files(f"predict2_{size}_video2world")[0].rpartition("/")[0]
    # 14B keeps CP 8 at 480p: whole clips would take 40 GiB of activations beside 36 of state, more than 80 GB (forecast).
    changes: dict[str, Any] = {"context": 1} if (size, resolution) == ("2b", "480p") else {}
    if suffix and size == "14b":
        changes["shard"] = 8
    return video2world(
        size,
        data + suffix,
        "",
        train=train,
        val=val,
        lr=2**-15.5,
        schedule={"2b": (2000, 400_000, 0.99, 0.0), "14b": (2000, 50_000, 0.2, 0.0)}[size],
        max_iter=100_000,
        weights=f"{base}/model-{resolution}-{fps}.pt",
        pipe={"min_num_conditional_frames": 1, "max_num_conditional_frames": 1},
        **changes,
    )


def groot(size: str) -> dict[str, Any]:
    return video2world(
        size,
        "groot_gr1_480",
        "",
        train=loader(folder("datasets/benchmark_train/gr1", 93, (432, 768))),
        schedule=(1000, 100_000, 0.2, 0.1),
        weight_decay=0.1,
        context={"2b": 1, "14b": 4}[size],
        max_iter=400_000,
        save_iter=200,
        average=False,
    )


def _register(name: str, make: Any, summary: str) -> None:
    register_experiment(f"predict2_{name}", make, summary=f"Predict2 {summary}", debug=shrink)


for _size in ("2b", "14b"):
    _model, _agibot = _size.upper(), f"video2world_training_{_size}_agibot_head_center_fisheye_color"
    _register(
        f"text2image_training_{_size}_cosmos_nemo_assets",
        lambda size=_size: text2image(size),
        f"{_model} Text2Image, images 768x1360",
    )
    for _data in ("cosmos_nemo_assets", "video2world_data"):
        _dir = {"video2world_data": "cosmos_predict2_video2world_dataset"}.get(_data, _data)
        _register(
            f"video2world_training_{_size}_{_data}",
            lambda size=_size, data=_data, path=f"datasets/{_dir}": video2world(size, data, path),
            f"{_model} Video2World, 93 frames 704x1280",
        )
    _register(
        f"video2world_lora_training_{_size}_cosmos_nemo_assets",
        lambda size=_size: lora(size),
        f"{_model} Video2World, LoRA, 93 frames 704x1280",
    )
    _register(_agibot, lambda size=_size: agibot(size), f"{_model} Video2World on AgiBot fisheye, 93 frames 704x1280")
    for _resolution in ("480p", "720p"):
        for _fps in ("10fps", "16fps"):
            _suffix = f"_{_resolution}_{_fps}"
            _register(
                _agibot + _suffix,
                lambda arguments=(_size, _resolution, _fps, _suffix): agibot(*arguments),
                f"{_model} Video2World on AgiBot fisheye, {_resolution}, weights of {_fps[:2]} fps",
            )
    _register(
        f"video2world_training_{_size}_groot_gr1_480",
        lambda size=_size: groot(size),
        f"{_model} Video2World on GR00T GR1, 93 frames 432x768",
    )

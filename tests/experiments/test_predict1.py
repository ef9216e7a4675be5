"""The Predict1 and NeMo experiments carry the published numbers."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from cosmos_predict.config.compose import compose
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.config.registry import list_experiments
from cosmos_predict.errors import ConfigError
from cosmos_predict.models.published import published_config
from cosmos_predict.networks.dit import build_dit

FOREVER = 10**13


@dataclasses.dataclass
class Row:
    """A line of the published tables. schedule: warm-up, cycle, f_max, f_min; given: drawn numbers of given latent frames
    and, of their noise, mean and standard deviation of the logarithm and a factor."""

    data: str
    lr: float = 2**-14.3
    schedule: tuple[int, int, float, float] = (2500, FOREVER, 1.0, 1.0)
    decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-10
    context: int = 1
    tensor: int = 1
    shard: int = 32
    frames: int = 121
    size: tuple[int, int] = (704, 1280)  # the latent shape that the published files state; their clips were 720 high
    max_iter: int = 2000
    save_iter: int = 200
    accumulate: int = 1
    checkpointing: str = "full"
    average: bool = True
    rank: int | None = None
    group: str = ""
    given: tuple[int, int] = (0, 2)
    noise: tuple[float, float, float] = (-3.0, 2.0, 1.0)
    dropout: float = 0.0
    adjust: bool | None = None  # None: Video2World and the 14B


HDVILA, ASSETS = Row("datasets/hdvila"), Row("datasets/cosmos_nemo_assets")
LARGE = {"lr": 2**-16, "schedule": (2500, 90_000, 1.0, 0.1), "decay": 0.2, "eps": 1e-11, "shard": 64, "context": 8}
LORA = {"lr": 1e-4, "schedule": (0, FOREVER, 1.0, 1.0), "shard": 1, "context": 4, "max_iter": 5000, "save_iter": 1000}
SQUARE = (384, 384)
TABLE = {
    "text2world_7b_example_hdvila": dataclasses.replace(HDVILA, accumulate=2),
    "text2world_14b_example_hdvila": dataclasses.replace(HDVILA, checkpointing="selective", **LARGE),
    "text2world_14b_example_cosmos_nemo_assets": dataclasses.replace(ASSETS, checkpointing="selective", **LARGE),
    "video2world_7b_example_hdvila": HDVILA,
    "video2world_instruction_bridge_57frames": Row(
        "datasets/bridge",
        frames=57,
        size=(256, 320),
        save_iter=500,
        checkpointing="none",
        group="diffusion_video2world_instruction",
        given=(0, 1),
        noise=(0.0, 1.0, 4.0),
        dropout=0.2,
        adjust=False,
    ),
}
for _task, _short, _small in (("text2world_7b", 33, (17, SQUARE)), ("video2world_7b", 25, (25, (192, 192)))):
    _name = f"{_task}_example_cosmos_nemo_assets"
    TABLE[_name] = ASSETS
    TABLE[f"{_name}_4gpu_80gb"] = dataclasses.replace(ASSETS, size=SQUARE)
    TABLE[f"{_name}_8gpu_40gb"] = dataclasses.replace(ASSETS, frames=_short, size=SQUARE, average=False)
    TABLE[f"{_name}_4gpu_40gb"] = dataclasses.replace(ASSETS, frames=_small[0], size=_small[1], average=False)
    TABLE[f"{_task}_lora_example_cosmos_nemo_assets"] = dataclasses.replace(
        ASSETS, size=(480, 848), rank=8, checkpointing="selective", **LORA
    )
for _size in ("7b", "14b"):
    for _task in ("text2world", "video2world"):
        TABLE[f"cosmos_diffusion_{_size}_{_task}_finetune"] = Row(
            "video_dataset_cached",
            lr=1e-6,
            schedule=(0, FOREVER, 1.0, 1.0),
            decay=0.0,
            betas=(0.9, 0.999),
            eps=1e-8,
            tensor=8,
            shard=1,
            max_iter=1000,
            given=(1, 4),
            noise=(math.log(0.001), 0.0, 1.0),
            adjust=False,
        )


@pytest.mark.parametrize("name", TABLE)
def test_published_numbers(name: str) -> None:
    row, config = TABLE[name], compose([f"experiment={name}"], report=[])
    config.validate()
    assert config.model is not None and config.dataloader_train is not None and config.optimizer is not None
    model, dataset, trainer = instantiate(config.model.config), config.dataloader_train.dataset, config.trainer
    pipe, nemo = model.pipe_config, name.startswith("cosmos_diffusion")
    task = "video2world" if "video2world" in name else "text2world"
    size = "14b" if "_14b_" in name else "7b"
    assert pipe.net == published_config(f"predict1_{size}_{task}")
    assert dataset.dataset_dir == row.data and dataset.seed == (1234 if nemo else 0)
    assert (dataset.num_frames, tuple(dataset.video_size)) == (row.frames, row.size)
    optimizer, schedule, parallel = config.optimizer, config.scheduler, config.model_parallel
    assert (optimizer.lr, optimizer.weight_decay, optimizer.eps) == (row.lr, row.decay, row.eps)
    assert tuple(optimizer.betas) == row.betas
    assert schedule is not None and list(schedule.f_start) == [1e-6]
    told = (schedule.warm_up_steps[0], schedule.cycle_lengths[0], schedule.f_max[0], schedule.f_min[0])
    assert told == row.schedule
    assert (parallel.context_parallel_size, parallel.tensor_model_parallel_size) == (row.context, row.tensor)
    assert parallel.sequence_parallel is (row.tensor > 1) and model.fsdp_shard_size == row.shard
    assert (trainer.max_iter, trainer.grad_accum_iter) == (row.max_iter, row.accumulate)
    assert trainer.global_batch_size == (1 if nemo else None) and config.dataloader_train.batch_size == 1
    assert (trainer.activation_checkpointing, trainer.compute_dtype) == (row.checkpointing, "bfloat16")
    assert (config.checkpoint.type, config.checkpoint.save_iter) == ("predict1", row.save_iter)
    assert model.adjust_video_noise is ((task == "video2world" or size == "14b") if row.adjust is None else row.adjust)
    assert (model.p_mean, model.p_std, model.loss_reduce, model.loss_add_logvar) == (0.0, 1.0, "mean", True)
    assert (pipe.family, pipe.text_dropout, pipe.ema.enabled, pipe.ema.rate) == ("predict1", 0.2, row.average, 0.1)
    if task == "video2world":
        assert (pipe.min_num_conditional_frames, pipe.max_num_conditional_frames) == row.given
        noise = (pipe.augment_sigma_mean, pipe.augment_sigma_std, pipe.augment_sigma_multiplier)
        assert noise == row.noise and pipe.video_condition_dropout == row.dropout
        assert pipe.condition_on_augment_sigma is False and pipe.on_condition_drop == "zero"
    assert model.train_architecture == ("lora" if row.rank else "base")
    if row.rank:
        adapters = (model.lora_rank, model.lora_alpha, model.lora_target_modules)
        assert adapters == (row.rank, row.rank, "q_proj,v_proj")
    folder = {"text2world": "Text2World", "video2world": "Video2World"}[task]
    assert model.model_manager_config.dit_path == f"checkpoints/Cosmos-Predict1-{size.upper()}-{folder}/model.pt"
    assert config.model.get("with_tokenizer", True) is not nemo
    assert config.job.path == f"posttraining/{row.group or f'diffusion_{task}'}/{name}"


def test_the_table_is_complete() -> None:
    """Every single-view experiment of the first generation has its line here."""
    names = {n for n, _ in list_experiments() if re.match(r"(cosmos_diffusion|text2world|video2world)_", n)}
    others = re.compile("multiview|action|camera")
    assert {name for name in names if not others.search(name)} == set(TABLE)


@pytest.mark.parametrize(("size", "billions"), [("7b", 7.236), ("14b", 14.267)])
def test_network_is_built_without_memory(size: str, billions: float) -> None:
    config = compose([f"experiment=cosmos_diffusion_{size}_text2world_finetune"], report=[])
    assert config.model is not None
    net = build_dit(instantiate(config.model.config.pipe_config.net), device="meta")
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(billions * 1e9, rel=1e-3)


def test_the_environment_stands_between_recipe_and_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = "experiment=cosmos_diffusion_14b_video2world_finetune"
    monkeypatch.setenv("GLOBAL_BATCH_SIZE", "64")
    monkeypatch.setenv("TENSOR_MODEL_PARALLEL_SIZE", "4")
    monkeypatch.setenv("NUM_LAYERS", "2")
    monkeypatch.setenv("OUTPUT_ROOT", "elsewhere")
    assert compose([experiment]).job.path_local.startswith("elsewhere/posttraining/")
    monkeypatch.setenv("EXP_DIR", "mine")
    config = compose([experiment])
    assert config.model is not None and config.model.config.pipe_config.net.num_blocks == 2
    assert config.trainer.global_batch_size == 64 and config.model_parallel.tensor_model_parallel_size == 4
    assert config.job.path_local.startswith("mine/posttraining/")
    config = compose([experiment, "data.global_batch_size=16", "log.log_dir=typed", "model.config.num_layers=3"])
    assert config.trainer.global_batch_size == 16 and config.job.path_local.startswith("typed/posttraining/")
    assert config.model is not None and config.model.config.pipe_config.net.num_blocks == 3
    monkeypatch.setenv("TENSOR_MODEL_PARALLEL_SIZE", "1")
    assert compose([experiment]).model_parallel.sequence_parallel is False
    monkeypatch.setenv("NUM_LAYERS", "many")
    with pytest.raises(ConfigError, match=r"NUM_LAYERS='many': expected a whole number of at least 1"):
        compose([experiment])
    assert compose(["experiment=text2world_7b_example_hdvila"]).trainer.global_batch_size is None  # NeMo's alone


def test_debug_takes_cached_latents_as_they_are() -> None:
    config = compose(["experiment=cosmos_diffusion_7b_video2world_finetune", "debug=true"], report=[])
    assert config.dataloader_train is not None and config.model is not None
    assert config.dataloader_train.dataset.num_frames is None and config.dataloader_train.dataset.video_size is None
    assert config.model.config.pipe_config.tokenizer.options == {"channels": 16, "temporal": 8}
    assert config.model_parallel.sequence_parallel is False
    pixels = compose(
        ["experiment=cosmos_diffusion_7b_video2world_finetune", "debug=true", "data=video_folder"], report=[]
    )
    assert pixels.dataloader_train is not None and pixels.dataloader_train.dataset.num_frames == 5
    assert pixels.model is not None and pixels.model.with_tokenizer is True

"""From a checkpoint path to a world model that can sample: run folder, file inside one, or published file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from loguru import logger

from cosmos_predict.checkpoint.load import load_state
from cosmos_predict.checkpoint.metadata import network_config
from cosmos_predict.checkpoint.recognise import recognise
from cosmos_predict.checkpoint.run_folder import RunFolder, find_run_folder, published_file
from cosmos_predict.config.files import load_config
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.errors import ConfigError
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.models.build import build_world_model
from cosmos_predict.models.config import ModelConfig, PipeConfig, TokenizerConfig
from cosmos_predict.models.world_model import WorldModel

# What each family was published with, where no run folder says otherwise: tokenizer, frames, (height, width), fps.
PUBLISHED_DEFAULTS = {
    "predict1": ("cosmos_cv8x8x8", 121, (704, 1280), 24.0),
    "predict2": ("wan2.1", 93, (704, 1280), 16.0),
    "predict2.5": ("wan2.1", 93, (704, 1280), 16.0),
}


@dataclasses.dataclass
class LoadedModel:
    """A world model with the clip it was made for: frames, (height, width) in pixels, frames per second; and its files."""

    model: WorldModel
    num_frames: int
    video_size: tuple[int, int]
    fps: float
    checkpoint: Path
    run: RunFolder | None


def load_world_model(
    dit_path: str | Path,
    *,
    load_ema: bool = False,
    tokenizer_path: str = "",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Return the model of `dit_path` with its weights.

    dit_path: a run folder (its newest complete iteration), a file inside one (its `config.yaml` says the rest), or a
    published `.pt` / `.safetensors`, whose family, size and task are told from its tensors. tokenizer_path: weights of the
    video tokenizer; default is what the run's config says, or `tokenizer/` beside a published file.

    Raises FileNotFoundError, CheckpointError or ConfigError saying what is missing.
    """
    path = Path(dit_path)
    checkpoint = published_file(path, load_ema)
    run = find_run_folder(path)
    config, num_frames, video_size, fps = _from_run(run) if run is not None else _from_published(checkpoint)
    if tokenizer_path:
        config.pipe_config.tokenizer.path = tokenizer_path
    model = build_world_model(config, device=device, dtype=dtype, init=False)
    with TensorFile(checkpoint) as source:
        load_state(model.net, source, ema=load_ema, where=checkpoint)
    logger.info("{}: {} weights", checkpoint, "EMA" if load_ema else "regular")
    return LoadedModel(model.eval(), num_frames, video_size, fps, checkpoint, run)


def _from_run(run: RunFolder) -> tuple[ModelConfig, int, tuple[int, int], float]:
    config = load_config(run.root / "config.yaml")
    if config.model is None or config.dataloader_train is None:
        raise ConfigError(f"{run.root / 'config.yaml'} describes no model or data")
    dataset = config.dataloader_train.dataset
    model = instantiate(config.model.config)
    model.loss_add_logvar = False  # the log-variance head weighs training losses only
    height, width = dataset.video_size
    return model, int(dataset.get("num_frames", 1)), (int(height), int(width)), float(dataset.get("fps") or 16.0)


def _from_published(path: Path) -> tuple[ModelConfig, int, tuple[int, int], float]:
    with TensorFile(path) as file:
        found = recognise(file)
        net = network_config(found, file)
    tokenizer, num_frames, size, fps = PUBLISHED_DEFAULTS[found.family]
    beside = path.parent / "tokenizer"
    weights = next((str(p) for p in (beside / "tokenizer.pth", beside) if p.exists()), "")
    pipe = PipeConfig(net=net, family=found.family, tokenizer=TokenizerConfig(tokenizer, weights))
    if not weights:
        logger.warning("no tokenizer beside {}: give --tokenizer_path", path)
    return ModelConfig(pipe_config=pipe), num_frames, size, fps

"""From a checkpoint path to a world model that can sample: run folder, file inside one, or published file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from cosmos_predict.checkpoint.load import load_network
from cosmos_predict.checkpoint.lora_forms import read_adapter
from cosmos_predict.checkpoint.lora_runs import adapter_folder, file_hash, load_adapters
from cosmos_predict.checkpoint.metadata import network_config
from cosmos_predict.checkpoint.recognise import recognise
from cosmos_predict.checkpoint.run_folder import find_run_folder, published_file
from cosmos_predict.config.files import load_config
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.data.transforms import RESOLUTION_BUCKETS
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.models.build import build_world_model
from cosmos_predict.models.config import ModelConfig, TokenizerConfig
from cosmos_predict.models.published import ClipSize, clip_for, pipe_for, published_files
from cosmos_predict.models.sampling import SamplerSettings
from cosmos_predict.models.world_model import WorldModel
from cosmos_predict.tokenizers.load import TOKENIZERS

PUBLISHED_NAME = re.compile(r"model-(480|720)p-(\d+)fps")
# Predict2.5's post-trained 2B is told from its base by its name alone: other sigmas, given frames at their own level.
POST_TRAINED = re.compile(r"81edfebe|post-trained")


@dataclasses.dataclass
class Checkpoint:
    """What a checkpoint path stands for. `prepare` gives it a `model` that has no weights yet, `load` these.

    path: its file; ema: which of its weights; clip: frames, (height, width) in pixels and frames per second that the model
    was made for; settings: what it is sampled with; loras: adapter folders or files, lora_ema which of their weights.
    """

    path: Path
    ema: bool
    config: ModelConfig
    clip: ClipSize
    loras: tuple[Path, ...] = ()
    lora_ema: bool = False
    model: WorldModel = dataclasses.field(init=False)
    settings: SamplerSettings = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.settings = SamplerSettings.for_pipe(self.config.pipe_config)

    def prepare(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> WorldModel:
        """Make `model`: its tokenizer on `device`, its network on the meta device. ConfigError for a tokenizer not there."""
        tokenizer = self.config.pipe_config.tokenizer
        place = tokenizer.path or ("" if tokenizer.name == "dct" else f"{self.path.parent}/tokenizer")
        if place and not (tokenizer.path and Path(place).exists()):
            raise ConfigError(
                f"no weights of the video tokenizer {tokenizer.name!r} at {place}: give --tokenizer_path FILE, or, where the "
                "checkpoint was moved away from its run, --config RUN/config.yaml"
            )
        if dtype == torch.bfloat16 and tokenizer.name != "dct" and tokenizer.dtype is None:
            tokenizer.dtype = "bfloat16"  # what the published pipelines run it in
        self.model = build_world_model(self.config, device=device, dtype=dtype, init=False, net_device="meta").eval()
        return self.model

    def load(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """Give `model` its network with weights and adapters, on `device`."""
        net = load_network(self.path, ema=self.ema, device=device, dtype=dtype, config=self.model.net.config)
        self.model.net = net.eval().requires_grad_(False)
        for adapter in load_adapters(net, self.loras, ema=self.lora_ema) if self.loras else ():
            logger.info("{}: adapters of {} layers", adapter.where, len(adapter.layers))
        logger.info("{}: {} weights", self.path, "EMA" if self.ema else "regular")

    def hash(self) -> str:
        """Return `sha256:HEX` of the file; warn of adapters that were trained beside another one."""
        mark = file_hash(self.path, self.ema)
        for path in self.loras:
            said = read_adapter(path, ema=self.lora_ema).base_hash
            if said and said != mark:
                logger.warning("{}: trained beside a base {}, {} is {}", path, said, self.path, mark)
        return mark


def load_world_model(
    dit_path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, **options: Any
) -> Checkpoint:
    """Return the checkpoint of `dit_path` with its `model`, weights read; `options` are those of `read_checkpoint`."""
    found = read_checkpoint(dit_path, **options)
    found.prepare(device, dtype)
    found.load(device, dtype)
    return found


def read_checkpoint(
    dit_path: str | Path,
    *,
    load_ema: bool = False,
    config: str | Path = "",
    tokenizer_path: str = "",
    lora_paths: Sequence[str | Path] = (),
) -> Checkpoint:
    """Tell what `dit_path` is; reads names and configurations only.

    dit_path: a run folder (its newest complete iteration), a file inside one or copied out of one together with its
    `config.yaml` (which says the rest), or any other `.pt`, `.safetensors` or diffusers folder, whose family, size
    and task are told from its tensors. config: the `config.yaml` of its run, for a file that was moved away.
    tokenizer_path: weights of the video tokenizer, or a name ("dct"); by default what the config says, or
    `tokenizer/` beside a published file. lora_paths: see `adapter_folder`. With adapters `load_ema` means theirs; the
    base's weights are those that they were trained beside.

    Raises FileNotFoundError, CheckpointError or ConfigError saying what is missing.
    """
    loras = tuple(adapter_folder(path, load_ema) for path in lora_paths)
    bases = [read_adapter(path, ema=load_ema).base_hash or "" for path in loras]
    ema = any(base.endswith("#ema") for base in bases) if loras else load_ema
    path = published_file(dit_path, ema)
    run = find_run_folder(path)
    beside = (path if path.is_dir() else path.parent) / "config.yaml"
    config = config or (run.root / "config.yaml" if run else beside if beside.is_file() else "")
    model, clip = _from_config(Path(config)) if config else _from_published(path)
    if tokenizer_path in TOKENIZERS and tokenizer_path != model.pipe_config.tokenizer.name:
        model.pipe_config.tokenizer = TokenizerConfig(tokenizer_path)  # options belong to the other one
    elif tokenizer_path not in TOKENIZERS:
        model.pipe_config.tokenizer.path = tokenizer_path or model.pipe_config.tokenizer.path
    return Checkpoint(path, ema, model, clip, loras, load_ema)


def _from_config(file: Path) -> tuple[ModelConfig, ClipSize]:
    config = load_config(file)
    if config.model is None or config.dataloader_train is None or config.model.config.pipe_config.net is None:
        raise ConfigError(f"{file} describes no model or data")
    dataset = config.dataloader_train.dataset
    model = instantiate(config.model.config)
    model.loss_add_logvar = False  # the log-variance head weighs training losses only
    made_for = clip_for(model.pipe_config.family, "video2world")
    size, frames = dataset.get("video_size"), dataset.get("num_frames", 1)
    if frames is None and Path(dataset.dataset_dir).is_dir():  # a cache of latents, which says it itself
        made = instantiate(dataset)
        size, frames = made.video_size, made.num_frames
    height, width = size or made_for.video_size
    fps = float(dataset.get("fps") or made_for.fps)
    return model, ClipSize(int(frames or made_for.num_frames), (int(height), int(width)), fps)


def _from_published(path: Path) -> tuple[ModelConfig, ClipSize]:
    with TensorFile(path) as file:
        found = recognise(file)
        net = network_config(found, file)
    task = found.task
    if found.name is None:
        what = f"taken for a {found.family} {task}"
        logger.warning("{}: no published network, {}; if it is not: --config RUN/config.yaml", path, what)
        if found.family == "predict2" and task == "text2world":
            task = "text2image"  # the only Predict2 model without given frames
    for mark, what in (
        ("_fast_tokenizer", "its tokenizer is a published program"),
        ("-natten", "its attention is sparse"),
    ):
        if mark in path.name:
            raise CheckpointError(f"{path}: {what} and not built here; use {path.name.replace(mark, '')} beside it")
    pipe, clip = pipe_for(found.family, task, net), clip_for(found.family, task)
    pipe.condition_on_augment_sigma = any(control.name == "augment_sigma" for control in net.controls)
    if (match := PUBLISHED_NAME.search(path.name)) and task == "video2world":
        width, height = RESOLUTION_BUCKETS[match[1]]["16:9"]
        clip = ClipSize(61 if match[2] == "10" else clip.num_frames, (height, width), float(match[2]))
    if found.family == "predict2.5" and POST_TRAINED.search(str(path)):
        pipe.sigma_conditional = 1e-4
        pipe.sampler = {"shift": None, "sigma_min": 0.01, "sigma_max": 200.0}
    beside = path.parent / "tokenizer"
    places = [beside / "tokenizer.pth", beside]
    if found.name or found.family == "predict1":
        published = Path(published_files(found.name or "predict1_7b_text2world")[1])
        places += [path.parent.parent / published.name, published]  # Predict1's lie side by side, in any folder
    pipe.tokenizer.path = next((str(place) for place in places if place.exists()), "")
    return ModelConfig(pipe_config=pipe), clip

"""From a checkpoint path to a world model that can sample: run folder, file inside one, or published file."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from cosmos_predict.checkpoint.load import load_network
from cosmos_predict.checkpoint.lora_forms import CONFIG_FILE, is_adapter_key, read_adapter
from cosmos_predict.checkpoint.lora_runs import adapter_folder, file_hash, load_adapters, network_kind
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
from cosmos_predict.networks.sparse_attention import published_layers
from cosmos_predict.tokenizers.load import TOKENIZERS

PUBLISHED_NAME = re.compile(r"model-(480|720)p-(\d+)fps")
# Predict2.5's post-trained 2B is told from its base by its name alone: other sigmas, given frames at their own level.
POST_TRAINED = re.compile(r"81edfebe|post-trained")


@dataclasses.dataclass
class Checkpoint:
    """What a checkpoint path stands for. `prepare` gives it a `model` that has no weights yet, `load` these.

    path: its file; ema: which of its weights; clip: frames, (height, width) in pixels and frames per second that the model
    was made for; settings: what it is sampled with; loras: adapter folders or files, lora_ema which of their weights;
    lora_alpha: of adapters inside the file (None: their rank).
    """

    path: Path
    ema: bool
    config: ModelConfig
    clip: ClipSize
    loras: tuple[Path, ...] = ()
    lora_ema: bool = False
    lora_alpha: float | None = None
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
        where = {"ema": self.ema, "device": device, "dtype": dtype}
        net = load_network(self.path, **where, config=self.model.net.config, lora_alpha=self.lora_alpha)
        self.model.net = net.eval().requires_grad_(False)
        for adapter in load_adapters(net, self.loras, ema=self.lora_ema) if self.loras else ():
            logger.info("{}: adapters of {} layers", adapter.where, len(adapter.layers))
        logger.info("{}: {} weights", self.path, "EMA" if self.ema else "regular")

    def expect_lora(self, rank: int | None, alpha: float | None) -> None:
        """Take `alpha` for adapters inside the file. Raises ConfigError where no adapters are, or ones of another `rank`,
        or, beside the file, of another alpha.
        """
        self.lora_alpha, adapters = alpha, [read_adapter(path, ema=self.lora_ema) for path in self.loras]
        for adapter in adapters:
            if alpha and {*adapter.alpha.values()} != {alpha}:
                said = ", ".join(f"{value:g}" for value in sorted({*adapter.alpha.values()}))
                raise ConfigError(f"--lora_alpha {alpha:g}: {adapter.where} says {said} of its adapters; leave it out")
        with TensorFile(self.path) as file:
            if any(map(is_adapter_key, file)):
                adapters.append(read_adapter(file, ema=self.ema))
        if not adapters:
            what = "give adapters as --lora_path, or leave out --use_lora, --lora_rank and --lora_alpha"
            raise ConfigError(f"{self.path} holds no LoRA adapters: {what}")
        for adapter in adapters:
            if rank and (ranks := {adapter.rank(module) for module in adapter.layers}) != {rank}:
                raise ConfigError(f"--lora_rank {rank}: the adapters of {adapter.where} have {sorted(ranks)}")

    def encoder(self, given: str) -> str:
        """Return the name, folder or hub name of its text encoder: `given`, or what its configuration says."""
        return given or self.config.pipe_config.text_encoder

    def place(self) -> str:
        """Return the name or file of its video tokenizer."""
        return self.config.pipe_config.tokenizer.path or self.config.pipe_config.tokenizer.name

    def hash(self) -> str:
        """Return `sha256:HEX` of the file; warn of adapters that were trained beside another one."""
        mark = file_hash(self.path, self.ema)
        for path in self.loras:
            said = read_adapter(path, ema=self.lora_ema).base_hash
            if said and said != mark:
                logger.warning("{}: trained beside a base {}, {} is {}", path, said, self.path, mark)
        return mark


def content_hash(path: str | Path) -> str:
    """Return `sha256:HEX` of a file, as `sha256sum` prints it, or over names and hashes of several: a folder's weights and
    settings, and what is read from beside a file (an adapter's configuration, a tokenizer's statistics).
    """
    path = Path(path)
    files = [path, *(path.parent / name for name in (CONFIG_FILE, "mean_std.pt"))]
    if path.is_dir():
        kinds = (".safetensors", ".pt", ".pth", ".bin", ".jit", ".json")
        files = [file for file in sorted(path.iterdir()) if file.suffix in kinds]
    found = {file: file_hash(file) for file in files if file.is_file()}
    if [*found] == [path]:
        return found[path]
    return f"sha256:{hashlib.sha256(str([(file.name, mark) for file, mark in found.items()]).encode()).hexdigest()}"


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
    natten: bool = False,
) -> Checkpoint:
    """Tell what `dit_path` is; reads names and configurations only.

    dit_path: a run folder (its newest complete iteration), a file inside one or copied out of one together with its
    `config.yaml` (which says the rest), or any other `.pt`, `.safetensors` or diffusers folder, whose family, size
    and task are told from its tensors. config: the `config.yaml` of its run, for a file that was moved away.
    tokenizer_path: weights of the video tokenizer, or a name ("dct"); by default what the config says, or
    `tokenizer/` beside a published file. lora_paths: see `adapter_folder`. With adapters `load_ema` means theirs; the
    base's weights are those that they were trained beside. natten: its attention is sparse, in the published layers; a
    file's name (`...-natten.pt`) or its config may say so too.

    Raises FileNotFoundError, CheckpointError or ConfigError saying what is missing.
    """
    loras = tuple(adapter_folder(path, load_ema) for path in lora_paths)
    adapters = [read_adapter(path, ema=load_ema) for path in loras]
    ema = any((adapter.base_hash or "").endswith("#ema") for adapter in adapters) if loras else load_ema
    path = published_file(dit_path, ema)
    run = find_run_folder(path)
    beside = (path if path.is_dir() else path.parent) / "config.yaml"
    config = config or (run.root / "config.yaml" if run else beside if beside.is_file() else "")
    model, clip = _from_config(Path(config)) if config else _from_published(path)
    net = model.pipe_config.net
    if (natten or "-natten" in path.name) and net is not None and not net.sparse_attention:
        model.pipe_config.net = net.replace(sparse_attention=published_layers(net.num_blocks))
    if tokenizer_path in TOKENIZERS and tokenizer_path != model.pipe_config.tokenizer.name:
        model.pipe_config.tokenizer = TokenizerConfig(tokenizer_path)  # options belong to the other one
    elif tokenizer_path not in TOKENIZERS:
        model.pipe_config.tokenizer.path = tokenizer_path or model.pipe_config.tokenizer.path
    for adapter in adapters:
        if adapter.made_for not in (None, kind := network_kind(model.pipe_config)):
            what = f"adapters of a {adapter.made_for} network, and {path} is a {kind} network"
            raise CheckpointError(f"{adapter.where}: {what}: give the base that they were trained beside as --dit_path")
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
    if (mark := "_fast_tokenizer") in path.name:
        what = f"its tokenizer is a published program and not built here; use {path.name.replace(mark, '')} beside it"
        raise CheckpointError(f"{path}: {what}")
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

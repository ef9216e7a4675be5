"""`debug=true`: the same experiment small enough for any machine. Works on config trees; imports no torch.

`shrink` is what an experiment registers; `fit_ranks` then lowers the parallel sizes, after the leaves, so that it knows
the frames and heads that the run will have. What a leaf of the command line sets is never changed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig

from cosmos_predict.config.schema import Config
from cosmos_predict.errors import ConfigError

LATENT_CHANNELS = 16
HEADS = 8
FRAMES = 5  # 2 latent frames
TEMPORAL, SPATIAL = 4, 8  # frames, and pixels of a side, that the DCT tokenizer makes one of


def shrink(config: DictConfig, _report: list[str]) -> None:
    """Shrink network, frames, size and steps in place; weight-free tokenizer and text encoder; no base checkpoint."""
    config.job.debug = True
    config.job.name = f"{config.job.name.removesuffix('_debug')}_debug"  # never in the folder of a real run
    pipe = config.model.config.pipe_config
    net = pipe.net
    net.update({"model_channels": HEADS * 16, "num_blocks": 1, "num_heads": HEADS, "adaln_lora_dim": 8})
    channels = [[name, LATENT_CHANNELS if name == "latent" else size] for name, size in net.input_channels]
    net.update({"input_channels": channels, "out_channels": LATENT_CHANNELS})
    net.update({"attention_backend": "sdpa", "sparse_attention": ""})
    if net.crossattn_proj_in_channels is not None:  # the tiny text encoder's width, whatever the real one's
        net.update({"crossattn_proj_in_channels": 1024, "crossattn_emb_channels": HEADS * 16})
    pipe.tokenizer.update({"name": "dct", "path": "", "options": {"channels": LATENT_CHANNELS}, "dtype": None})
    pipe.text_encoder, pipe.state_t = "tiny", None
    config.model.config.model_manager_config.dit_path = ""
    config.checkpoint.load_path = ""
    for name in ("dataloader_train", "dataloader_val"):
        loader = config.get(name)
        if loader is None or loader.get("dataset") is None:
            continue
        loader.update({"batch_size": 1, "num_workers": 0, "pin_memory": False})
        if str(loader.dataset._target_).endswith("NemoCacheDataset"):  # latents are as they are
            loader.dataset.update({"num_frames": None, "video_size": None, "tokenizer": None})
            pipe.tokenizer.options = {"channels": LATENT_CHANNELS, "temporal": 8}  # what prepared them, without weights
            config.model_parallel.sequence_parallel = False  # their frames' tokens may be of any number
            continue
        if loader.dataset.get("num_frames", 1) > 1:
            loader.dataset.num_frames = FRAMES
        loader.dataset.video_size = [48, 64]
    trainer = config.trainer
    trainer.update({"max_iter": min(trainer.max_iter, 2), "logging_iter": 1, "compute_dtype": "float32"})
    trainer.grad_accum_iter = min(trainer.grad_accum_iter, 2)
    if trainer.global_batch_size is not None:
        trainer.global_batch_size = min(trainer.global_batch_size, 2)


def launched_ranks(env: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of processes that a launcher (torchrun, Slurm) or WORLD_SIZE names; None without any."""
    slurm = env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") if "SLURM_PROCID" in env else None
    text = env.get("WORLD_SIZE") or slurm
    if text is not None and (not text.isdecimal() or int(text) < 1):
        raise ConfigError(f"WORLD_SIZE={text!r}: expected the number of processes, at least 1")
    return None if text is None else int(text)


def fit_ranks(config: Config, kept: Collection[str], report: list[str], world: int) -> None:
    """Lower tensor, context and shard sizes, in this order, to the largest that `world` processes can have, and round
    the global batch up to a multiple of micro batch x data-parallel ranks. What `kept` names stays, with all below it.
    Say which folders are read: the dataset is the experiment's.

    Tensor divides the heads too, and with sequence parallelism the tokens of a frame; context what that leaves of the heads,
    and latent frames (a single image is never divided).
    """
    sizes, options = config.model_parallel, (config.model or {}).get("config") or {}
    loader, total = config.dataloader_train or {}, config.trainer.global_batch_size
    net, dataset = (options.get("pipe_config") or {}).get("net") or {}, loader.get("dataset") or {}
    heads, frames = int(net.get("num_heads") or 0), int(dataset.get("num_frames") or 1)
    patch, tokens = SPATIAL * int(net.get("patch_spatial") or 2), 0
    if sizes.sequence_parallel:
        tokens = math.prod(int(side) // patch for side in dataset.get("video_size") or [0])
    latents = (frames - 1) // TEMPORAL + 1 if frames > 1 else 0

    def free(key: str) -> bool:
        return not any(f"{key}.".startswith(f"{name}.") for name in kept)

    def lower(section: Any, key: str, **wholes: int) -> int:
        name = key.rpartition(".")[2]
        size = int(getattr(section, name))
        fit = max(n for n in range(1, max(size, 1) + 1) if all(whole % n == 0 for whole in wholes.values()))
        if size < 1 or fit == size or not free(key):
            return size
        divided = ", ".join(f"{whole} {what.replace('_', ' ')}" for what, whole in wholes.items() if whole)
        report.append(f"debug: {key}: {size} -> {fit} (the largest that divides {divided})")
        setattr(section, name, fit)
        return fit

    for name in ("dataloader_train", "dataloader_val"):
        if folder := ((getattr(config, name) or {}).get("dataset") or {}).get("dataset_dir"):
            report.append(f"debug: {name} reads {folder} (data=synthetic replaces it)")
    tensor = lower(sizes, "model_parallel.tensor_model_parallel_size", processes=world, heads=heads, tokens=tokens)
    rest = {"processes": max(world // tensor, 1)}
    shared = {"heads": heads // tensor, "latent_frames": latents}
    context = lower(sizes, "model_parallel.context_parallel_size", **rest, **shared)
    if options.get("fsdp_shard_size"):
        lower(options, "model.config.fsdp_shard_size", **rest)
    step = int(loader.get("batch_size", 1)) * max(rest["processes"] // context, 1)
    if total is not None and total % step and free("trainer.global_batch_size"):
        total = config.trainer.global_batch_size = total + -total % step
        report.append(f"debug: trainer.global_batch_size: rounded up to {total}, a multiple of {step}")

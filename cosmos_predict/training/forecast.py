"""What a run will take, from its configuration alone: parameters, tokens, operations, batch, memory, missing files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from cosmos_predict.config.debug import launched_ranks
from cosmos_predict.config.lazy import TARGET, instantiate
from cosmos_predict.config.schema import Config
from cosmos_predict.config.tree import to_tree, walk
from cosmos_predict.data.transforms import aspect_sizes
from cosmos_predict.errors import ConfigError
from cosmos_predict.models.build import torch_dtype
from cosmos_predict.models.config import ModelConfig
from cosmos_predict.networks.dit import DiT, build_dit
from cosmos_predict.networks.flops import count_tokens, training_flops
from cosmos_predict.networks.lora import inject_lora
from cosmos_predict.parallel.activation import POLICIES, activation_bytes
from cosmos_predict.parallel.mesh import MeshSizes
from cosmos_predict.parallel.tensor_parallel import check_tensor_parallel, is_divided
from cosmos_predict.tokenizers.load import load_tokenizer
from cosmos_predict.training.checks import accumulation_steps, check_frames, check_lengths, check_tokens, mesh_of
from cosmos_predict.training.validation import NOT_HELD_OUT

# Bytes of both moments of a parameter; in 8 bits there is a float32 scale for 256 values of each.
MOMENTS = {"fp32": 8.0, "bf16": 4.0, "8bit": 2 + 2 * 4 / 256}


def mesh_forecast(config: Config) -> tuple[MeshSizes, str]:
    """Return the mesh of the processes that a launcher or WORLD_SIZE names, else of as few as the settings ask for."""
    world, told = launched_ranks(), ""
    if world is None:
        shard = int(config.model.config.get("fsdp_shard_size", 1))  # type: ignore[union-attr]
        sizes = config.model_parallel
        world = math.lcm(max(shard, 1), sizes.context_parallel_size) * sizes.tensor_model_parallel_size
        told = " (the fewest that the settings ask for; WORLD_SIZE=N forecasts N)"
    return mesh_of(config, world), told


def meta_network(config: Config, model: ModelConfig) -> DiT:
    """Return the network as it is trained, adapters included, on the meta device."""
    assert model.pipe_config.net is not None
    dtype = torch_dtype(config.model.get("dtype", "float32"))  # type: ignore[union-attr]
    net = build_dit(model.pipe_config.net, device="meta", dtype=dtype)
    if model.train_architecture == "lora":
        inject_lora(net, model.lora_rank, model.lora_alpha, model.lora_target_modules, dtype=torch.float32)
    return net


def memory_forecast(config: Config, net: DiT, average: bool, sizes: MeshSizes) -> dict[str, float]:
    """Return the bytes of one process by what holds them, activations left out.

    FSDP gathers two blocks and what is outside the blocks in the compute dtype, and reduces one block's float32 gradient.
    """
    # What the ranks of a tensor group hold: their part of some parameters, others whole.
    numels = {p: p.numel() // (sizes.tensor if is_divided(name) else 1) for name, p in net.named_parameters()}
    trained = [p for p in numels if p.requires_grad]
    count, optimizer = sum(numels[p] for p in trained), config.optimizer or {}
    target = str(getattr(optimizer[TARGET], "__name__", optimizer[TARGET])).rpartition(".")[2]
    moments = MOMENTS["8bit" if target == "adamw8bit" else optimizer.get("moments", "fp32")]
    if target == "adamw" and any(p.dtype != torch.float32 for p in trained):
        moments += 4 * optimizer.get("master_weights", True)
    held = {
        "weights": sum(numel * p.itemsize for p, numel in numels.items()) / sizes.shard,
        "gradients": sum(numels[p] * p.itemsize for p in trained) / sizes.shard,
        "moments": count * moments / sizes.shard,
        "EMA": 4.0 * count * average / sizes.shard,
    }
    if sizes.world > 1 or config.trainer.compute_dtype == "bfloat16":
        block = sum(numels[p] for p in net.blocks[0].parameters())
        outside = sum(numels.values()) - len(net.blocks) * block
        gradient = 4.0 * sum(numels[p] for p in net.blocks[0].parameters() if p.requires_grad)
        held["gathered"] = (2 * block + outside) * _compute_bytes(config, net) + gradient
    return held


def missing_files(config: Config) -> list[str]:
    """Return `key: path` of the folders and files that the run would read and that are not there."""
    paths: dict[str, Any] = {"checkpoint.load_path": config.checkpoint.load_path}
    for section in ["dataloader_train"] + ["dataloader_val"] * config.trainer.run_validation:
        named = {f"{section}.{key}": value for key, value in walk(to_tree(getattr(config, section)))}
        paths |= {key: value for key, value in named.items() if key.endswith(("_dir", "_path", "_json"))}
    model: Any = config.model.config  # type: ignore[union-attr]
    if not config.checkpoint.load_path:
        paths["model.config.model_manager_config.dit_path"] = model.model_manager_config.dit_path
    if config.model.get("with_tokenizer", True):  # type: ignore[union-attr]
        paths["model.config.pipe_config.tokenizer.path"] = model.pipe_config.tokenizer.path
    named = {key: path for key, path in paths.items() if path and not key.endswith("name_or_path")}
    return [f"{key}: {path}" for key, path in named.items() if not Path(path).exists()]


def forecast(config: Config) -> str:
    """Return a few lines about the composed run. Reads no weights and allocates none.

    Raises ConfigError for a mesh, batch, length or LoRA target that does not fit.
    """
    model: ModelConfig = instantiate(config.model.config)  # type: ignore[union-attr]
    pipe, loader, trainer = model.pipe_config, config.dataloader_train, config.trainer
    assert loader is not None and pipe.net is not None
    net, (sizes, told) = meta_network(config, model), mesh_forecast(config)
    total, trained = (sum(p.numel() for p in net.parameters() if p.requires_grad or every) for every in (True, False))
    batch = int(loader.get("batch_size", 1))
    accumulation = accumulation_steps(config, batch, sizes.data)
    check_tensor_parallel(sizes.tensor, pipe.net)
    sequence = config.model_parallel.sequence_parallel
    samples = batch * sizes.data * accumulation
    memory = memory_forecast(config, net, pipe.ema.enabled, sizes)
    width = f"{pipe.net.model_channels} wide, {pipe.net.num_blocks} blocks, {pipe.net.num_heads} heads"
    lora = f", {trained / 1e6:,.1f} M of them trained (LoRA)" if trained < total else ""
    ranks = f"{sizes.data} data-parallel rank(s) x {accumulation} accumulation"
    lines = [
        f"network      {width}, {total / 1e6:,.1f} M parameters{lora}",
        f"mesh         {sizes}{told}",
        f"batch        {batch} per step x {ranks} = {samples} per update",
    ]
    dataset, kept = loader.get("dataset"), {}
    if dataset is not None and dataset.get("video_size"):
        count, size = int(dataset.get("num_frames") or 1), [int(side) for side in dataset.video_size]
        tokenizer = load_tokenizer(pipe.tokenizer.name, device="meta", **pipe.tokenizer.options)
        frames = check_frames(pipe, tokenizer, count, sizes)
        parts = [dataset, *dataset.get("parts", {}).values()]
        shorter = {int(n) for part in parts for n in part.get("length_buckets") or () if n < count}
        check_lengths({n: tokenizer.get_latent_num_frames(n) for n in shorter}, pipe.net.num_heads, sizes)
        height, width = (side // tokenizer.spatial_compression_factor for side in size)
        shape = (frames * pipe.views, height, width)
        tokens = count_tokens(pipe.net, shape)
        flops = training_flops(pipe.net, shape, views=pipe.views) * samples / 1e12
        lines.append(f"sample       {count} frame(s) of {size[0]} x {size[1]} -> latent {shape} -> {tokens:,} tokens")
        lines.append(f"compute      {flops:,.2f} TFLOP per update (forward + backward, no recomputation)")
        every, bytes_each = trainer.checkpoint_every_n_blocks, _compute_bytes(config, net)
        here = tokens // (sizes.context if frames > 1 else 1)
        if sequence:
            step = tokenizer.spatial_compression_factor * pipe.net.patch_spatial
            boxes = [tuple(int(side) for side in part.video_size) for part in parts if part.get("video_size")]
            check_tokens({(h, w): (h // step) * (w // step) for h, w in boxes}, sizes)
            boxes = [box for part in parts if part.get("aspect_buckets") for box in aspect_sizes(part.video_size)]
            for h, w in dict.fromkeys(boxes):
                try:
                    check_tokens({(h, w): (h // step) * (w // step)}, sizes)
                except ConfigError as error:
                    lines.append(f"warning      a run refuses clips of that shape, if the data has any: {error}")
        shared = (sizes.tensor, sequence)
        kept = {name: batch * activation_bytes(pipe.net, here, name, every, bytes_each, *shared) for name in POLICIES}
    parts = " + ".join(f"{part} {_size(size)}" for part, size in memory.items())
    lines.append(f"memory       estimate, per process: {parts} = {_size(sum(memory.values()))}")
    for name, size in kept.items():
        chosen = "   <- trainer.activation_checkpointing" if name == trainer.activation_checkpointing else ""
        lines.append(f"  {name:<10} + activations {_size(size)} = {_size(sum(memory.values()) + size)}{chosen}")
    lines.append("             not in it: the video tokenizer and its activations, the libraries' own, fragmentation")
    if config.checkpoint.async_save:
        copy = sum(memory[part] for part in ("gradients", "moments", "EMA"))  # gradients take what trained weights do
        lines.append(f"saving       {_size(copy)} of host memory on top, per process (checkpoint.async_save)")
    if trainer.run_validation:
        source = "dataloader_val" if config.dataloader_val is not None else NOT_HELD_OUT
        lines.append(f"validation   every {trainer.validation_iter} updates, on {source}")
    base = config.checkpoint.load_path or model.model_manager_config.dit_path
    lines.append(f"starts from  {base or 'scratch: no base checkpoint is set'}")
    lines += [f"missing      {line}" for line in missing_files(config)]
    return "\n".join([*lines, f"run folder   {config.job.path_local}"])


def _compute_bytes(config: Config, net: DiT) -> int:
    return 2 if config.trainer.compute_dtype == "bfloat16" else next(net.parameters()).itemsize


def _size(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**27 else f"{size / 2**20:,.2f} MiB"

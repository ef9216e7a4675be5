"""What a run will take, from its configuration alone: parameters, tokens, operations, batch arithmetic, memory."""

from __future__ import annotations

import math

from cosmos_predict.config.lazy import instantiate
from cosmos_predict.config.schema import Config
from cosmos_predict.models.config import ModelConfig
from cosmos_predict.networks.flops import count_parameters, count_tokens, training_flops
from cosmos_predict.parallel.activation import activation_bytes
from cosmos_predict.parallel.distributed import read_ranks
from cosmos_predict.parallel.mesh import MeshSizes
from cosmos_predict.tokenizers.load import load_tokenizer
from cosmos_predict.training.trainer import accumulation_steps, mesh_of

GIB = 2**30


def _mesh(config: Config) -> MeshSizes:
    """Return the mesh of the processes that run this or, without a launcher, of as few as the settings ask for."""
    ranks = read_ranks()
    if ranks.launcher != "none":
        return mesh_of(config, ranks.world_size)
    shard = int(config.model.config.get("fsdp_shard_size", 1))  # type: ignore[union-attr]
    return mesh_of(config, math.lcm(max(shard, 1), config.model_parallel.context_parallel_size))


def forecast(config: Config) -> str:
    """Return a few lines about the composed run. Reads no weights and allocates none.

    Memory counts float32 weights and gradients, two moments and the EMA copy; activations are those of the blocks.
    """
    model: ModelConfig = instantiate(config.model.config)  # type: ignore[union-attr]
    pipe, loader = model.pipe_config, config.dataloader_train
    net = pipe.net
    assert net is not None and loader is not None
    parameters = count_parameters(net)
    lines = [
        f"network      {net.model_channels} wide, {net.num_blocks} blocks, {net.num_heads} heads, {parameters / 1e6:,.1f} M parameters"
    ]
    sizes = _mesh(config)
    lines.append(f"mesh         {sizes}")
    batch = int(loader.get("batch_size", 1))
    accumulation = accumulation_steps(config, batch, sizes.data)
    samples = batch * sizes.data * accumulation
    lines.append(
        f"batch        {batch} per step x {sizes.data} data-parallel rank(s) x {accumulation} accumulation = {samples} per update"
    )
    dataset = loader.get("dataset")
    if dataset is not None and dataset.get("num_frames") and dataset.get("video_size"):
        tokenizer = load_tokenizer(pipe.tokenizer.name, device="meta", **pipe.tokenizer.options)
        scale = tokenizer.spatial_compression_factor
        frames = tokenizer.get_latent_num_frames(int(dataset.num_frames))
        height, width = (int(size) // scale for size in dataset.video_size)
        shape = (frames * pipe.views, height, width)
        tokens = count_tokens(net, shape)
        lines.append(
            f"sample       {dataset.num_frames} frames of {dataset.video_size[0]} x {dataset.video_size[1]}"
            f" -> latent {shape} -> {tokens:,} tokens"
        )
        flops = training_flops(net, tokens, frames=shape[0], views=pipe.views)
        lines.append(
            f"compute      {flops * samples / 1e12:,.2f} TFLOP per update (forward + backward, no recomputation)"
        )
        options, itemsize = config.trainer, 2 if config.trainer.compute_dtype == "bfloat16" else 4
        policy, every = options.activation_checkpointing, options.checkpoint_every_n_blocks
        kept = batch * activation_bytes(net, tokens // sizes.context, policy, every, itemsize)
        lines.append(f"activations  about {kept / GIB:,.2f} GiB per rank (activation_checkpointing={policy})")
    state = parameters * 4 * (4 + pipe.ema.enabled) / sizes.shard
    kept = "weights, gradients, moments" + (", EMA" if pipe.ema.enabled else "")
    lines.append(f"memory       {state / GIB:,.2f} GiB of {kept} (float32) per rank")
    lines.append(f"run folder   {config.job.path_local}")
    return "\n".join(lines)

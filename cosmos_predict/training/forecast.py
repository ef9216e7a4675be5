"""What a run will take, from its configuration alone: parameters, tokens, operations, batch arithmetic, memory."""

from __future__ import annotations

from cosmos_predict.config.lazy import instantiate
from cosmos_predict.config.schema import Config
from cosmos_predict.models.config import ModelConfig
from cosmos_predict.networks.flops import count_parameters, count_tokens, training_flops
from cosmos_predict.tokenizers.load import load_tokenizer
from cosmos_predict.training.trainer import accumulation_steps

GIB = 2**30


def forecast(config: Config) -> str:
    """Return a few lines about the composed run. Reads no weights and allocates none.

    Memory counts what scales with parameters: float32 weights and gradients, two moments, the EMA copy. Activations
    depend on checkpointing and come on top.
    """
    model: ModelConfig = instantiate(config.model.config)  # type: ignore[union-attr]
    pipe, loader = model.pipe_config, config.dataloader_train
    net = pipe.net
    assert net is not None and loader is not None
    parameters = count_parameters(net)
    lines = [
        f"network      {net.model_channels} wide, {net.num_blocks} blocks, {net.num_heads} heads, {parameters / 1e6:,.1f} M parameters"
    ]
    batch = int(loader.get("batch_size", 1))
    accumulation = accumulation_steps(config, batch)
    lines.append(
        f"batch        {batch} per step x 1 data-parallel rank x {accumulation} accumulation = {batch * accumulation} per update"
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
            f"compute      {flops * batch * accumulation / 1e12:,.2f} TFLOP per update (forward + backward, no recomputation)"
        )
    state = parameters * 4 * (4 + pipe.ema.enabled)
    kept = "weights, gradients, moments" + (", EMA" if pipe.ema.enabled else "")
    lines.append(f"memory       {state / GIB:,.2f} GiB of {kept} (float32), activations on top")
    lines.append(f"run folder   {config.job.path_local}")
    return "\n".join(lines)

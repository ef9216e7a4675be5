"""What is refused before anything is loaded: settings, meshes, lengths, sizes and batches that do not fit each other."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import OmegaConf

from cosmos_predict.config.schema import Config
from cosmos_predict.errors import ConfigError
from cosmos_predict.models.config import PipeConfig
from cosmos_predict.parallel.context_parallel import check_context_parallel
from cosmos_predict.parallel.mesh import MeshSizes, mesh_sizes
from cosmos_predict.parallel.tensor_parallel import check_sequence_parallel
from cosmos_predict.tokenizers.base import VideoTokenizer


def check_supported(config: Config) -> None:
    """Raise ConfigError for a setting that this trainer would not act on."""
    backend = OmegaConf.select(config.model or OmegaConf.create(), "config.pipe_config.net.attention_backend")
    if config.trainer.deterministic and backend not in (None, "sdpa"):
        raise ConfigError(
            f"trainer.deterministic=True, but attention_backend={backend!r} may add up in any order: use "
            "model.config.pipe_config.net.attention_backend=sdpa"
        )
    tensor, policy = config.model_parallel.tensor_model_parallel_size, config.trainer.activation_checkpointing
    if tensor > 1 and config.trainer.compile and policy == "full":  # torch 2.12 keeps what is no tensor for backward
        raise ConfigError(
            f"trainer.compile=True with model_parallel.tensor_model_parallel_size={tensor} cannot be combined with "
            "trainer.activation_checkpointing=full: use selective, or trainer.compile=false"
        )
    if config.trainer.run_validation and not config.trainer.callbacks.get("validation"):
        raise ConfigError(
            "trainer.run_validation=True, but there is no trainer.callbacks.validation; add it (callbacks=validation)"
        )


def check_frames(pipe: PipeConfig, tokenizer: VideoTokenizer, num_frames: int, sizes: MeshSizes | None = None) -> int:
    """Return the latent frames that `num_frames` of a view make. Raises ConfigError when the stated ones (`state_t`) are
    others, or when the ranks of a context group cannot share them.
    """
    sizes = sizes or MeshSizes()
    made = tokenizer.get_latent_num_frames(num_frames)
    if pipe.state_t not in (None, made):
        raise ConfigError(
            f"model.config.pipe_config.state_t={pipe.state_t}, but dataloader_train.dataset.num_frames={num_frames} makes "
            f"{made} latent frames: set num_frames={tokenizer.get_pixel_num_frames(pipe.state_t)}, or state_t=null"
        )
    if made > 1 and pipe.net is not None:  # a single image is never divided
        check_context_parallel(sizes.context, made, pipe.net.num_heads, sizes.tensor)
    return made


def check_lengths(lengths: Mapping[int, int], heads: int, sizes: MeshSizes) -> None:
    """Raise ConfigError where a context group cannot share samples of one of `lengths`, {frames: latent frames}."""
    for count, made in sorted(lengths.items()):
        try:
            if made > 1:  # a single image is never divided
                check_context_parallel(sizes.context, made, heads, sizes.tensor)
        except ConfigError as error:
            raise ConfigError(f"samples of {count} frames (num_frames or length_buckets): {error}") from None


def check_tokens(tokens: Mapping[tuple[int, int], int], sizes: MeshSizes) -> None:
    """Raise ConfigError where sequence parallelism cannot divide frames of one of the sizes {(H, W): tokens of a frame}."""
    for (height, width), count in sorted(tokens.items()):
        try:
            check_sequence_parallel(sizes.tensor, count)
        except ConfigError as error:
            raise ConfigError(f"samples of {height} x {width} (video_size or aspect_buckets): {error}") from None


def mesh_of(config: Config, world_size: int) -> MeshSizes:
    """Return the mesh that the configuration makes of `world_size` processes; ConfigError where it does not fit."""
    shard = int(config.model.config.get("fsdp_shard_size", 1))  # type: ignore[union-attr]
    sizes = config.model_parallel
    return mesh_sizes(world_size, shard, sizes.context_parallel_size, sizes.tensor_model_parallel_size)


def accumulation_steps(config: Config, batch_size: int, data_parallel: int = 1) -> int:
    """Return micro-batches per update. Raises ConfigError when `global_batch_size` is no multiple, naming sizes that fit."""
    total = config.trainer.global_batch_size
    if total is None:
        return config.trainer.grad_accum_iter
    per_step = batch_size * data_parallel
    if total % per_step:
        lower = max(per_step, total // per_step * per_step)
        raise ConfigError(
            f"trainer.global_batch_size={total} is no multiple of batch size {batch_size} x {data_parallel} data-parallel ranks; "
            f"{lower} and {lower + per_step} fit"
        )
    return total // per_step

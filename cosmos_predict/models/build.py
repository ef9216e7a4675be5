"""From a configuration to a world model."""

from __future__ import annotations

import torch

from cosmos_predict.config.lazy import configurable
from cosmos_predict.errors import ConfigError
from cosmos_predict.models.config import ModelConfig, TokenizerConfig
from cosmos_predict.models.world_model import WorldModel
from cosmos_predict.networks.dit import DiT, build_dit
from cosmos_predict.tokenizers.base import VideoTokenizer
from cosmos_predict.tokenizers.load import load_tokenizer


def torch_dtype(name: torch.dtype | str) -> torch.dtype:
    """Return the floating dtype of a name such as `bfloat16`. Raises ConfigError for another name."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(name, torch.dtype):
        return name
    if name not in known:
        raise ConfigError(f"dtype {name!r} is not one of {', '.join(known)}")
    return known[name]


def build_video_tokenizer(config: TokenizerConfig, device: torch.device | str) -> VideoTokenizer:
    """Return the video tokenizer that `config` describes, with its weights."""
    dtype = None if config.dtype is None else torch_dtype(config.dtype)
    return load_tokenizer(config.path or config.name, device=device, dtype=dtype, **config.options)


@configurable
def build_world_model(
    config: ModelConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    init: bool = True,
    with_tokenizer: bool = True,
    net_device: torch.device | str | None = None,
) -> WorldModel:
    """Return the world model that `config` describes.

    init: fill the network's weights for training from scratch (from torch's global generator); False leaves them
    uninitialised for a load that follows. device "meta" allocates nothing. with_tokenizer: False for cached latents.
    net_device: where the network goes, if not to `device`; "meta" leaves it to the caller to shard and fill it.
    dtype: of the network's weights, a torch dtype or its name (`bfloat16`).
    """
    dtype = torch_dtype(dtype)
    pipe = config.pipe_config
    if pipe.net is None:
        raise ConfigError("model.config.pipe_config.net is not set: choose an experiment, or model=NAME")
    net = build_dit(pipe.net, device=net_device or device, dtype=dtype, init=DiT.init_weights if init else None)
    tokenizer = None
    if with_tokenizer:
        tokenizer = build_video_tokenizer(pipe.tokenizer, device)
        made, taken = tokenizer.latent_ch, pipe.net.latent_channels
        if made != taken:
            name = pipe.tokenizer.name
            raise ConfigError(f"tokenizer {name!r} makes {made} latent channels, the network takes {taken}")
    model = WorldModel(config, net, tokenizer)
    if model.logvar is not None:
        model.logvar.to(device)
    return model

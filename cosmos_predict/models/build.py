"""From a configuration to a world model."""

from __future__ import annotations

import torch

from cosmos_predict.config.lazy import configurable
from cosmos_predict.errors import ConfigError
from cosmos_predict.models.config import ModelConfig
from cosmos_predict.models.world_model import WorldModel
from cosmos_predict.networks.dit import DiT, build_dit
from cosmos_predict.tokenizers.load import load_tokenizer


def torch_dtype(name: torch.dtype | str) -> torch.dtype:
    """Return the floating dtype of a name such as `bfloat16`. Raises ConfigError for another name."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(name, torch.dtype):
        return name
    if name not in known:
        raise ConfigError(f"dtype {name!r} is not one of {', '.join(known)}")
    return known[name]


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
        tokenizer = load_tokenizer(
            pipe.tokenizer.path or pipe.tokenizer.name,
            device=device,
            dtype=None if pipe.tokenizer.dtype is None else torch_dtype(pipe.tokenizer.dtype),
            **pipe.tokenizer.options,
        )
        if tokenizer.latent_ch != pipe.net.latent_channels:
            raise ConfigError(
                f"tokenizer {pipe.tokenizer.name!r} makes {tokenizer.latent_ch} latent channels, "
                f"the network takes {pipe.net.latent_channels}"
            )
    model = WorldModel(config, net, tokenizer)
    if model.logvar is not None:
        model.logvar.to(device)
    return model

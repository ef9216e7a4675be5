"""Text encoders by name."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cosmos_predict.config.lazy import configurable
from cosmos_predict.text_encoders.t5 import T5_11B, WIDTH, Dtype, T5TextEncoder
from cosmos_predict.text_encoders.tiny import TinyTextEncoder

if TYPE_CHECKING:
    import torch


class TextEncoder(Protocol):
    """What every text encoder offers."""

    name: str
    width: int

    def encode(self, prompts: list[str], max_length: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (B, max_length, 1024) float32, zero padded, and the mask (B, max_length) bool."""
        ...


@configurable
def build_text_encoder(
    name_or_path: str | Path = "t5",
    dtype: Dtype | torch.dtype | None = None,
    device: torch.device | str | None = None,
    offload: bool = False,
    cache_dir: str | Path | None = None,
) -> TextEncoder:
    """Return the encoder "tiny" (offline, always float32), "t5" (T5-11B), or the T5 in a folder or of a hub name.

    `dtype`, `offload` and `cache_dir` are T5TextEncoder's, and so are the errors raised.
    """
    if str(name_or_path) == "tiny":
        return TinyTextEncoder(device=device)
    source = T5_11B if str(name_or_path) == "t5" else name_or_path
    return T5TextEncoder(source, dtype=dtype, device=device, offload=offload, cache_dir=cache_dir)


@configurable
class LazyTextEncoder:
    """The encoder of `build_text_encoder`, built at the first `encode`: a dataset without captions to encode loads none.

    Args: those of `build_text_encoder`, whose errors `encode` raises.
    """

    width = WIDTH

    def __init__(self, name_or_path: str | Path = "t5", dtype: Dtype | None = None, device: str | None = None) -> None:
        self.name = "tiny" if str(name_or_path) == "tiny" else T5TextEncoder.name
        self._build = functools.cache(functools.partial(build_text_encoder, name_or_path, dtype, device))

    def encode(self, prompts: list[str], max_length: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the encoder returns."""
        return self._build().encode(prompts, max_length)

"""Text encoders by name."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cosmos_predict.config.lazy import configurable
from cosmos_predict.io.embedding_index import encoder_name
from cosmos_predict.text_encoders.reason1 import REASON1, Reason1TextEncoder
from cosmos_predict.text_encoders.t5 import T5_11B, Dtype, T5TextEncoder
from cosmos_predict.text_encoders.tiny import TinyTextEncoder

if TYPE_CHECKING:
    import torch


class TextEncoder(Protocol):
    """What every text encoder offers. zero_padded: rows behind a prompt's last token are zero, and not in the mask."""

    name: str
    width: int
    zero_padded: bool

    def encode(self, prompts: list[str], max_length: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (B, max_length, width) float32 and the mask (B, max_length) bool of the rows that count."""
        ...


@configurable
def build_text_encoder(
    name_or_path: str | Path = "t5",
    dtype: Dtype | torch.dtype | None = None,
    device: torch.device | str | None = None,
    offload: bool = False,
    cache_dir: str | Path | None = None,
) -> TextEncoder:
    """Return the encoder "tiny" (offline, always float32), "t5" (T5-11B), "cosmos_reason1", or the T5 or Cosmos-Reason1 in
    a folder or of a hub name.

    `dtype`, `offload` and `cache_dir` are those of T5TextEncoder and Reason1TextEncoder, and so are the errors raised.
    """
    name = encoder_name(name_or_path)
    if name == "tiny":
        return TinyTextEncoder(device=device)
    kind, usual = (Reason1TextEncoder, REASON1) if name == Reason1TextEncoder.name else (T5TextEncoder, T5_11B)
    source = usual if str(name_or_path) == name else name_or_path
    return kind(source, dtype=dtype, device=device, offload=offload, cache_dir=cache_dir)


@configurable
class LazyTextEncoder:
    """The encoder of `build_text_encoder`, built at the first `encode`: a dataset without captions to encode loads none.

    Args: those of `build_text_encoder`, whose errors `encode` raises.
    """

    def __init__(self, name_or_path: str | Path = "t5", dtype: Dtype | None = None, device: str | None = None) -> None:
        self.name = encoder_name(name_or_path)
        self._build = functools.cache(functools.partial(build_text_encoder, name_or_path, dtype, device))

    def encode(self, prompts: list[str], max_length: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the encoder returns."""
        return self._build().encode(prompts, max_length)

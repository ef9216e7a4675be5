"""Tokenizers by name or file."""

from __future__ import annotations

from typing import Any

import torch

from cosmos_predict.tokenizers.base import VideoTokenizer


def load_tokenizer(name_or_path: str, *, device: torch.device | str = "cpu", **options: Any) -> VideoTokenizer:
    if name_or_path == "dct":
        from cosmos_predict.tokenizers.dct import DCTTokenizer

        return DCTTokenizer(**options)
    from cosmos_predict.tokenizers.wan import WanVAE

    with torch.device("meta"):
        return WanVAE(**options)

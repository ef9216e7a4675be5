"""Prompts as text, as text files or as precomputed embeddings, to what a network takes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_predict.data.captions import EMBEDDING_SUFFIXES, TEXT_LENGTH, load_text
from cosmos_predict.errors import ConfigError
from cosmos_predict.io.embeddings import read_embedding
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.text_encoders.build import build_text_encoder

# Published pipelines steer away from a paragraph of this intent. Not for the tiny encoder, whose models never saw it.
NEGATIVE_PROMPT = (
    "A poor recording: still or jerky pictures without real motion, flicker, blur, washed-out or glaring colours, heavy "
    "noise and compression blocks, warped or melting objects, hands and faces with wrong shapes, text and logos laid over "
    "the scene, things that appear, vanish or pass through one another. The camera shakes and the scene makes no sense."
)
Prompt = str | Path


def read_prompt(value: str) -> Prompt:
    """Return the text that `value` is or, for a `.txt` file, names; or the path of an embedding file.

    Raises FileNotFoundError for what is a file's name, but no file.
    """
    path = Path(value)
    if " " in value or path.suffix.lower() not in (".txt", *EMBEDDING_SUFFIXES):
        return value
    if not path.is_file():
        raise FileNotFoundError(f"no file {value}: a prompt is text, a .txt file, or a file of a precomputed embedding")
    return path.read_text(encoding="utf-8").strip() if path.suffix.lower() == ".txt" else path


def encode_prompts(prompts: Iterable[Prompt], net: DiTConfig, encoder: str, **options: Any) -> dict[Prompt, Tensor]:
    """Return `(1, 512, C)` float32 on the CPU for every prompt, text or embedding file; C is what `net` takes.

    The encoder is built, with `options`, only where there is text, and gone afterwards. Raises ConfigError for
    embeddings of another width, and for an encoder that is not built here.
    """
    width = net.crossattn_proj_in_channels or net.crossattn_emb_channels
    paths = {prompt for prompt in prompts if isinstance(prompt, Path)}
    texts = {prompt for prompt in prompts if isinstance(prompt, str)}
    found: dict[Prompt, Tensor] = {path: load_text(read_embedding(path, width=None))[0][None] for path in paths}
    if encoder == "reason1":
        if any(texts):
            raise ConfigError(
                "this model reads text through Cosmos-Reason1, which is not built here: give --prompt FILE with the "
                f"embedding (n, {width}), and --negative_prompt the same, or '' for none"
            )
        found |= dict.fromkeys(texts, torch.zeros(1, TEXT_LENGTH, width))
    elif texts:
        built = build_text_encoder(encoder, **options)
        found |= {text: built.encode([text])[0].float().cpu() for text in sorted(texts)}
    for prompt, embedding in found.items():
        if embedding.shape[-1] != width:
            what = prompt if isinstance(prompt, Path) else f"text encoder {encoder}"
            raise ConfigError(f"{what}: an embedding {embedding.shape[-1]} wide, the network takes {width}")
    return found

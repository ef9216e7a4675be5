"""Prompts as text, as text files or as precomputed embeddings, to what a network takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_predict.data.captions import EMBEDDING_SUFFIXES, TEXT_LENGTH, load_text
from cosmos_predict.errors import ConfigError
from cosmos_predict.io.embedding_index import encoder_name
from cosmos_predict.io.embeddings import ENCODERS, read_embedding
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.pipelines.requests import read_text
from cosmos_predict.text_encoders import reason1, t5
from cosmos_predict.text_encoders.build import build_text_encoder
from cosmos_predict.text_encoders.folders import WEIGHT_FILES, find_folder

# Published pipelines steer away from a paragraph of this intent. Not for the tiny encoder, whose models never saw it.
NEGATIVE_PROMPT = (
    "A poor recording: still or jerky pictures without real motion, flicker, blur, washed-out or glaring colours, heavy "
    "noise and compression blocks, warped or melting objects, hands and faces with wrong shapes, text and logos laid over "
    "the scene, things that appear, vanish or pass through one another. The camera shakes and the scene makes no sense."
)
Prompt = str | Path


def read_prompt(value: str) -> Prompt:
    """Return the text that `value` is or, for a `.txt` file, names; or the path of an embedding file.

    Raises FileNotFoundError for what ends as a file's name, but is no file, DataError for a `.txt` file that is not UTF-8.
    """
    path = Path(value)
    if path.suffix.lower() not in (".txt", *EMBEDDING_SUFFIXES):
        return value
    try:
        found = path.is_file()
    except OSError:  # too long for a name
        found = False
    if not found:
        what = "a prompt is text, a .txt file, or a file of a precomputed embedding"
        raise FileNotFoundError(f"no file {value}: {what} (text that ends so: put a full stop behind it)")
    return read_text(path).strip() if path.suffix.lower() == ".txt" else path


def encode_prompts(prompts: Iterable[Prompt], net: DiTConfig, encoder: str, **options: Any) -> dict[Prompt, Tensor]:
    """Return `(1, 512, C)` float32 on the CPU for every prompt, text or embedding file; C is what `net` takes.

    The encoder is built, with `options`, only where there is text, and gone afterwards. No text is Predict2.5's zeros, which
    training drops to, and an embedding of its own with T5. Raises ConfigError for embeddings of another width.
    """
    width = net.crossattn_proj_in_channels or net.crossattn_emb_channels
    paths = {prompt for prompt in prompts if isinstance(prompt, Path)}
    texts = {prompt for prompt in prompts if isinstance(prompt, str)}
    found: dict[Prompt, Tensor] = {path: load_text(read_embedding(path, width=None))[0][None] for path in paths}
    if "" in texts and encoder_name(encoder) == "cosmos_reason1":
        texts.remove("")
        found[""] = torch.zeros(1, TEXT_LENGTH, width)
    if texts:
        built = build_text_encoder(encoder, **options)
        found |= {text: built.encode([text])[0].float().cpu() for text in sorted(texts)}
    for prompt, embedding in found.items():
        if embedding.shape[-1] != width:
            what = prompt if isinstance(prompt, Path) else f"text encoder {encoder}"
            maker = f", as {ENCODERS[width]} makes it (--text_encoder)" if width in ENCODERS else ""
            raise ConfigError(f"{what}: an embedding {embedding.shape[-1]} wide, the network takes {width}{maker}")
    return found


def encoder_mark(encoder: str) -> str:
    """Return `sha256:HEX` of what a text encoder is, "" for the tiny one, which has no files.

    It is over the content of the folder's `config.json` and over names and sizes of its weights and tokenizer: T5-11B has
    45 GB. So it tells another model or version, not the same one with changed values. Raises what building it would.
    """
    name = encoder_name(encoder)
    if name == "tiny":
        return ""
    if name == "t5":
        folder, kinds = t5.find_t5(t5.T5_11B if encoder == name else encoder), t5.TOKENIZER_FILES
    else:
        source, kinds = reason1.REASON1 if encoder == name else encoder, reason1.FILES
        folder = find_folder(source, None, "Cosmos-Reason1 (17 GB)", kinds, reason1.PUBLISHED)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted({file for kind in (*kinds, *WEIGHT_FILES) for file in folder.glob(kind)}):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    return f"sha256:{digest.hexdigest()}"

"""What is known of a folder of embedding files: `FOLDER.json` beside it names the encoder and marks the captions.

    {"text_encoder": "t5", "captions": {"<name>": "<fingerprint of the caption that its embedding was made of>"}}

Embeddings of two encoders look alike, and a dataset that mixes them trains a model on noise. Folders of other tools have
no such file: nothing is known, and their embeddings are trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from cosmos_predict.errors import DataError
from cosmos_predict.io.atomic import atomic_write_text

# Of one name the first one counts.
EMBEDDING_SUFFIXES = (".safetensors", ".pickle", ".pkl", ".npy", ".pth", ".pt")


@dataclass
class EmbeddingIndex:
    """text_encoder: "t5", "tiny", ..., or "" where nobody noted it; captions: fingerprints by name (file name without suffix)."""

    text_encoder: str = ""
    captions: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the file beside `folder`, whole or not at all."""
        content = {"text_encoder": self.text_encoder, "captions": dict(sorted(self.captions.items()))}
        atomic_write_text(index_file(folder), json.dumps(content, indent=0) + "\n")


def index_file(folder: Path) -> Path:
    """Return the path of the index of the embeddings in `folder`."""
    return folder.with_name(f"{folder.name}.json")


def read_index(folder: Path) -> EmbeddingIndex:
    """Return what is known of the embeddings in `folder`; raises DataError for an index that cannot be read."""
    path = index_file(folder)
    if not path.is_file():
        return EmbeddingIndex()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return EmbeddingIndex(str(content["text_encoder"]), dict(content.get("captions", {})))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} does not name the text encoder of {folder}; remove it, or make the embeddings again with --overwrite"
        ) from error


def check_same_encoder(made_by: str, wanted: str, where: str | Path, wanted_by: str, remedy: str) -> None:
    """Raise DataError where the embeddings in `where` are known to be another encoder's; the message names both.

    wanted: an encoder's name, folder or hub name. wanted_by: the setting that says so.
    """
    if made_by and made_by != encoder_name(wanted):
        raise DataError(
            f"the embeddings in {where} were made by the text encoder {made_by!r}, {wanted_by} is {wanted!r}; those of two "
            f"encoders cannot be mixed: {remedy}"
        )


def encoder_name(name_or_path: str | Path) -> str:
    """Return the name of a text encoder that is given by name, as a folder or by its hub name: "t5", "cosmos_reason1", ..."""
    name, config = str(name_or_path), Path(name_or_path).expanduser() / "config.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        name = f"/{json.loads(config.read_text(encoding='utf-8'))['model_type']}"
    if any(mark in name.lower() for mark in ("reason1", "/qwen2_5_vl")):
        return "cosmos_reason1"
    return "t5" if "/" in name or "t5" in name else name


def fingerprint(caption: str) -> str:
    """Return a short hash of a caption's text."""
    return hashlib.sha256(caption.encode("utf-8", errors="replace")).hexdigest()[:16]

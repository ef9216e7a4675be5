"""From captions to embedding files: batched, each distinct caption once, resumable.

Beside a folder of embeddings, `FOLDER.json` notes which encoder made them: embeddings of two encoders look alike, and a
dataset that mixes them trains a model on noise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from loguru import logger
from tqdm import tqdm

from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.atomic import atomic_write_text
from cosmos_predict.io.embeddings import read_embedding, write_embedding
from cosmos_predict.text_encoders.build import TextEncoder


@dataclass(frozen=True)
class Caption:
    """A caption, the file that it was read from (for messages), and the embedding file to write."""

    source: Path
    text: str
    output: Path


@dataclass
class EmbeddingReport:
    """What `embed_captions` did: files written, files kept, captions that filled every row, and why others failed."""

    written: int = 0
    skipped: int = 0
    full: int = 0
    failed: dict[Path, str] = field(default_factory=dict)


def embed_captions(
    captions: Sequence[Caption],
    encoder_name: str,
    build_encoder: Callable[[], TextEncoder],
    max_length: int = 512,
    batch_size: int = 8,
    overwrite: bool = False,
) -> EmbeddingReport:
    """Write one float16 array (n, 1024) per caption, n its number of tokens, to the caption's output file.

    A readable output file is kept (`overwrite` removes them all first), a damaged one is made again. The encoder is
    built only where something is left to do. What goes wrong with one file is reported under its source, the others go
    on; an error of the encoder itself is raised, and the files written until then stay.

    Raises ConfigError where a folder holds embeddings of an encoder other than `encoder_name` ("t5", "tiny") and
    `overwrite` is off.
    """
    report = EmbeddingReport()
    if not overwrite:
        _check_same_encoder(captions, encoder_name)
    kept = set() if overwrite else {caption.output for caption in captions if _is_readable(caption.output)}
    report.skipped = len(kept)
    outputs: dict[str, list[Caption]] = {}
    for caption in captions:
        if caption.output not in kept:
            outputs.setdefault(caption.text, []).append(caption)
    if not outputs:
        return report
    encoder = build_encoder()
    if overwrite:  # only now that the encoder exists; a run that is killed can then be resumed without --overwrite
        for caption in captions:
            caption.output.unlink(missing_ok=True)
    for folder in {caption.output.parent for caption in captions}:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(encoder_note(folder), json.dumps({"text_encoder": encoder_name}) + "\n")
    texts = sorted(outputs, key=len)  # similar lengths in a batch: little padding to compute
    with tqdm(total=len(captions), initial=len(kept), unit="caption", desc="text embeddings") as progress:
        for batch in _batches(texts, batch_size):
            embeddings, mask = encoder.encode(batch, max_length=max_length)
            rows = embeddings.half().cpu().numpy()
            for text, row, tokens in zip(batch, rows, mask.sum(dim=1).tolist(), strict=True):
                for caption in outputs[text]:
                    _write(caption, row[:tokens], report)
                    report.full += tokens == max_length
                    progress.update()
    return report


def encoder_note(folder: Path) -> Path:
    """Return the path of the note that says which encoder made the embeddings in `folder`."""
    return folder.with_name(f"{folder.name}.json")


def _check_same_encoder(captions: Sequence[Caption], encoder_name: str) -> None:
    """Raise where embeddings that would be kept were made by another encoder; files without a note are trusted."""
    for folder in {caption.output.parent for caption in captions if caption.output.exists()}:
        note = encoder_note(folder)
        if not note.is_file():
            continue
        try:
            made_by = json.loads(note.read_text(encoding="utf-8"))["text_encoder"]
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{note} does not name the text encoder of {folder}; remove it or pass --overwrite"
            ) from None
        if made_by != encoder_name:
            raise ConfigError(
                f"the embeddings in {folder} were made with --text_encoder {made_by} (says {note.name}); they cannot "
                f"be mixed with those of {encoder_name}: pass --overwrite to make all of them again"
            )


def _write(caption: Caption, embedding: np.ndarray, report: EmbeddingReport) -> None:
    """Write one file and count it, or note why it could not be written."""
    if not np.isfinite(embedding).all():
        report.failed[caption.source] = "its embedding does not fit float16; encode in float32 or bfloat16"
        return
    try:
        write_embedding(caption.output, embedding)
    except (OSError, ValueError) as error:
        report.failed[caption.source] = f"cannot write {caption.output}: {error}"
    else:
        report.written += 1


def _is_readable(path: Path) -> bool:
    """Tell whether an embedding file exists and can be read; a damaged one is named in the log."""
    if not path.exists():
        return False
    try:
        read_embedding(path)
    except (OSError, ValueError) as error:
        logger.warning(f"{path} is made again, it cannot be read: {error}")
        return False
    return True


def _batches(texts: Sequence[str], size: int) -> Iterable[list[str]]:
    """Yield lists of at most `size` texts."""
    for start in range(0, len(texts), size):
        yield list(texts[start : start + size])

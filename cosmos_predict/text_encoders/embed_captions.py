"""From captions to embedding files: batched, each distinct caption once, resumable.

Beside a folder of embeddings an index notes which encoder made them, of which captions (`io.embedding_index`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from loguru import logger
from tqdm import tqdm

from cosmos_predict.io.embedding_index import (
    EMBEDDING_SUFFIXES,
    EmbeddingIndex,
    check_same_encoder,
    fingerprint,
    read_index,
)
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
    """What `embed_captions` did: files written, files kept, captions that filled every row (told by zeros behind the last
    token, where the encoder leaves such), and why others failed."""

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
    """Write one float16 array (n, width) per caption, n its number of tokens (of an encoder that does not pad with zeros all
    its rows), to the caption's output file.

    A readable output file is kept (`overwrite` removes them all first), a damaged one is made again, and so is one that the
    index says was made of another caption. The encoder is built only where something is left to do. What goes wrong with
    one file is reported under its source, the others go on; an error of the encoder itself is raised, and the files written
    until then stay. Where files are kept that no index tells the encoder of, it stays unknown, with a warning.

    Raises DataError where a folder holds embeddings of an encoder other than `encoder_name` ("t5", "cosmos_reason1",
    "tiny") and `overwrite` is off.
    """
    report = EmbeddingReport()
    indices = {folder: EmbeddingIndex() for folder in {caption.output.parent for caption in captions}}
    if not overwrite:
        for folder in indices:
            indices[folder] = read_index(folder)
            if any(folder.glob("*")):
                remedy = "pass --overwrite to make all of them again"
                check_same_encoder(indices[folder].text_encoder, encoder_name, folder, "--text_encoder", remedy)
    kept, outputs, stale = set(), dict[str, list[Caption]](), list[Caption]()
    for caption in captions:
        known = indices[caption.output.parent].captions.get(caption.output.stem)
        changed = known is not None and known != fingerprint(caption.text)
        if not (overwrite or changed) and _is_readable(caption.output, encoder_name):
            kept.add(caption.output)
        else:
            outputs.setdefault(caption.text, []).append(caption)
            stale += [caption] if overwrite or changed else []
    report.skipped = len(kept)
    for caption in captions:
        indices[caption.output.parent].captions[caption.output.stem] = fingerprint(caption.text)
    if not outputs:
        with contextlib.suppress(OSError):  # a dataset that cannot be written to
            _write_indices({folder: index for folder, index in indices.items() if index != read_index(folder)})
        return report
    encoder = build_encoder()
    # Only now that the encoder exists. Old files go first, of every form; then the index says what all files are made of
    # that exist or will. So whenever a run is killed, the next one makes what is missing.
    for caption in stale:
        for suffix in EMBEDDING_SUFFIXES:
            caption.output.with_name(caption.output.stem + suffix).unlink(missing_ok=True)
    unknown = {path.parent for path in kept if not indices[path.parent].text_encoder}
    for folder, index in indices.items():
        if folder in unknown:
            logger.warning(
                f"{folder} holds embeddings of an encoder that nobody noted; they are kept, and the new ones are "
                f"{encoder_name!r}'s: if the others are not, pass --overwrite"
            )
        else:
            index.text_encoder = encoder_name
    _write_indices(indices)
    texts = sorted(outputs, key=len)  # similar lengths in a batch: little padding to compute
    with tqdm(total=len(captions), initial=len(kept), unit="caption", desc="text embeddings") as progress:
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            embeddings, mask = encoder.encode(batch, max_length=max_length)
            rows = embeddings.half().cpu().numpy()
            for text, row, tokens in zip(batch, rows, mask.sum(dim=1).tolist(), strict=True):
                for caption in outputs[text]:
                    _write(caption, row[:tokens], report)
                    report.full += encoder.zero_padded and tokens == max_length
                    progress.update()
    return report


def _write_indices(indices: Mapping[Path, EmbeddingIndex]) -> None:
    for folder, index in indices.items():
        folder.mkdir(parents=True, exist_ok=True)
        index.write(folder)


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


def _is_readable(path: Path, encoder: str) -> bool:
    """Tell whether an embedding file exists and can be read, and may be of `encoder`; a damaged one is named in the log."""
    if not path.exists():
        return False
    try:
        read_embedding(path, width=None if encoder == "cosmos_reason1" else 1024)  # whose width is its model's
    except (OSError, ValueError) as error:
        logger.warning(f"{path} is made again, it cannot be read: {error}")
        return False
    return True

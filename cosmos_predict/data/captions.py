"""Captions and text embeddings of a dataset folder: `metas/NAME.txt`, `t5_xxl/NAME.*`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from cosmos_predict.data.video_reader import is_image, is_video
from cosmos_predict.errors import DataError
from cosmos_predict.io.atomic import atomic_write_text
from cosmos_predict.io.embedding_index import EMBEDDING_SUFFIXES
from cosmos_predict.io.embeddings import read_embedding

TEXT_LENGTH = 512
COLUMNS = (("file", "clip_id", "video_clip", "video"), ("prompt", "caption", "text"))  # of tables: file, prompt


class Encoder(Protocol):
    """What makes embeddings of captions: `cosmos_predict.text_encoders.build.build_text_encoder` returns one."""

    name: str

    def encode(self, prompts: list[str], max_length: int = TEXT_LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (B, max_length, 1024), zero padded, and the mask (B, max_length) bool."""
        ...


def load_text(source: str | Path | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings (512, 1024) float32, zero padded or cut, and mask (512,) int64, 1 = real token.

    source: an embedding file, or an embedding (n, 1024). Raises what `cosmos_predict.io.embeddings.read_embedding`
    raises.
    """
    array = source if isinstance(source, np.ndarray) else read_embedding(source)
    rows = min(len(array), TEXT_LENGTH)
    embeddings = torch.zeros(TEXT_LENGTH, array.shape[1])
    embeddings[:rows] = torch.from_numpy(array[:rows])
    return embeddings, (torch.arange(TEXT_LENGTH) < rows).long()


def files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files of a folder by name without suffix; where several suffixes exist, the first listed wins."""
    there = folder.iterdir() if folder.is_dir() else ()
    paths = [path for path in there if path.suffix.lower() in suffixes and path.name[0] != "."]
    return {path.stem: path for path in sorted(paths, key=lambda path: -suffixes.index(path.suffix.lower()))}


def encode_texts(encoder: Encoder, captions: Mapping[str, str], batch_size: int = 8) -> dict[str, np.ndarray]:
    """Return the embedding (n, 1024) float16 of each caption by name, each distinct text encoded once.

    Raises DataError for an embedding that does not fit float16.
    """
    made: dict[str, np.ndarray] = {}
    texts = sorted(set(captions.values()), key=len)
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        embeddings, mask = encoder.encode(batch, max_length=TEXT_LENGTH)
        for text, rows, valid in zip(batch, embeddings.half().cpu(), mask.cpu(), strict=True):
            made[text] = rows[valid].numpy()
            if not np.isfinite(made[text]).all():
                name = next(name for name in captions if captions[name] == text)
                what = f"the embedding of the caption of {name!r} ({text[:80]!r})"
                raise DataError(f"{what} does not fit float16; encode in float32 or bfloat16")
    return {name: made[text] for name, text in captions.items()}


def caption_all(dataset: Path, prompt: str, *, images: bool = False) -> tuple[int, int]:
    """Write `prompt` to metas/NAME.txt of every clip (or image) without a caption; return (written, kept).

    Raises DataError for an empty prompt, and for a folder without videos/ (images/) or with nothing in it.
    """
    if not prompt.strip():
        raise DataError("the prompt is empty; give the text that describes every clip")
    folder = dataset / ("images" if images else "videos")
    if not folder.is_dir():
        other = "; without --is_image, videos/ is read" if images else "; with --is_image, images/ is read"
        raise DataError(f"{folder}: no such folder{other}")
    names = sorted({path.stem for path in folder.iterdir() if (is_image if images else is_video)(path)})
    if not names:
        raise DataError(f"{folder}: no {'image' if images else 'video'} in it")
    written = 0
    for name in names:
        meta = dataset / "metas" / f"{name}.txt"
        if not meta.is_file() or not meta.read_text(encoding="utf-8-sig", errors="replace").strip():
            atomic_write_text(meta, prompt.strip() + "\n")
            written += 1
    return written, len(names) - written


def captions_from_csv(dataset: Path, table: Path, prefix: str = "") -> tuple[int, int, dict[Path, str]]:
    """Write metas/NAME.txt = prefix + prompt for every line `file,prompt`; return (written, unchanged, failed).

    The first line is a header. Where it names a file and a prompt column of `COLUMNS`, as HD-VILA's does (`clip_id`,
    `caption`), those are read, else the first two. Prompts may be quoted, with commas, line breaks and doubled quotes
    inside; that of the last column may hold commas without quotes. In a `.jsonl` table every line is a JSON object of its
    columns. Where a caption changes its old embedding is removed,
    since it would be kept otherwise. failed: {video: reason}. Raises DataError for a table that is missing or empty.
    """
    if not table.is_file():
        raise DataError(f"{table}: no such file; expected a table with the columns file,prompt")
    prompts: dict[str, str] = {}
    failed: dict[Path, str] = {}
    for line, file, prompt in _rows(table):
        path = Path(file.replace("\\", "/"))
        name = path.stem if is_video(path) or is_image(path) else path.name
        where = dataset / "metas" / f"{name or 'line ' + str(line)}.txt"
        if not name or not prompt:
            lacks = "prompt" if name else "file name"
            failed[where] = f"{table} line {line}: no {lacks} in {file!r}, {prompt!r}"
        elif prompts.setdefault(name, prompt) != prompt:
            failed[where] = f"{table} line {line}: a second, different prompt for {file!r}; the first one is used"
    if not prompts:
        reason = next(iter(failed.values()), "no line below the header")
        raise DataError(f"{table}: no caption in it; expected a header and lines file,prompt ({reason})")
    written = 0
    for name, prompt in prompts.items():
        meta, caption = dataset / "metas" / f"{name}.txt", (prefix + prompt).strip()
        old = meta.read_text(encoding="utf-8-sig", errors="replace").strip() if meta.is_file() else None
        if old == caption:
            continue
        if old is not None:
            for suffix in EMBEDDING_SUFFIXES:
                (dataset / "t5_xxl" / f"{name}{suffix}").unlink(missing_ok=True)
        atomic_write_text(meta, caption + "\n")
        written += 1
    return written, len(prompts) - written, failed


def _rows(table: Path) -> Iterable[tuple[int, str, str]]:
    """(line number, file, prompt) of the table's lines below the header, empty ones left out."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            if table.suffix == ".jsonl":
                for number, line in enumerate(stream, 1):
                    values = json.loads(line) if line.strip() else {}
                    file, prompt = (next((values[c] for c in names if c in values), "") for names in COLUMNS)
                    if values:
                        yield number, str(file).strip(), str(prompt).strip()
                return
            reader = csv.reader(stream)
            header = [cell.strip().lower() for cell in next(reader, [])]
            known = [header.index(c) for names in COLUMNS for c in [next((c for c in names if c in header), "")] if c]
            first, second = known if len(known) == 2 else (0, 1)
            last = second + 1 if len(known) == 2 and second < len(header) - 1 else None
            for row in reader:
                if any(cell.strip() for cell in row):
                    file, prompt = "".join(row[first : first + 1]), ",".join(row[second:last])
                    yield reader.line_num, file.strip(), _unquoted(prompt)
    except (ValueError, AttributeError, TypeError, csv.Error) as error:
        kind = "table of JSON objects" if table.suffix == ".jsonl" else "CSV table"
        raise DataError(f"{table}: not a {kind} in UTF-8 ({error})") from error


def _unquoted(text: str) -> str:
    """Strip blanks and one pair of quotes, which the reader leaves where a blank stands before them."""
    text = text.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def caption_of(meta: Path) -> str:
    """Return the caption in a file; raises DataError for one that is missing, empty or not UTF-8."""
    try:
        text = meta.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{meta}: cannot be read as UTF-8 text ({error})") from error
    if not text:
        raise DataError(f"{meta}: the caption is empty; write one, or remove the file and its clip")
    return text

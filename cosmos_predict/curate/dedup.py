"""Near-duplicate clips: without weights, by what their frames look like and how they change; or by given embeddings.

Two clips are alike as far as all of light, motion and colour are: the cosine similarity of the lowest cosine coefficients of
small frames at the same relative times, of how these differ from their mean, and of the mean's colours. So another encoding,
size or grade of a clip is found, and two clips of one fixed camera in which different things happen are not. Neither is a clip
that is cut elsewhere, or mirrored.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger
from tqdm import tqdm

from cosmos_predict.curate.engine import reason
from cosmos_predict.curate.records import Records
from cosmos_predict.curate.revise import REVISION, Deduplicate, revise
from cosmos_predict.curate.storage import Store
from cosmos_predict.data.video_reader import probe, read_frames
from cosmos_predict.errors import ConfigError, CosmosPredictError, DataError
from cosmos_predict.io.embedding_index import EMBEDDING_SUFFIXES
from cosmos_predict.io.embeddings import read_embedding

FRAMES, SIDE, KEPT = 8, 32, 6  # frames of a clip; pixels of a frame's side; cosine coefficients of a side
BLOCK = 256  # clips that are compared at a time
FAINT = 0.02  # motion or colour below this part of the light is noise of the encoder


def frame_features(frames: np.ndarray) -> np.ndarray:
    """Return light, motion and colour (3, d) float32, each of length 1, of uint8 RGB frames (T, H, W, 3)."""
    from PIL import Image

    small = [Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX).convert("YCbCr") for frame in frames]
    pixels = np.stack([np.asarray(image, np.float64) for image in small])
    cosines = np.cos(np.pi * np.arange(KEPT)[:, None] * (np.arange(SIDE) + 0.5) / SIDE)
    parts = np.einsum("ai,tijc,bj->tcab", cosines, pixels - 128, cosines).reshape(len(pixels), 3, -1)
    light = parts[:, 0, 1:]  # without the mean
    motion, colour = light - light.mean(axis=0), parts[:, 1:].mean(axis=0).ravel()
    rows = np.zeros((3, light.size + 1))
    for row, vector in zip(rows, (light, motion, colour), strict=True):
        row[: vector.size] = vector.ravel()
        row[-1] = FAINT * np.linalg.norm(light) + 1e-6  # an axis in which those that have next to nothing are alike
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clip_features(path: Path) -> np.ndarray:
    """Return `frame_features` of a clip, of frames evenly spread over it."""
    count = probe(path).frames
    return frame_features(read_frames(path, [int((k + 0.5) * count / FRAMES) for k in range(FRAMES)]))


def repeats(features: Iterable[tuple[str, np.ndarray]], threshold: float) -> dict[str, tuple[str, float]]:
    """Return {name: (the earlier clip that it repeats, similarity)}; the first of those that are alike is kept.

    features: (name, (p, d) rows of length 1); clips are as alike as the least similar of their p rows. All are compared with
    all that are kept, a block with a block at a time: 100,000 clips of 3 x 281 numbers are 340 MB and some minutes.
    """
    kept, found, remaining = list[tuple[list[str], np.ndarray]](), dict[str, tuple[str, float]](), iter(features)
    while block := list(itertools.islice(remaining, BLOCK)):
        names, rows = [name for name, _ in block], np.stack([part for _, part in block], axis=1)  # (p, n, d)
        best, of = np.full(len(names), float(threshold)), [""] * len(names)
        for earlier, there in kept:
            alike = _alike(rows, there)
            for index in np.flatnonzero(alike.max(axis=1) > best):
                of[index], best[index] = earlier[int(alike[index].argmax())], alike[index].max()
        alike, new = _alike(rows, rows), list[int]()
        for index, name in enumerate(names):
            here = new[int(alike[index, new].argmax())] if new else index
            if here != index and alike[index, here] > best[index]:
                of[index], best[index] = names[here], alike[index, here]
            if of[index]:
                found[name] = (of[index], round(float(best[index]), 5))
            else:
                new.append(index)
        if new:
            kept.append(([names[index] for index in new], rows[:, new]))
    return found


def _alike(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return how alike clips are, (n, m), of their rows (p, n, d) and (p, m, d): at most 1, whatever is rounded."""
    return np.minimum((rows @ others.swapaxes(1, 2)).min(axis=0), 1.0)


def dedup(
    results: Store, run: Mapping[str, Any], threshold: float, embeddings: Path | None, dry: bool = False
) -> tuple[dict[str, Any], list[tuple[float, str, str]]]:
    """Reject kept clips that repeat an earlier one; return the new totals, and what repeats: (similarity, clip, the one
    that it repeats), the least alike first. dry: only the latter, and nothing changes.

    embeddings: a folder of `UUID.npy` (or the other forms of `io.embeddings`), an array (n, d) each, whose mean is compared
    in place of frames. A clip whose file cannot be read is left out of the comparison, with a warning.

    Raises DataError where the folder holds no records, or embeddings are missing or of no use; ConfigError for a threshold that
    is not in 0..1.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"--similarity {threshold}: expected 0..1, as 0.95")
    records = Records(results, {}, REVISION, run["work_dir"])
    places, lacking = dict[str, str](), list[str]()

    def features() -> Iterable[tuple[str, np.ndarray]]:
        names, widths = records.videos(), set[int]()
        for video in tqdm(records.restored(names), total=len(names), unit="video", desc="dedup"):
            for clip in (clip for clip in video.clips if clip.alive or clip.rejected_by == Deduplicate.name):
                places[clip.uuid] = f"{video.relative} {clip.span[0]:.1f}..{clip.span[1]:.1f} s"
                target = records.work / f"{clip.uuid}.mp4"
                try:
                    if embeddings is not None:
                        rows = _embedding(embeddings, clip.uuid, widths)
                    else:
                        rows = clip_features(results.fetch(clip.place or f"clips/{clip.uuid}.mp4", target))
                except (CosmosPredictError, OSError) as error:
                    lacking.append(f"{places[clip.uuid]}: {reason(error)}")
                else:
                    yield clip.uuid, rows
                target.unlink(missing_ok=True)

    if not records.videos():
        raise DataError(f"{results.root}: no video there that curate.py split has done")
    with records.lock_all():  # refused now, not after all the comparing
        pass
    found = repeats(features(), threshold)
    if lacking:
        told = f"{results.root}: {len(lacking)} of {len(places)} clips cannot be compared; {lacking[0]}"
        if embeddings:
            raise DataError(told)
        logger.warning(f"{told}; they stay")
    pairs = sorted((alike, places[name], places[other]) for name, (other, alike) in found.items())
    return {} if dry else revise(results, run, {}, lambda options, records: [Deduplicate(found)]), pairs


def _embedding(folder: Path, name: str, widths: set[int]) -> np.ndarray:
    """Return the mean embedding (1, d) of a clip, of length 1. widths: d of those before it, which it must have, too."""
    paths = [path for suffix in EMBEDDING_SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if not paths:
        raise DataError(f"{folder}: no embedding of clip {name}; expected {name}.npy, .safetensors or .pickle")
    mean = read_embedding(paths[0], width=None).astype(np.float32).mean(axis=0, keepdims=True)
    widths |= set() if widths else {mean.shape[1]}
    if mean.shape[1] not in widths:
        raise DataError(f"{paths[0]}: expected {min(widths)} numbers, as the first has, got {mean.shape[1]}")
    return mean / max(float(np.linalg.norm(mean)), 1e-12)

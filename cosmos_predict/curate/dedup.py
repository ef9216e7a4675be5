"""Near-duplicate clips: without weights, by what their frames look like and how they change; or by given embeddings.

Two clips are alike as far as all of light, motion and colour are: the cosine similarity of the lowest cosine coefficients of
small frames at the same relative times, of how these differ from their mean, and of the mean's colours. So another encoding,
size or grade of a clip is found, and two clips of one fixed camera in which different things happen are not. Neither is a clip
that is cut elsewhere, or mirrored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cosmos_predict.curate.records import Records
from cosmos_predict.curate.revise import REVISION, Deduplicate, revise
from cosmos_predict.curate.storage import Store
from cosmos_predict.data.video_reader import probe, read_frames
from cosmos_predict.errors import DataError
from cosmos_predict.io.embedding_index import EMBEDDING_SUFFIXES
from cosmos_predict.io.embeddings import read_embedding

FRAMES, SIDE, KEPT = 8, 32, 6  # frames of a clip; pixels of a frame's side; cosine coefficients of a side
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
    all that are kept: 100,000 clips of 3 x 281 numbers are 340 MB and some minutes.
    """
    names, kept, found = list[str](), np.zeros((0, 0, 0), np.float32), dict[str, tuple[str, float]]()
    for name, rows in features:
        if len(names) == len(kept):  # twice the room
            kept = np.concatenate(
                [kept.reshape(-1, *rows.shape), np.zeros((max(len(names), 256), *rows.shape), np.float32)]
            )
        alike = np.einsum("npd,pd->np", kept[: len(names)], rows).min(axis=1) if names else np.zeros(1)
        best = int(alike.argmax())
        if alike[best] > threshold:
            found[name] = (names[best], round(float(alike[best]), 5))
        else:
            kept[len(names)] = rows
            names.append(name)
    return found


def dedup(results: Store, run: Mapping[str, Any], threshold: float, embeddings: Path | None) -> dict[str, Any]:
    """Reject kept clips that repeat an earlier one; return the new totals.

    embeddings: a folder of `UUID.npy` (or the other forms of `io.embeddings`), an array (n, d) each, whose mean is compared
    in place of frames.

    Raises DataError where the folder holds no records, or an embedding is missing.
    """
    records = Records(results, {}, REVISION, run["work_dir"])

    def features() -> Iterable[tuple[str, np.ndarray]]:
        for relative in tqdm(records.videos(), unit="video", desc="dedup"):
            for clip in records.restore(relative).clips:
                if not clip.place or not (clip.alive or clip.rejected_by == Deduplicate.name):
                    continue
                if embeddings is None:
                    target = records.work / f"{clip.uuid}.mp4"
                    yield clip.uuid, clip_features(results.fetch(clip.place, target))
                    target.unlink(missing_ok=True)
                else:
                    yield clip.uuid, _embedding(embeddings, clip.uuid)

    found = repeats(features(), threshold)
    return revise(results, run, {}, lambda options, records: [Deduplicate(found)])


def _embedding(folder: Path, name: str) -> np.ndarray:
    paths = [path for suffix in EMBEDDING_SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if not paths:
        raise DataError(f"{folder}: no embedding of clip {name}; expected {name}.npy, .safetensors or .pickle")
    mean = read_embedding(paths[0], width=None).astype(np.float32).mean(axis=0, keepdims=True)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)

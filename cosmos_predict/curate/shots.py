"""Shot detection without weights: hard cuts and black frames from 27 x 48 pixel frames."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def content_transitions(chunks: Iterable[np.ndarray], threshold: float = 12.0, black: float = 8.0) -> np.ndarray:
    """Return transitions (T,) bool of uint8 RGB frames (n, h, w, 3) that come in chunks; memory does not grow with T.

    A frame is a cut, the first of a new shot, where it differs from its predecessor by more than `threshold` (mean
    absolute difference, 0..255) and by more than three times the median of the differences up to three frames away, which
    fast motion does not. Frames darker than `black` on average (fades, pauses) are transitions too.
    """
    changes, dark, last = [np.zeros(1)], [np.zeros(0, bool)], None
    for chunk in chunks:
        frames = chunk.astype(np.int16)
        joined = frames if last is None else np.concatenate([last, frames])
        changes.append(np.abs(np.diff(joined, axis=0)).mean(axis=(1, 2, 3)))
        dark.append(frames.mean(axis=(1, 2, 3)) < black)
        last = frames[-1:]
    change = np.concatenate(changes)[: sum(len(part) for part in dark)]
    padded = np.pad(change, 3)
    around = np.stack([padded[3 + shift : 3 + shift + len(change)] for shift in (-3, -2, -1, 1, 2, 3)])
    return (change > threshold) & (change > 3 * np.median(around, axis=0)) | np.concatenate(dark)

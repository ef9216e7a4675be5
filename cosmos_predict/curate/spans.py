"""From shot predictions to clips: pure rules, frame numbers in, frame numbers out.

Source: the published curation tool's split stages, quirks that ids depend on included.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from cosmos_predict.data.clip_sampler import nearest_frames

Span = tuple[int, int]
Seconds = tuple[float, float]


def scenes(transitions: np.ndarray, entire_scene: bool = True) -> list[Span]:
    """Return the scenes (start, end), end excluded, of a sequence of T frames.

    transitions: (T,) bool, True where a frame belongs to a transition. A scene ends at the first frame of a run of
    transitions and the next starts behind the run. The trailing scene ends at T - 1, not T, and needs an earlier transition
    (published). entire_scene: without any scene, return one of all T frames.
    """
    flags = np.asarray(transitions, dtype=bool)
    count = len(flags)
    found, start = [], 0
    for index in range(1, count):
        if flags[index] and not flags[index - 1]:
            found.append((start, index))
        if flags[index - 1] and not flags[index]:
            start = index
    if count and flags.any() and not flags[-1]:
        found.append((start, count - 1))
    return found or ([(0, count)] if entire_scene and count else [])


def limit_scenes(found: list[Span], fps: float, rules: Mapping[str, Any]) -> list[Span]:
    """Return clips from scenes: cut to the greatest length, cropped at both ends, short ones dropped; in this order.

    rules: `min_length_s`, `min_length_frames`, `max_length_s`, `crop_s` (0 or None: no such limit); `max_length_mode`: "stride"
    cuts a scene into pieces of the greatest length, "truncate" keeps the first one.
    """
    shortest = max(math.ceil((rules["min_length_s"] or 0) * fps), rules["min_length_frames"] or 0)
    pieces = []
    for start, end in found:
        longest = math.ceil(rules["max_length_s"] * fps) if rules["max_length_s"] else max(end - start, 1)
        if rules["max_length_mode"] == "truncate":
            pieces.append((start, min(end, start + longest)))
            continue
        cut = [(at, min(at + longest, end)) for at in range(start, end, longest)]
        pieces += cut if len(cut) < 2 or cut[-1][1] - cut[-1][0] >= shortest else cut[:-1]
    crop = int((rules["crop_s"] or 0) * fps)
    cropped = [(start + crop, end - crop) for start, end in pieces]
    return [(start, end) for start, end in cropped if end - start >= max(shortest, 1)]


def fixed_stride(duration: float, length: float, stride: float, shortest: float, limit: int = 0) -> list[Seconds]:
    """Return spans (start, end) in seconds of `length` every `stride`; the last may be as short as `shortest`.

    The start advances by repeated addition, which ids depend on. limit: at most so many, 0: all.
    """
    spans, start = [], 0.0
    while start < duration:
        end = min(start + length, duration)
        if end - start >= shortest:
            spans.append((start, end))
        start += stride
    return spans[:limit] if limit else spans


def clip_uuid(identity: str, start: float, end: float) -> str:
    """Return the published id of a clip: UUIDv5 of "PATH_START_END" (frame numbers, or seconds as Python writes them)."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{identity}_{start}_{end}"))


def caption_windows(frames: int, size: int = 256, remainder: int = 128) -> list[Span]:
    """Return the windows (start, end), end included, of a clip: `size` frames each.

    A rest of `remainder` frames or more is a window of its own, a shorter one lengthens the last. Fewer than 4 frames have
    no window.
    """
    if frames < 4:
        return []
    count, rest = divmod(frames, size)
    if not count:
        return [(0, frames - 1)]
    windows = [(size * k, size * (k + 1) - 1) for k in range(count)]
    if rest >= remainder:
        windows.append((frames - rest, frames - 1))
    elif rest:
        windows[-1] = (windows[-1][0], frames - 1)
    return windows


def shown_frames(window: Span, fps: float, rate: float = 2.0) -> np.ndarray:
    """Return the frames (n,) int64 of a window (start, end), end included, that a vision language model is shown.

    About `rate` a second; at least 4, at most 768 and at most as many as there are, an even number; evenly spread.
    """
    start, end = window
    total = end - start  # published: one less than there are
    count = min(max(total / fps * rate, 4), min(768, total) // 2 * 2)
    return np.rint(np.linspace(start, end - 1, 2 * round(count / 2))).astype(np.int64)


def shown_size(height: int, width: int, frames: int, patch: int = 28) -> tuple[int, int]:
    """Return the height and width of what the model is shown: multiples of 28, fewer pixels the more frames a clip shows."""
    least, unit = 128 * patch**2, 24576 * patch**2
    most = max(min(768 * patch**2, int(unit / frames * 2)), int(1.05 * least))
    sides = [max(round(side / patch), 1) * patch for side in (height, width)]
    if sides[0] * sides[1] > most:
        beta = math.sqrt(height * width / most)
        sides = [max(math.floor(side / beta / patch), 1) * patch for side in (height, width)]
    elif sides[0] * sides[1] < least:
        beta = math.sqrt(least / (height * width))
        sides = [math.ceil(side * beta / patch) * patch for side in (height, width)]
    return sides[0], sides[1]


def sample_closest(times: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames nearest to sample times every 1 / rate seconds, and how many sample times each is nearest to.

    times: (N,) float32 seconds, ascending. The last sample may lie half a period behind the last frame; of two frames as
    near, the earlier is taken.
    """
    times = np.asarray(times, np.float32)
    samples = np.arange(times[0], times[-1] + 0.5 / rate, 1 / rate, dtype=np.float32)
    nearest = nearest_frames(times, samples)
    nearest[samples >= times[-1]] = len(times) - 1
    return np.unique(nearest, return_counts=True)

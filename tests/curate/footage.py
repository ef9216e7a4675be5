"""Generated footage: shots with known hard cuts, fades, still and moving, every frame marked with its number."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cosmos_predict.data.video_reader import write_video

HEIGHT, WIDTH, FPS = 96, 160, 24.0
_BITS, _MARK = 12, 8  # the number of a frame, as black and white squares of this many pixels along the top


def shot(seed: int, frames: int, *, moving: bool, first: int = 0, fade: int = 0) -> np.ndarray:
    """Return uint8 RGB (frames, 96, 160, 3): coloured blocks that stand still or drift; `fade` frames to black at the end."""
    generator = np.random.default_rng(seed)
    scene = np.kron(generator.integers(30, 225, (12, 20, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    steps = np.arange(frames) * (2 if moving else 0)
    picture = np.stack([np.roll(scene, -int(step), axis=1)[:HEIGHT, :WIDTH] for step in steps])
    if fade:
        picture[-fade:] = picture[-fade:] * np.linspace(1, 0, fade)[:, None, None, None]
    for offset, frame in enumerate(picture):
        for bit in range(_BITS):
            frame[:_MARK, bit * _MARK : (bit + 1) * _MARK] = 255 * ((first + offset) >> bit & 1)
    return picture


def numbers(frames: np.ndarray) -> list[int]:
    """Read the marks of frames (T, 96, 160, 3) back."""
    squares = [frames[:, 2:6, bit * _MARK + 2 : bit * _MARK + 6].mean(axis=(1, 2, 3)) > 127 for bit in range(_BITS)]
    return [int(sum(int(square[t]) << bit for bit, square in enumerate(squares))) for t in range(len(frames))]


def film(lengths: list[int], seed: int, *, fade_after: int | None = None) -> np.ndarray:
    """Return shots one after the other, alternately still and moving; shot `fade_after` ends in a fade of 12 frames."""
    parts, first = [], 0
    for index, length in enumerate(lengths):
        fade = 12 if index == fade_after else 0
        parts.append(shot(100 * seed + index, length, moving=index % 2 == 1, first=first, fade=fade))
        first += length
    return np.concatenate(parts)


def make_set(folder: Path, videos: int = 8) -> dict[str, list[int]]:
    """Write `videos` films with captions beside them; return the shot lengths by file name."""
    lengths = {}
    for index in range(videos):
        name = f"part{index % 2}/film_{index}.mp4"
        lengths[name] = [130 + 7 * index, 140, 131][: 2 + index % 2]
        frames = film(lengths[name], index, fade_after=0 if index == videos - 1 else None)
        write_video(folder / name, frames, FPS)
        (folder / name).with_suffix(".txt").write_text(f"Coloured blocks, film {index}.")
    return lengths

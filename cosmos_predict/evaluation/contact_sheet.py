"""A picture of clips: one row per clip, frames at the same times side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cosmos_predict.errors import DataError
from cosmos_predict.io.atomic import atomic_path

LABEL_WIDTH, TIME_HEIGHT, GAP = 96, 16, 2


def contact_sheet(
    rows: Sequence[tuple[str, np.ndarray]], path: str | Path, columns: int = 6, fps: float = 16.0
) -> None:
    """Write a PNG with one row per (label, frames uint8 `(T, H, W, 3)`), `columns` frames from the first to the last.

    All rows have the height and width of the first; rows with fewer frames stay empty at the end. Raises DataError for no
    rows or frames of another size.
    """
    if not rows or any(frames.shape[1:] != rows[0][1].shape[1:] for _, frames in rows):
        got = [(label, frames.shape) for label, frames in rows]
        raise DataError(f"a contact sheet needs rows of one frame size, got {got}")
    height, width = rows[0][1].shape[1:3]
    longest = max(len(frames) for _, frames in rows)
    columns = min(columns, longest)
    times = [round(index * (longest - 1) / max(columns - 1, 1)) for index in range(columns)]
    sheet = Image.new("RGB", (LABEL_WIDTH + columns * (width + GAP), TIME_HEIGHT + len(rows) * (height + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, time in enumerate(times):
        draw.text((LABEL_WIDTH + column * (width + GAP) + 4, 2), f"{time / fps:.2f} s", fill="black")
    for row, (label, frames) in enumerate(rows):
        top = TIME_HEIGHT + row * (height + GAP)
        draw.text((4, top + height // 2 - 6), label, fill="black")
        for column, time in enumerate(times):
            if time < len(frames):
                sheet.paste(Image.fromarray(frames[time]), (LABEL_WIDTH + column * (width + GAP), top))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")

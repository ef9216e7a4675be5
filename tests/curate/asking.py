"""What tests ask models with: a clip of numbered frames, and a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cosmos_predict.curate.media import Footage
from cosmos_predict.curate.stage import Clip, Video, Window
from cosmos_predict.curate.vlm import Model
from cosmos_predict.data.video_reader import write_video
from tests.curate.footage import FPS, film

FRAMES = np.arange(4 * 28 * 56 * 3, dtype=np.uint8).reshape(4, 28, 56, 3)


def ask(model: Model, prompt: str, frames: Any = None, fps: float = 2.0, system: str = "", tokens: int = 8192) -> Any:
    """Return a model's answer, and whether it came to an end."""
    return model.answer(prompt, frames, fps, system, tokens)[:2]


def clip_of(folder: Path) -> Clip:
    """Return a clip of 120 numbered frames with two windows, written into a folder."""
    path = folder / "clip.mp4"
    write_video(path, film([120], seed=1), FPS)
    video = Video(str(path), path.name, path.parent, footage=Footage(facts={"framerate": FPS}))
    return Clip(video, 0, 120, "id", (0.0, 5.0), path, 120, [Window(0, 59), Window(60, 119)])


def looked_at(clip: Clip) -> Clip:
    """Return the same clip before any stage has been at it."""
    return Clip(clip.video, 0, 120, "id", (0.0, 5.0), clip.path, 120)

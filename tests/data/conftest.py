"""Small real clips and a dataset folder in the published layout, written once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cosmos_predict.data.video_reader import write_video
from cosmos_predict.io.embeddings import write_embedding


def counting_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 whose mean brightness tells their number: frame k is 10 + 4 k."""
    ramp = np.linspace(-6, 6, width)[None, None, :, None]
    levels = 10 + 4 * np.arange(count)[:, None, None, None]
    return np.clip(np.broadcast_to(levels + ramp, (count, height, width, 3)), 0, 255).round().astype(np.uint8)


def frame_numbers(frames: np.ndarray) -> list[int]:
    """The numbers of frames (T, H, W, 3) made by `counting_frames`, after any codec and resize."""
    return np.rint((frames.astype(float).mean(axis=(1, 2, 3)) - 10) / 4).astype(int).tolist()


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 40 counting frames, 64x48 (W x H), 20 fps."""
    path = tmp_path_factory.mktemp("clip") / "counting.mp4"
    write_video(path, counting_frames(40), fps=20, quality=9)
    return path


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a dataset folder: `make_folder({"a": 20, "b": 12})` has clips a, b of so many frames."""

    def make(clips: dict[str, int], tokens: int = 5) -> Path:
        folder = tmp_path / "dataset"
        (folder / "metas").mkdir(parents=True)
        for number, (name, count) in enumerate(clips.items()):
            write_video(folder / "videos" / f"{name}.mp4", counting_frames(count), fps=10, quality=9)
            (folder / "metas" / f"{name}.txt").write_text(f"clip {name}\n")
            write_embedding(folder / "t5_xxl" / f"{name}.pickle", np.full((tokens, 1024), number + 1, np.float16))
        return folder

    return make

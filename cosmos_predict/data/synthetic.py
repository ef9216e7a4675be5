"""Samples without files: a bright square drifting over a gradient, for smoke tests and `data=synthetic`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from cosmos_predict.config.lazy import configurable
from cosmos_predict.data.captions import TEXT_LENGTH
from cosmos_predict.randomness import numpy_generator


@configurable
class SyntheticDataset(Dataset[dict[str, Any]]):
    """Moving squares with empty text, in the sample format of `VideoFolderDataset`; sample n depends on (seed, n) only."""

    def __init__(
        self, num_frames: int, video_size: Sequence[int], fps: float = 16.0, seed: int = 0, length: int = 64
    ) -> None:
        self.num_frames, self.video_size = int(num_frames), (int(video_size[0]), int(video_size[1]))
        self.fps, self.seed, self.length = fps, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, sample_number: int) -> dict[str, Any]:
        height, width = self.video_size
        random = numpy_generator(self.seed, sample_number, "synthetic")
        rows, columns = np.mgrid[0:height, 0:width]
        background = 60 + 60 * columns / width + random.uniform(-20, 20)
        start, speed, colour = random.uniform(0.2, 0.6, 2), random.uniform(-0.02, 0.02, 2), random.uniform(120, 255, 3)
        frames = np.empty((3, self.num_frames, height, width), np.uint8)
        for index in range(self.num_frames):
            y, x = (start + speed * index) * (height, width)
            inside = (abs(rows - y) < height / 6) & (abs(columns - x) < width / 6)
            frames[:, index] = np.where(inside, colour[:, None, None], background)
        return {
            "video": torch.from_numpy(frames),
            "t5_text_embeddings": torch.zeros(TEXT_LENGTH, 1024),
            "t5_text_mask": torch.zeros(TEXT_LENGTH, dtype=torch.int64),
            "fps": float(self.fps),
            "num_frames": self.num_frames,
            "image_size": torch.tensor([height, width, height, width]),
            "padding_mask": torch.zeros(1, height, width),
            "sample_number": torch.tensor(sample_number, dtype=torch.int64),
        }

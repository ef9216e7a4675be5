"""A folder of captioned images as training samples: the published layout with `images/` in place of `videos/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_predict.config.lazy import configurable
from cosmos_predict.data import video_reader
from cosmos_predict.data.captions import Encoder
from cosmos_predict.data.video_folder import Clip, VideoFolderDataset
from cosmos_predict.data.video_reader import VideoInfo
from cosmos_predict.errors import DataError


@configurable
class ImageFolderDataset(VideoFolderDataset):
    """Images of a folder as clips of one frame: `video` uint8 (3, 1, H, W), `num_frames` 1, `fps` 16 as published.

    Layout: `<dataset_dir>/{images,metas,t5_xxl}`. Everything else is as in `VideoFolderDataset`: options, sample keys,
    what is skipped, replaced and refused. `num_frames` is there for the configuration, and can only be 1.
    """

    MEDIA = "image"
    SUFFIXES = video_reader.IMAGE_SUFFIXES

    def __init__(
        self,
        dataset_dir: str | Path,
        video_size: Sequence[int],
        num_frames: int = 1,
        fit: str = "stretch",
        fps: float = 16.0,
        seed: int = 0,
        shuffle: bool = True,
        strict: bool = False,
        max_bad_share: float = 0.1,
        text_encoder: Encoder | None = None,
        aspect_buckets: bool = False,
    ) -> None:
        if num_frames != 1:
            raise DataError(f"num_frames={num_frames}: an image dataset has samples of 1 frame; use data=video_folder")
        self.image_fps = float(fps)
        options: dict[str, Any] = {"seed": seed, "shuffle": shuffle, "strict": strict, "max_bad_share": max_bad_share}
        super().__init__(
            dataset_dir, 1, video_size, fit, text_encoder=text_encoder, aspect_buckets=aspect_buckets, **options
        )

    def _probe(self, path: Path) -> VideoInfo:
        from PIL import Image

        try:
            with Image.open(path) as image:  # the header alone
                width, height = image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: not a readable image ({error})") from error
        return VideoInfo(1, self.image_fps, width, height, 1 / self.image_fps, False)

    def _frames(self, clip: Clip, ids: np.ndarray) -> np.ndarray:
        return video_reader.read_image(clip.video)[None]

"""Clips of several cameras that film at the same time, joined along time, view after view.

    <dataset_dir>/videos/<camera>/<name>.mp4     one name, rate and length in every camera
    <dataset_dir>/t5_xxl/<camera>/<name>.pickle  text embedding (n, 1024); .safetensors and .pkl are read too
    <dataset_dir>/cache/prefix_t5_embeddings_<camera>.pickle   of what is said of the camera; also .pkl, prefix_<camera>.pkl

Waymo's cameras are pinhole_front, pinhole_front_left and so on; any names do.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosmos_predict.config.lazy import configurable
from cosmos_predict.data.captions import EMBEDDING_SUFFIXES, TEXT_LENGTH, caption_of, files_by_stem, load_text
from cosmos_predict.data.transforms import FittedFrames
from cosmos_predict.data.video_folder import Clip, Entry, VideoFolderDataset
from cosmos_predict.data.video_reader import VideoInfo
from cosmos_predict.errors import DataError
from cosmos_predict.io.embeddings import read_embedding

SPLITS = ("train", "val", "all")


@configurable
class MultiviewDataset(VideoFolderDataset):
    """Windows of clips in V views; samples, order, options and errors are those of `VideoFolderDataset`, but for:

    `video` uint8 (3, V T, H, W), the views one after the other, each with the same frames; `num_frames` T, of a view;
    `t5_text_embeddings` float32 (V 512, 1024) and `t5_text_mask` int64 (V 512,), 512 rows a view; `view_indices` int64
    (V T,) and `latent_view_indices_B_T` int64 (V t,), the id of the view of every frame and of every latent frame;
    `frame_repeat` float32 (V,), zeros; `sample_n_views` V; `ref_cam_view_idx_sample_position` int64 (1,), -1.

    Args:
        num_frames: T, of one view.
        camera_keys: the cameras' folders, in the order of the views along time.
        camera_to_view_id: the id by which the network knows a camera; None = its place in `camera_keys`.
        front_camera_key: the camera of `front_view_caption_only`.
        front_view_caption_only: the other views have no caption: zeros (with a mask of ones, as published), or the prefix.
        prefix: the embedding of the camera's prefix comes before the caption's.
        state_t: t, latent frames of a view; None = (T - 1) / 4 + 1.
        split: "train", "val" (the last int(0.1 N) + 1 of the N clips; a single clip is in both) or "all".
        options: the other arguments of `VideoFolderDataset`, but for `text_encoder`.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        num_frames: int,
        video_size: Sequence[int],
        camera_keys: Sequence[str],
        camera_to_view_id: Mapping[str, int] | None = None,
        front_camera_key: str | None = None,
        front_view_caption_only: bool = False,
        prefix: bool = False,
        state_t: int | None = None,
        split: str = "train",
        **options: Any,
    ) -> None:
        self.cameras, self.split = tuple(camera_keys), split
        ids = dict(camera_to_view_id or {camera: view for view, camera in enumerate(self.cameras)})
        front = (front_camera_key or "",) if front_view_caption_only else ()
        if not self.cameras or set(self.cameras) - set(ids) or set(front) - set(self.cameras) or split not in SPLITS:
            raise DataError(
                f"camera_keys={self.cameras} must name one camera or more, each with an id in camera_to_view_id={ids}, "
                f"front_camera_key={front_camera_key!r} one of them, and split={split!r} be one of {', '.join(SPLITS)}"
            )
        self.views = torch.tensor([ids[camera] for camera in self.cameras])
        self.captioned, self.prefix = front or self.cameras, prefix
        self.state_t = state_t or (int(num_frames) - 1) // 4 + 1
        super().__init__(dataset_dir, num_frames, video_size, **options)

    def load(self, clip: Clip, ids: np.ndarray) -> dict[str, Any]:
        return {
            **super().load(clip, ids),
            "view_indices": self.views.repeat_interleave(clip.shape[0]),
            "latent_view_indices_B_T": self.views.repeat_interleave(self.state_t),
            "frame_repeat": torch.zeros(len(self.cameras)),
            "sample_n_views": len(self.cameras),
            "ref_cam_view_idx_sample_position": torch.tensor([-1]),
        }

    def read(self, clip: Clip, ids: np.ndarray) -> FittedFrames:
        clips = [dataclasses.replace(clip, video=self._videos[camera][clip.name]) for camera in self.cameras]
        first, *others = [super(MultiviewDataset, self).read(one, ids) for one in clips]
        return dataclasses.replace(first, frames=torch.cat([first.frames, *(view.frames for view in others)]))

    def text_of(self, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
        texts = [self._text(clip.name, camera) for camera in self.cameras]
        return torch.cat([rows for rows, _ in texts]), torch.cat([mask for _, mask in texts])

    def _text(self, name: str, camera: str) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self._prefixes[camera]] if self.prefix else []
        parts += [self._embeddings[camera][name]] if camera in self.captioned else []
        if not parts:
            return torch.zeros(TEXT_LENGTH, 1024), torch.ones(TEXT_LENGTH, dtype=torch.int64)
        return load_text(np.concatenate([read_embedding(path) for path in parts]))

    def _probe(self, path: Path) -> VideoInfo:
        """What the first view holds, with the frames of the shortest; raises DataError where the rates differ."""
        infos = [super(MultiviewDataset, self)._probe(view) for view in self._views(path)]
        rates = [info.fps for info in infos]
        if max(rates) > 1.01 * min(rates):
            raise DataError(f"the views' frames per second differ: {', '.join(f'{rate:g}' for rate in rates)}")
        shortest = min(infos, key=lambda info: info.frames)
        return dataclasses.replace(infos[0], frames=shortest.frames, duration=shortest.duration)

    def _views(self, path: Path) -> list[Path]:
        return [self._videos[camera][path.stem] for camera in self.cameras if path.stem in self._videos[camera]]

    def entries(self) -> tuple[list[Entry], Path, str]:
        folder, text = self.dataset_dir, self.dataset_dir / "t5_xxl"
        make = f"python scripts/get_t5_embeddings.py --dataset_path {folder}"
        videos = {camera: files_by_stem(folder / "videos" / camera, self.SUFFIXES) for camera in self.cameras}
        self._videos = videos
        names = sorted(set().union(*videos.values()))
        if not names:
            raise DataError(f"{folder}/videos: no videos of {', '.join(self.cameras)}; expected videos/CAMERA/NAME.mp4")
        captions = files_by_stem(folder / "metas" / self.captioned[0], (".txt",))
        held_out = int(0.1 * len(names)) + 1
        parts = {"train": names[:-held_out] or names, "val": names[-held_out:], "all": names}
        self._embeddings = {camera: files_by_stem(text / camera, EMBEDDING_SUFFIXES) for camera in self.captioned}
        cached = files_by_stem(folder / "cache", EMBEDDING_SUFFIXES)
        named = {camera: (f"prefix_t5_embeddings_{camera}", f"prefix_{camera}") for camera in self.cameras}
        self._prefixes = {camera: cached[n] for camera, both in named.items() for n in reversed(both) if n in cached}
        if self.prefix and len(self._prefixes) < len(self.cameras):
            missing = ", ".join(f"{named[camera][0]}.pickle" for camera in self.cameras if camera not in self._prefixes)
            raise DataError(f"{folder}/cache: no {missing}; make the prefixes' embeddings, or set prefix=False")
        entries = []
        for name in parts[self.split]:
            lacks = [f"videos/{camera}/{name}.mp4" for camera in self.cameras if name not in videos[camera]]
            lacks += [f"t5_xxl/{camera}/{name}.*" for camera in self.captioned if name not in self._embeddings[camera]]
            problem = f"no {', '.join(lacks)}{f': {make}' if 't5_xxl' in str(lacks) else ''}" if lacks else ""
            video = next(files[name] for files in videos.values() if name in files)
            caption = functools.partial(caption_of, captions[name]) if name in captions else None
            entries.append(Entry(name, video, self._embeddings[self.captioned[0]].get(name), caption, problem))
        return entries, text / self.captioned[0], make

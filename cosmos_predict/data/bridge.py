"""Episodes of a robot arm with an instruction each: Bridge data in the IRASim layout.

    <dataset_dir>/annotation/{train,val,test}/<id>.json    `texts` (the first is used), `videos` (by camera number)
    <dataset_dir>/annotation/{train,val,test}/<id>.pickle  text embedding (n, 1024); .safetensors and .pkl are read too
    <dataset_dir>/videos/{train,val,test}/<id>/rgb.mp4     where `videos` of the annotation says

This is the layout of IRASim's archive; the annotations also hold states and actions, which `robot_actions` reads.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_predict.config.lazy import configurable
from cosmos_predict.data.captions import EMBEDDING_SUFFIXES, files_by_stem
from cosmos_predict.data.video_folder import Clip, Entry, VideoFolderDataset
from cosmos_predict.errors import DataError

SPLITS = ("train", "val", "test")


def read_annotation(path: Path) -> dict[str, Any]:
    """Return an episode's annotation; raises DataError for one that cannot be read or is no mapping."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a mapping with the keys texts and videos, got a {type(content).__name__}")
    return content


def instruction_of(path: Path) -> str:
    """Return the first text of an annotation; raises DataError where there is none, or an empty one."""
    texts = read_annotation(path).get("texts")
    if not isinstance(texts, list) or not texts or not isinstance(texts[0], str) or not texts[0].strip():
        raise DataError(f"{path}: no instruction: expected `texts`, a list whose first entry is used, got {texts!r}")
    return texts[0].strip()


def video_of(path: Path, camera: int = 0) -> Path:
    """Return the video of an annotation DATASET/annotation/SPLIT/ID.json; raises DataError where it names none."""
    videos = read_annotation(path).get("videos")
    try:
        return path.parents[2] / videos[camera]["video_path"]  # type: ignore[index]
    except (TypeError, IndexError, KeyError) as error:
        raise DataError(f"{path}: no video of camera {camera} in `videos`: {videos!r}") from error


def list_annotations(dataset_dir: Path, split: str) -> list[Path]:
    """Return the annotation files of a split, by name; raises DataError for an unknown split or one without any."""
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    folder = dataset_dir / "annotation" / split
    found = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: no annotations; expected annotation/{split}/ID.json and videos/{split}/ID/rgb.mp4")
    return found


@configurable
class BridgeInstructionDataset(VideoFolderDataset):
    """Windows of the episodes of one split; samples, order, options and errors are those of `VideoFolderDataset`.

    Episodes with fewer than `num_frames` frames are skipped and counted; of the published data, 16 to some 50 frames at
    3 frames per second, most are shorter than the published 57. `fps` is the file's own, and size and mask are the
    sample's, where the published reader stated fixed values (4; 256 x 256).

    Args:
        split: "train", "val" or "test".
        camera: which of the annotation's videos.
        options: the other arguments of `VideoFolderDataset`.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        num_frames: int,
        video_size: Sequence[int],
        split: str = "train",
        camera: int = 0,
        **options: Any,
    ) -> None:
        self.split, self.camera = split, int(camera)
        super().__init__(dataset_dir, num_frames, video_size, **options)

    def load(self, clip: Clip, ids: np.ndarray) -> dict[str, Any]:
        return {**super().load(clip, ids), "__key__": clip.name}

    def entries(self) -> tuple[list[Entry], Path, str]:
        files = list_annotations(self.dataset_dir, self.split)
        embeddings = files_by_stem(files[0].parent, EMBEDDING_SUFFIXES)
        script = "python scripts/get_t5_embeddings_from_bridge.py"
        make = f"{script} --dataset_path {self.dataset_dir} --subset {self.split}"
        return [self._entry(path, embeddings.get(path.stem)) for path in files], files[0].parent, make

    def _entry(self, path: Path, embedding: Path | None) -> Entry:
        caption = functools.partial(instruction_of, path)
        try:
            return Entry(path.stem, video_of(path, self.camera), embedding, caption)
        except DataError as error:
            return Entry(path.stem, path, embedding, caption, str(error))

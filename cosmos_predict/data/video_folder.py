"""A folder of captioned clips as training samples, in the published layout.

    <dataset_dir>/videos/<name>.mp4            any suffix of `video_reader.VIDEO_SUFFIXES`, in any case
    <dataset_dir>/metas/<name>.txt             caption (what embeddings are made from)
    <dataset_dir>/t5_xxl/<name>.safetensors    text embedding (n, 1024); .pickle and .pkl are read too

The folder is checked when the dataset is made: what is unusable is skipped and reported by name. A clip that fails
later is replaced by one that (seed, sample number) decide, named in the log and counted; too many are an error.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch.utils.data import Dataset

from cosmos_predict.config.lazy import configurable
from cosmos_predict.data import clip_sampler, transforms, video_reader
from cosmos_predict.data.loader import item_index
from cosmos_predict.data.video_reader import VideoInfo
from cosmos_predict.errors import DataError
from cosmos_predict.io.atomic import atomic_write_text
from cosmos_predict.io.embeddings import read_embedding
from cosmos_predict.randomness import numpy_generator

TEXT_LENGTH = 512
EMBEDDING_SUFFIXES = (".safetensors", ".pickle", ".pkl", ".npy", ".pth", ".pt")
INDEX_NAME = ".video_index.json"
# Below this many clips a folder is probed in about a second, and no index is written into it.
_INDEX_FROM = 200


@dataclass(frozen=True)
class Clip:
    """A usable clip: its name, files, and what the video holds."""

    name: str
    video: Path
    embedding: Path
    info: VideoInfo


@dataclass(frozen=True)
class FolderReport:
    """What a folder holds: clips found, their usable part, and (file name, reason) of what is skipped."""

    folder: Path
    found: int
    usable: int
    frames: int
    hours: float
    skipped: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        text = (
            f"{self.folder}: {self.usable} of {self.found} clips usable, {self.frames} frames, {self.hours:.3f} hours"
        )
        return f"{text}; skipped: {_listing(self.skipped)}" if self.skipped else text


@configurable
class VideoFolderDataset(Dataset[dict[str, Any]]):
    """Clips of a folder; `dataset[n]` is global sample n (any n >= 0), `len(dataset)` the number of usable clips.

    A sample holds `video` uint8 (3, T, H, W); `t5_text_embeddings` float32 (512, 1024), zero padded; `t5_text_mask`
    int64 (512,), 1 = real token; `fps`, the clip's frames per second as sampled; `num_frames` T; `image_size` int64
    (4,) = H padded, W padded, H resized, W resized; `padding_mask` float32 (1, H, W), 1 = padded; `video_name`, a dict
    of the files and the first frame; `sample_number` int64.

    Args:
        dataset_dir: the folder.
        num_frames: T.
        video_size: (H, W) of the samples.
        fit: how frames get that size: `stretch` (published training), `crop`, `pad`, `pad_width` (`transforms`).
        fps: resample to this rate by the frames' real times; None = consecutive frames at the file's own rate.
        sequence_interval: take every so many-th frame; needs fps=None.
        seed: of the order and the windows; one per run.
        shuffle: an order of its own per epoch; False = by name.
        strict: any unusable clip is an error, now or later.
        max_bad_share: more than this share of clips (and more than one) failing while reading is an error.
        backend: the decoder (`video_reader.read_frames`).

    Raises:
        DataError: a folder that is missing, empty, without embeddings (the message names the command that makes
            them) or without one usable clip; options that do not fit.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        num_frames: int,
        video_size: Sequence[int],
        fit: str = "stretch",
        fps: float | None = None,
        sequence_interval: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        strict: bool = False,
        max_bad_share: float = 0.1,
        backend: str = "auto",
    ) -> None:
        if fit not in transforms.FIT_POLICIES:
            raise DataError(f"unknown fit policy {fit!r}; known: {', '.join(transforms.FIT_POLICIES)}")
        if len(video_size) != 2 or min(video_size) < 1:
            raise DataError(f"video_size must be [height, width] in pixels, got {video_size!r}")
        if fps is not None and (fps <= 0 or sequence_interval != 1):
            raise DataError(f"fps must be positive and excludes sequence_interval, got {fps} and {sequence_interval}")
        self.dataset_dir = Path(dataset_dir)
        self.num_frames, self.video_size, self.fit = int(num_frames), (int(video_size[0]), int(video_size[1])), fit
        self.fps, self.sequence_interval = fps, int(sequence_interval)
        self.seed, self.shuffle, self.strict, self.backend = int(seed), shuffle, strict, backend
        self.max_bad_share = max_bad_share
        self.clips, self.report = self._scan()
        self.bad: dict[int, str] = {}
        if self.report.skipped and strict:
            raise DataError(f"strict=True refuses an incomplete folder; {self.report}")
        (logger.warning if self.report.skipped else logger.info)("{}", self.report)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, sample_number: int) -> dict[str, Any]:
        """Return global sample `sample_number`; raises DataError where a clip fails and `strict`, or too many do."""
        item = item_index(sample_number, len(self), self.seed, shuffle=self.shuffle)
        for candidate in itertools.chain([item], self._replacements(item, sample_number)):
            try:
                return self._load(self.clips[candidate], sample_number)
            except (DataError, OSError) as error:
                if self.strict:
                    raise
                self._note_failure(candidate, error)
        raise DataError(
            f"{self.dataset_dir}: sample {sample_number} and its replacements cannot be read: {self._bad_listing()}"
        )

    def frame_ids(self, clip: Clip, sample_number: int) -> np.ndarray:
        """Return the frame numbers (T,) int64 of `clip` that sample `sample_number` takes."""
        if self.fps is None:
            return clip_sampler.sample_window(
                clip.info.frames,
                self.num_frames,
                seed=self.seed,
                sample_number=sample_number,
                interval=self.sequence_interval,
            )
        return clip_sampler.sample_window_at_fps(
            _times(clip.video, clip.info), self.num_frames, self.fps, seed=self.seed, sample_number=sample_number
        )

    def _load(self, clip: Clip, sample_number: int) -> dict[str, Any]:
        ids = self.frame_ids(clip, sample_number)
        frames = torch.from_numpy(video_reader.read_frames(clip.video, ids, backend=self.backend))
        fitted = transforms.fit_frames(frames.permute(0, 3, 1, 2), self.video_size, self.fit)
        embeddings, mask = load_text(clip.embedding)
        return {
            "video": fitted.frames.permute(1, 0, 2, 3).contiguous(),
            "t5_text_embeddings": embeddings,
            "t5_text_mask": mask,
            "fps": float(self.fps or clip.info.fps / self.sequence_interval),
            "num_frames": self.num_frames,
            "image_size": fitted.image_size,
            "padding_mask": fitted.padding_mask,
            "video_name": {
                "video_path": str(clip.video),
                "t5_embedding_path": str(clip.embedding),
                "start_frame_id": str(ids[0]),
            },
            "sample_number": torch.tensor(sample_number, dtype=torch.int64),
        }

    def _replacements(self, item: int, sample_number: int) -> Iterable[int]:
        """Up to eight other items, in an order that only (seed, sample number) decide; drawn when first needed."""
        order = numpy_generator(self.seed, sample_number, "replacement").permutation(len(self))
        yield from [int(other) for other in order if other != item][:8]

    def _note_failure(self, item: int, error: Exception) -> None:
        if item in self.bad:
            return
        self.bad[item] = str(error)
        logger.warning(
            "{}: replaced by another clip ({} failed so far): {}", self.clips[item].video, len(self.bad), error
        )
        if len(self.bad) > max(1.0, self.max_bad_share * len(self)):
            raise DataError(
                f"{self.dataset_dir}: {len(self.bad)} of {len(self)} clips cannot be read, more than max_bad_share="
                f"{self.max_bad_share:g}: {self._bad_listing()}"
            )

    def _bad_listing(self) -> str:
        return _listing((self.clips[item].video.name, reason) for item, reason in self.bad.items())

    def _scan(self) -> tuple[list[Clip], FolderReport]:
        folder = self.dataset_dir
        videos_dir, text_dir = folder / "videos", folder / "t5_xxl"
        if not videos_dir.is_dir():
            raise DataError(
                f"{videos_dir}: no such folder; a dataset is DIR/videos/*.mp4, DIR/metas/*.txt, DIR/t5_xxl/*"
            )
        videos = sorted(path for path in videos_dir.iterdir() if video_reader.is_video(path))
        if not videos:
            raise DataError(f"{videos_dir}: no video in it ({', '.join(video_reader.VIDEO_SUFFIXES)})")
        make_text = f"python scripts/get_t5_embeddings.py --dataset_path {folder}"
        embeddings = _by_stem(text_dir, EMBEDDING_SUFFIXES)
        if not embeddings:
            raise DataError(f"{text_dir}: no text embeddings; make them with: {make_text}")
        captions = _by_stem(folder / "metas", (".txt",))
        infos = _probe_all(videos, folder / INDEX_NAME)
        clips: list[Clip] = []
        skipped: list[tuple[str, str]] = []
        for video, info in zip(videos, infos, strict=True):
            if video.stem not in embeddings:
                caption = "" if video.stem in captions else f"no caption metas/{video.stem}.txt and "
                skipped.append((video.name, f"{caption}no embedding t5_xxl/{video.stem}.*: {make_text}"))
            elif isinstance(info, str):
                skipped.append((video.name, info))
            elif reason := self._too_short(video, info):
                skipped.append((video.name, reason))
            else:
                clips.append(Clip(video.stem, video, embeddings[video.stem], info))
        frames, seconds = sum(clip.info.frames for clip in clips), sum(clip.info.duration for clip in clips)
        report = FolderReport(folder, len(videos), len(clips), frames, seconds / 3600, tuple(skipped))
        if not clips:
            raise DataError(f"no usable clip. {report}")
        return clips, report

    def _too_short(self, video: Path, info: VideoInfo) -> str | None:
        """Why the clip has no window, None if it has one."""
        try:
            if self.fps is None:
                clip_sampler.last_start(info.frames, self.num_frames, self.sequence_interval)
            else:
                clip_sampler.last_start_at_fps(_times(video, info), self.num_frames, self.fps)
        except DataError as error:
            return str(error)
        return None


def load_text(path: str | Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Read an embedding file: embeddings (512, 1024) float32, zero padded or cut; mask (512,) int64, 1 = real token.

    Raises what `cosmos_predict.io.embeddings.read_embedding` raises.
    """
    array = read_embedding(path)
    rows = min(len(array), TEXT_LENGTH)
    embeddings = torch.zeros(TEXT_LENGTH, array.shape[1])
    embeddings[:rows] = torch.from_numpy(array[:rows].astype(np.float32))
    return embeddings, (torch.arange(TEXT_LENGTH) < rows).long()


def _times(video: Path, info: VideoInfo) -> np.ndarray:
    """Frame times in seconds; files of constant rate need not be read for them."""
    return video_reader.frame_times(video) if info.variable_frame_rate else np.arange(info.frames) / info.fps


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files of a folder by name without suffix; where several suffixes exist, the first listed wins."""
    found: dict[str, Path] = {}
    if folder.is_dir():
        paths = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
        for path in sorted(paths, key=lambda path: -suffixes.index(path.suffix.lower())):
            found[path.stem] = path
    return found


def _probe_all(videos: list[Path], index_file: Path) -> list[VideoInfo | str]:
    """Probe all files, by threads; the reason in place of what cannot be read. Large folders keep an index file, keyed
    by name, size and time of change, so that a start does not open every file again."""
    known: dict[str, Any] = {}
    if len(videos) >= _INDEX_FROM and index_file.is_file():
        try:
            known = json.loads(index_file.read_text())
        except ValueError:
            logger.warning("{}: unreadable, made again", index_file)

    def probe(path: Path) -> tuple[list[int], VideoInfo | str]:
        key: list[int] = []
        try:
            status = path.stat()
            key = [status.st_size, status.st_mtime_ns]
            entry = known.get(path.name)
            return key, VideoInfo(*entry[1]) if entry and entry[0] == key else video_reader.probe(path)
        except (DataError, OSError) as error:
            return key, str(error)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(probe, videos))
    fresh = {
        path.name: [key, list(astuple(info))]
        for path, (key, info) in zip(videos, results, strict=True)
        if isinstance(info, VideoInfo)
    }
    if len(videos) >= _INDEX_FROM and fresh != known:
        try:
            atomic_write_text(index_file, json.dumps(fresh))
        except OSError as error:
            logger.debug("{}: index not written ({})", index_file, error)
    return [info for _, info in results]


def _listing(reasons: Iterable[tuple[str, str]], limit: int = 10) -> str:
    entries = [f"{name} ({reason})" for name, reason in reasons]
    more = f"; and {len(entries) - limit} more" if len(entries) > limit else ""
    return "; ".join(entries[:limit]) + more

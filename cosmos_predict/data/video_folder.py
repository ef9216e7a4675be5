"""A folder of captioned clips as training samples, in the published layout.

    <dataset_dir>/videos/<name>.mp4            any suffix of `video_reader.VIDEO_SUFFIXES`, in any case
    <dataset_dir>/metas/<name>.txt             caption (what embeddings are made from)
    <dataset_dir>/t5_xxl/<name>.safetensors    text embedding (n, 1024); .pickle and .pkl are read too

The folder is checked when the dataset is made: what is unusable is skipped and reported by name. A clip that fails
later is replaced by one that (seed, sample number) decide, named in the log and counted over all workers of a rank; too
many are an error. Samples have one shape, or that of their clip's bucket (`aspect_buckets`, `length_buckets`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from loguru import logger

from cosmos_predict.config.lazy import configurable
from cosmos_predict.data import clip_sampler, transforms, video_reader
from cosmos_predict.data.bad_items import BadItems, label, listing, refuse_bad
from cosmos_predict.data.captions import EMBEDDING_SUFFIXES, Encoder, caption_of, encode_texts, files_by_stem, load_text
from cosmos_predict.data.loader import NumberedDataset
from cosmos_predict.data.probe_index import INDEX_NAME, probe_all
from cosmos_predict.data.video_reader import VideoInfo
from cosmos_predict.errors import DataError
from cosmos_predict.io.embedding_index import check_same_encoder, fingerprint, index_file, read_index


@dataclass(frozen=True)
class Clip:
    """A usable clip: its name, files, what the video holds, and the (T, H, W) of its samples.

    embedding: None where its caption was encoded at start.
    """

    name: str
    video: Path
    embedding: Path | None
    info: VideoInfo
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Entry:
    """A clip of a folder before it is looked into: its name, files, what reads its caption (None: it has none), and why it
    cannot be used where that is known already."""

    name: str
    video: Path
    embedding: Path | None
    caption: Callable[[], str] | None
    problem: str = ""


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
        held = f"{self.frames} frames, {self.hours:.3f} hours"
        text = f"{self.folder}: {self.usable} of {self.found} clips usable, {held}"
        return f"{text}; skipped: {listing(self.skipped)}" if self.skipped else text


@configurable
class VideoFolderDataset(NumberedDataset):
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
        start_interval: windows start at multiples of so many frames only, as those of a latent cache do.
        seed: of the order and the windows; one per run.
        shuffle: an order of its own per epoch; False = by name.
        strict: any unusable clip is an error, now or later.
        max_bad_share: more than this share of clips (and more than one) that cannot be read, now or later, is an error.
        backend: the decoder (`video_reader.read_frames`).
        text_encoder: encodes, when the dataset is made, the captions that have no embedding file; None = such clips are
            skipped. It is not kept, so workers do not hold it.
        aspect_buckets: samples have the size, at the resolution of `video_size` (`transforms.aspect_sizes`), that is
            closest in shape to their clip, in place of `video_size`.
        length_buckets: shorter numbers of frames, for clips that are too short for `num_frames`: each takes the longest
            that it has room for. Numbers from `num_frames` on have no effect.

    Raises:
        DataError: a folder that is missing, empty, without embeddings (the message names the command that makes
            them) or without one usable clip; options that do not fit; embeddings of another encoder than `text_encoder`.
    """

    MEDIA: ClassVar[str] = "video"  # files are in the folder MEDIA + "s"
    SUFFIXES: ClassVar[tuple[str, ...]] = video_reader.VIDEO_SUFFIXES

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
        start_interval: int = 1,
        text_encoder: Encoder | None = None,
        aspect_buckets: bool = False,
        length_buckets: Sequence[int] = (),
    ) -> None:
        if fit not in transforms.FIT_POLICIES:
            raise DataError(f"unknown fit policy {fit!r}; known: {', '.join(transforms.FIT_POLICIES)}")
        if len(video_size) != 2 or min(video_size) < 1:
            raise DataError(f"video_size must be [height, width] in pixels, got {video_size!r}")
        if fps is not None and (fps <= 0 or sequence_interval != 1):
            raise DataError(f"fps must be positive and excludes sequence_interval, got {fps} and {sequence_interval}")
        if start_interval < 1:
            raise DataError(f"start_interval must be at least 1, got {start_interval}")
        self.dataset_dir = Path(dataset_dir)
        self.num_frames, self.video_size, self.fit = int(num_frames), (int(video_size[0]), int(video_size[1])), fit
        self.fps, self.sequence_interval, self.start_interval = fps, int(sequence_interval), int(start_interval)
        self.backend = backend
        self.sizes = transforms.aspect_sizes(self.video_size) if aspect_buckets else [self.video_size]
        shorter = sorted((int(n) for n in length_buckets if n < self.num_frames), reverse=True)
        self.lengths = [self.num_frames, *shorter]
        self.texts: dict[str, np.ndarray] = {}
        self.text_encoders: dict[str, Path] = {}  # which made the embeddings, as far as known, and where
        self.clips, self.report = self._scan(text_encoder, max_bad_share)
        videos, shapes = [clip.video for clip in self.clips], [clip.shape for clip in self.clips]
        super().__init__(BadItems(self.dataset_dir, videos, shapes, int(seed), strict, max_bad_share), shuffle)
        if self.report.skipped and strict:
            raise DataError(f"strict=True refuses an incomplete folder; {self.report}")
        (logger.warning if self.report.skipped else logger.info)("{}", self.report)
        names = [label(video, self.dataset_dir) for video in videos[:20]]
        more = f" and {len(videos) - 20} more" if len(videos) > 20 else ""
        logger.info("reading from {}: {}{}", self.dataset_dir / f"{self.MEDIA}s", ", ".join(names), more)

    def load_item(self, item: int, sample_number: int, shape: tuple[int, ...]) -> dict[str, Any]:
        clip = dataclasses.replace(self.clips[item], shape=shape)
        return self.load(clip, self.frame_ids(clip, sample_number))

    def frame_ids(self, clip: Clip, sample_number: int) -> np.ndarray:
        """Return the frame numbers (T,) int64 of `clip` that sample `sample_number` takes."""
        last, every = self._last_start(clip.video, clip.info, clip.shape[0]), self.start_interval
        start = clip_sampler.draw_start(last, seed=self.seed, sample_number=sample_number, start_interval=every)
        return self._windows(clip, [start])[0]

    def windows(self, clip: Clip) -> np.ndarray:
        """Return the frame numbers (n, T) int64 of all windows that samples of `clip` are drawn from, by their start."""
        last = self._last_start(clip.video, clip.info, clip.shape[0])
        return self._windows(clip, range(0, last + 1, self.start_interval))

    def _windows(self, clip: Clip, starts: Sequence[int]) -> np.ndarray:
        if self.fps is None:
            return np.array(starts)[:, None] + self.sequence_interval * np.arange(clip.shape[0])
        return clip_sampler.windows_at_fps(_times(clip.video, clip.info), starts, clip.shape[0], self.fps)

    def _last_start(self, video: Path, info: VideoInfo, length: int) -> int:
        if self.fps is None:
            return clip_sampler.last_start(info.frames, length, self.sequence_interval)
        return clip_sampler.last_start_at_fps(_times(video, info), length, self.fps)

    def read(self, clip: Clip, ids: np.ndarray) -> transforms.FittedFrames:
        """Return the frames numbered `ids` of a clip at its samples' size; raises DataError where they cannot be read."""
        frames = torch.from_numpy(self._frames(clip, ids))
        return transforms.fit_frames(frames.permute(0, 3, 1, 2), clip.shape[1:], self.fit)

    def clip_fps(self, clip: Clip) -> float:
        """Return the frames per second of the samples of a clip."""
        return float(self.fps or clip.info.fps / self.sequence_interval)

    def _frames(self, clip: Clip, ids: np.ndarray) -> np.ndarray:
        return video_reader.read_frames(clip.video, ids, backend=self.backend)

    def _probe(self, path: Path) -> VideoInfo:
        return video_reader.probe(path)

    def _views(self, path: Path) -> list[Path]:
        """Return the files that what `_probe` says of a clip depends on."""
        return [path]

    def load(self, clip: Clip, ids: np.ndarray) -> dict[str, Any]:
        """Return the sample, less its number, of the frames numbered `ids` (T,) of a clip; raises as `read` does."""
        fitted = self.read(clip, ids)
        embeddings, mask = self.text_of(clip)
        return {
            "video": transforms.channels_first(fitted.frames),
            "t5_text_embeddings": embeddings,
            "t5_text_mask": mask,
            "fps": self.clip_fps(clip),
            "num_frames": clip.shape[0],
            "image_size": fitted.image_size,
            "padding_mask": fitted.padding_mask,
            "video_name": {
                "video_path": str(clip.video),
                "t5_embedding_path": str(clip.embedding or ""),
                "start_frame_id": str(ids[0]),
            },
        }

    def text_of(self, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the text embeddings (512, 1024) float32 of a clip and their mask (512,) int64."""
        return load_text(self.texts[clip.name] if clip.embedding is None else clip.embedding)

    def entries(self) -> tuple[list[Entry], Path, str]:
        """Return what there is, by name, the folder of its embeddings, and the command that makes them.

        Raises DataError where nothing is there.
        """
        folder, media = self.dataset_dir, self.MEDIA
        media_dir, text_dir = folder / f"{media}s", folder / "t5_xxl"
        suffix = self.SUFFIXES[0]
        if not media_dir.is_dir():
            inside = "".join(f"; is {found.parent} meant?" for found in [*folder.glob(f"*/{media}s")][:1])
            raise DataError(
                f"{media_dir}: no such folder; a dataset is DIR/{media}s/*{suffix}, DIR/metas/*.txt, DIR/t5_xxl/*{inside}"
            )
        files = sorted(path for path in media_dir.iterdir() if path.suffix.lower() in self.SUFFIXES)
        files = [path for path in files if not path.name.startswith(".")]
        if not files:
            raise DataError(f"{media_dir}: no {media} in it ({', '.join(self.SUFFIXES)})")
        embeddings, captions = files_by_stem(text_dir, EMBEDDING_SUFFIXES), files_by_stem(folder / "metas", (".txt",))
        readers = {name: functools.partial(caption_of, path) for name, path in captions.items()}
        entries = [Entry(path.stem, path, embeddings.get(path.stem), readers.get(path.stem)) for path in files]
        made_by = read_index(text_dir).text_encoder
        encoder = "" if made_by in ("", "t5") else f" --text_encoder {made_by}"
        return entries, text_dir, f"python scripts/get_t5_embeddings.py --dataset_path {folder}{encoder}"

    def _scan(self, encoder: Encoder | None, max_bad_share: float) -> tuple[list[Clip], FolderReport]:
        folder = self.dataset_dir
        entries, text_dir, make_text = self.entries()
        files, embedded = [entry.video for entry in entries], bool(files_by_stem(text_dir, EMBEDDING_SUFFIXES))
        if not embedded and encoder is None:
            captions = "" if any(entry.caption for entry in entries) else " (and captions: scripts/import_videos.py)"
            small = " (for a small model on a CPU: --text_encoder tiny)"
            raise DataError(f"{text_dir}: no text embeddings{captions}; make them with: {make_text}{small}")
        made_by = read_index(text_dir).text_encoder if embedded else ""
        if encoder is not None:
            remedy = "use one, or remove the files"
            check_same_encoder(made_by, encoder.name, text_dir, "the dataset's text_encoder", remedy)
        probed = probe_all(files, folder / INDEX_NAME, self._probe, self._views)
        infos = [entry.problem or info for entry, info in zip(entries, probed, strict=True)]
        names = [label(path, folder) for path in files]
        clips, skipped, texts = list[Clip](), list[tuple[str, str]](), dict[str, str]()
        for entry, name, info in zip(entries, names, infos, strict=True):
            try:
                if isinstance(info, str):
                    raise DataError(info)
                if entry.embedding is None:
                    if encoder is None or entry.caption is None:
                        caption = "" if entry.caption else f"no caption metas/{entry.name}.txt and "
                        where = (text_dir / f"{entry.name}.*").relative_to(folder)
                        raise DataError(f"{caption}no embedding {where}: {make_text}")
                    texts[entry.name] = entry.caption()
                size = transforms.nearest_size(self.sizes, info.height, info.width)
                shape = (self._length(entry.video, info), *size)
                clips.append(Clip(entry.name, entry.video, entry.embedding, info, shape))
            except DataError as error:
                skipped.append((name, str(error)))
        frames, seconds = sum(clip.info.frames for clip in clips), sum(clip.info.duration for clip in clips)
        report = FolderReport(folder, len(files), len(clips), frames, seconds / 3600, tuple(skipped))
        if not clips:
            raise DataError(f"no usable clip. {report}")
        broken = [(name, info) for name, info in zip(names, probed, strict=True) if isinstance(info, str)]
        refuse_bad(folder, len(broken), len(files), max_bad_share, listing(broken))
        made_by = encoder.name if encoder is not None else made_by
        self.text_encoders = {made_by: text_dir} if made_by else {}
        if stale := stale_captions(entries, text_dir):
            names = ", ".join(stale[:10]) + (", ..." if len(stale) > 10 else "")
            what = "{}: {} caption(s) changed after their embedding was made, which is used as it is ({}); to renew them: {}"
            logger.warning(what, folder, len(stale), names, make_text)
        missing = {clip.name: texts[clip.name] for clip in clips if clip.embedding is None}
        if missing and encoder is not None:
            logger.info("{}: encoding {} captions that have no embedding file", folder, len(missing))
            self.texts = encode_texts(encoder, missing)
        return clips, report

    def _length(self, video: Path, info: VideoInfo) -> int:
        """Return the longest number of frames that the clip has a window of; raises DataError where there is none."""
        *longer, shortest = self.lengths
        for length in longer:
            with contextlib.suppress(DataError):
                self._last_start(video, info, length)
                return length
        self._last_start(video, info, shortest)
        return shortest


def stale_captions(entries: Sequence[Entry], text_dir: Path) -> list[str]:
    """Return the names of entries whose caption is no longer the one that their embedding was made of, as far as is known.

    Captions that are older than the index of the embeddings are not read again.
    """
    known, metas = read_index(text_dir).captions, text_dir.parent / "metas"
    if not known:
        return []
    indexed = index_file(text_dir).stat().st_mtime_ns
    old: set[str] = set()
    if metas.is_dir():
        with os.scandir(metas) as files:
            old = {file.name for file in files if file.stat().st_mtime_ns < indexed}

    def is_stale(entry: Entry) -> bool:
        if None in (entry.embedding, entry.caption) or entry.name not in known or f"{entry.name}.txt" in old:
            return False
        try:
            return entry.caption is not None and known[entry.name] != fingerprint(entry.caption())
        except DataError:  # emptied, say
            return True

    with ThreadPoolExecutor(8) as pool:
        return [entry.name for entry, stale in zip(entries, pool.map(is_stale, entries), strict=True) if stale]


def _times(video: Path, info: VideoInfo) -> np.ndarray:
    """Frame times in seconds; files of constant rate need not be read for them."""
    return video_reader.frame_times(video) if info.variable_frame_rate else np.arange(info.frames) / info.fps

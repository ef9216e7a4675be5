"""Whether a dataset can be trained on: what it holds, what is unusable and why, and the experiments that it fits.

Every layout is opened by the dataset that training opens it with, and each of its samples is read once. Nothing is changed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cosmos_predict.config import registry
from cosmos_predict.data import bridge
from cosmos_predict.data.bad_items import label
from cosmos_predict.data.image_folder import ImageFolderDataset
from cosmos_predict.data.latent_cache import LatentCacheDataset, read_index
from cosmos_predict.data.multiview import MultiviewDataset
from cosmos_predict.data.nemo_cache import LATENT, NemoCacheDataset
from cosmos_predict.data.video_folder import VideoFolderDataset
from cosmos_predict.errors import CosmosPredictError, DataError
from cosmos_predict.io import embedding_index

SIZE = (64, 64)  # samples are fitted to it; every frame is decoded at its own
WINDOW = 121  # frames read of a clip where nobody says how many; the longest published window
CHUNK = 32  # frames in memory at a time where all are read
Sample = tuple[int, int, int, float]  # frames, height, width, frames per second


@dataclasses.dataclass
class Fit:
    """Experiments of one clip length and size, how many clips they can use, how many of those are smaller, and if none why."""

    num_frames: int
    video_size: tuple[int, int]
    clips: int
    enlarged: int
    reason: str
    experiments: list[str]


@dataclasses.dataclass
class Report:
    """What one dataset holds: usable samples, all others and why, numbers of clips with a caption (None: not known) and with
    an embedding, and groups of files with the same content."""

    folder: str
    layout: str
    samples: dict[str, Sample]
    unusable: dict[str, str]
    captions: int | None
    embeddings: int
    text_encoders: list[str]
    duplicates: list[list[str]]
    experiments: list[Fit]


def check(folder: Path, num_frames: int | None = None, every_frame: bool = False, workers: int = 4) -> list[Report]:
    """Return a report for each dataset in `folder`, which is of any layout, or holds such folders (as train/ and val/).

    num_frames: shorter clips are unusable, and so many frames are read of each; None: of each what it has, up to `WINDOW`.
    every_frame: read all frames. Raises DataError where no layout is recognised.
    """
    reports = []
    for layout, path, make in _datasets(folder, num_frames):
        try:
            reports.append(_check(layout, make(), num_frames, every_frame, workers))
        except CosmosPredictError as error:
            reports.append(Report(str(path), layout, {}, {path.name: str(error)}, None, 0, [], [], []))
    return reports


class _NoText:
    """Stands in for the encoder of captions that have no embedding yet: their clips are read nevertheless."""

    def __init__(self, text_dir: Path) -> None:
        self.name = embedding_index.read_index(text_dir).text_encoder

    def encode(self, prompts: list[str], max_length: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(prompts), max_length, 1), torch.zeros(len(prompts), max_length, dtype=torch.bool)


def _datasets(folder: Path, num_frames: int | None) -> Iterator[tuple[str, Path, Callable[[], Any]]]:
    """Yield (layout, folder, what opens the dataset) of what is in `folder`."""
    options: dict[str, Any] = {"shuffle": False, "max_bad_share": 1.0}
    pixels = functools.partial(dict, **options, num_frames=num_frames or 1, video_size=SIZE)
    cameras = sorted(path.name for path in (folder / "videos").glob("*/") if path.name[0] != ".")
    text = folder / "t5_xxl"
    if (folder / "latents").is_dir():
        yield "latent cache", folder, functools.partial(_open_cache, folder, options)
    elif next(folder.glob(f"*.{LATENT}"), None):
        yield "Cosmos-1.0 latents", folder, functools.partial(NemoCacheDataset, folder, **options)
    elif (folder / "annotation").is_dir():
        for split in bridge.SPLITS:
            if (text := folder / "annotation" / split).is_dir():
                more = pixels(split=split, text_encoder=_NoText(text))
                yield f"Bridge, {split}", folder, functools.partial(bridge.BridgeInstructionDataset, folder, **more)
    elif cameras:
        captioned = [camera for camera in cameras if (text / camera).is_dir()]
        front = {"front_camera_key": (captioned or cameras)[0], "front_view_caption_only": len(captioned) == 1}
        more = pixels(camera_keys=cameras, split="all", **front)
        yield f"{len(cameras)} views", folder, functools.partial(MultiviewDataset, folder, **more)
    elif (folder / "instructions").is_dir() and not text.is_dir() and not (folder / "metas").is_dir():
        raise DataError(
            f"{folder}: videos with an instruction each, not yet a dataset; make it with: python "
            f"scripts/prepare_instruction_dataset.py --dataset_path {folder} --output_path {folder}_cached"
        )
    elif (folder / "videos").is_dir() or (folder / "images").is_dir():
        for kind in (VideoFolderDataset, ImageFolderDataset):
            if (folder / f"{kind.MEDIA}s").is_dir():
                more = pixels(text_encoder=_NoText(text), **({"num_frames": 1} if kind is ImageFolderDataset else {}))
                yield f"{kind.MEDIA}s", folder, functools.partial(kind, folder, **more)
    else:
        inside = [path for path in sorted(folder.glob("*/")) for name in ("videos", "images") if (path / name).is_dir()]
        if not inside:
            raise DataError(
                f"{folder}: no dataset in it; known are videos/ or images/ (and metas/, t5_xxl/), videos/CAMERA/, annotation/ of "
                f"Bridge data, latents/ of cache_latents.py, 0.{LATENT} ... of prepare_dataset.py, and folders of these"
            )
        for path in dict.fromkeys(inside):
            yield from _datasets(path, num_frames)


def _open_cache(folder: Path, options: Mapping[str, Any]) -> LatentCacheDataset:
    key = read_index(folder)["key"]
    same = ("num_frames", "video_size", "fit", "fps", "sequence_interval")
    return LatentCacheDataset(folder, **options, **{name: key[name] for name in same})


def _check(layout: str, dataset: Any, num_frames: int | None, every_frame: bool, workers: int) -> Report:
    folder, files = dataset.bad.where, list(dataset.bad.files)
    names, captions, encoders, unusable = [label(path, folder) for path in files], None, dict(dataset.text_encoders), {}
    if isinstance(dataset, VideoFolderDataset):
        entries, text_dir, make = dataset.entries()
        captions, lacking = sum(bool(e.caption) for e in entries), {e.name for e in entries if not e.embedding}
        embeddings, made_by = len(entries) - len(lacking), embedding_index.read_index(text_dir).text_encoder
        encoders = {made_by: text_dir} if made_by and embeddings else {}
        bare = [name for name, clip in zip(names, dataset.clips, strict=True) if clip.name in lacking]
        unusable = {**dict.fromkeys(bare, f"no embedding: {make}"), **dict(dataset.report.skipped)}
        read = functools.partial(_read_clip, dataset, num_frames=num_frames or WINDOW, every_frame=every_frame)
    else:
        embeddings, dataset.bad.strict = len(files), True  # an unreadable sample raises, none takes its place
        read = functools.partial(_read_latent, dataset)
        if isinstance(dataset, NemoCacheDataset):
            unusable = {f"{name}.*": f"incomplete: {kinds}" for name, kinds in dataset.missing.items()}

    def look(number: int) -> tuple[int, Sample | str]:
        item = dataset.plan.items([number])[0]
        try:
            return item, read(number, item)
        except (CosmosPredictError, OSError, ValueError) as error:
            return item, str(error)

    samples: dict[str, Sample] = {}
    with ThreadPoolExecutor(workers) as pool:
        for item, facts in tqdm(pool.map(look, range(len(files))), total=len(files), unit="clip", desc=folder.name):
            if isinstance(facts, str):
                unusable[names[item]] = facts
            elif names[item] not in unusable:
                samples[names[item]] = facts
    same = [[label(path, folder) for path in group] for group in same_content(files)]
    fits = list(_fits(dataset, list(samples.values()), encoders))
    ordered = (dict(sorted(samples.items())), dict(sorted(unusable.items())))
    return Report(str(folder), layout, *ordered, captions, embeddings, sorted(encoders), same, fits)


def _read_clip(dataset: VideoFolderDataset, number: int, item: int, *, num_frames: int, every_frame: bool) -> Sample:
    clip = dataset.clips[item]
    info = clip.info
    window = dataclasses.replace(clip, shape=(min(num_frames, info.frames), *clip.shape[1:]))
    dataset.load(window, dataset.frame_ids(window, number))
    for start in range(0, info.frames if every_frame else 0, CHUNK):
        dataset.read(clip, np.arange(start, min(start + CHUNK, info.frames)))
    return info.frames, info.height, info.width, round(info.fps, 3)


def _read_latent(dataset: Any, number: int, item: int) -> Sample:
    sample = dataset[number]
    if not sample["latent"].isfinite().all():
        raise DataError(f"{dataset.bad.files[item]}: its latent holds NaN or infinite values; make it again")
    return *dataset.shapes[item], round(sample["fps"], 3)


def same_content(files: Iterable[Path]) -> list[list[Path]]:
    """Return the groups of readable files, two or more, that hold the same bytes; only files of one size are read."""
    groups: dict[Any, list[Path]] = {}
    sizes = {path: path.stat().st_size for path in files if path.is_file()}
    count = Counter(sizes.values())
    for path, size in sizes.items():
        if size and count[size] > 1:
            with path.open("rb") as stream:
                groups.setdefault(hashlib.file_digest(stream, "sha256").digest(), []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def _fits(dataset: Any, samples: list[Sample], encoders: Mapping[str, Any]) -> Iterator[Fit]:
    """Yield what the registered experiments on such a dataset need, and how many of its samples have it."""
    kind, found = type(dataset), dict[tuple[Any, ...], list[str]]()
    for name, summary in registry.list_experiments():
        tree = {} if summary.startswith("= ") else registry.get_experiment(name).tree()
        reads = tree.get("dataloader_train", {}).get("dataset", {})
        pixels = VideoFolderDataset if kind is LatentCacheDataset else kind  # the cache replaces such a folder
        if reads.get("_target_") == f"{pixels.__module__}.{pixels.__qualname__}":
            pipe = tree["model"]["config"]["pipe_config"]
            needs = (reads["num_frames"], *reads["video_size"], pipe["text_encoder"], pipe["tokenizer"]["name"])
            found.setdefault(needs, []).append(name)
    for (frames, height, width, encoder, tokenizer), names in sorted(found.items()):
        reason = ""
        try:
            for made_by, where in encoders.items():
                embedding_index.check_same_encoder(made_by, encoder, where, "the experiment's", "")
        except DataError:
            reason = f"text of {'/'.join(encoders)}, not {encoder}"
        cached = isinstance(dataset, LatentCacheDataset | NemoCacheDataset)
        if cached and (made_by := dataset.key.get("tokenizer", tokenizer)) != tokenizer:
            reason = f"latents of {made_by}, not {tokenizer}"
        if isinstance(dataset, VideoFolderDataset):
            long = [s for s in samples if s[0] >= dataset.sequence_interval * (frames - 1) + 1]
        else:
            long = [s for s in samples if s[:3] == (frames, height, width)]
        smaller = sum(s[1] < height or s[2] < width for s in long)
        yield Fit(frames, (height, width), 0 if reason else len(long), smaller, reason, names)

"""Dataset folders in the published layout: from plain video files (linked where they can be, else copied), and an image
dataset from the frames of a video dataset."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cosmos_predict.data import transforms, video_reader
from cosmos_predict.data.bad_items import WriteReport
from cosmos_predict.errors import DataError
from cosmos_predict.io.atomic import atomic_path, atomic_write_text


def import_videos(
    source: str | Path, dataset_dir: str | Path, caption: str = "", short_side: int | None = None
) -> list[tuple[str, str]]:
    """Fill `dataset_dir/videos` and `dataset_dir/metas` from the videos of `source`; return (name, caption) of each.

    source: a folder of videos, or one with `videos/` (and `metas/`). A clip's caption is the text file of its name beside
    it or in `metas/`, else `caption`, else its file name in words. Existing captions of the dataset are kept. Raises
    DataError for a folder without videos, or with two of one name. short_side: larger clips are copied at that many pixels on
    their shorter side.
    """
    source, dataset_dir = Path(source), Path(dataset_dir)
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; give one that holds video files")
    videos = source / "videos" if (source / "videos").is_dir() else source
    found = sorted(path for path in videos.iterdir() if video_reader.is_video(path))
    if not found:
        raise DataError(
            f"no video files in {videos} ({', '.join(video_reader.VIDEO_SUFFIXES)}); its subfolders are not searched"
        )
    first = {path.stem: path for path in reversed(found)}
    for path in found:
        if first[path.stem] != path:
            raise DataError(f"{first[path.stem]} and {path.name} would share a caption: rename one of the two")
    imported = []
    for path in found:
        if not (short_side and _shrink(path, dataset_dir / "videos" / path.name, short_side)):
            _link(path, dataset_dir / "videos" / path.name)
        meta = dataset_dir / "metas" / f"{path.stem}.txt"
        if not meta.exists():
            atomic_write_text(meta, _caption(path, source, caption) + "\n")
        imported.append((path.stem, meta.read_text().strip()))
    return imported


def extract_images(source: str | Path, output: str | Path, stride: int = 30) -> WriteReport:
    """Save frames 0, stride, 2 stride, ... of `source/videos/*` as `output/images/VIDEO_KKKKKKKK.jpg`, K = 0, 1, 2, ...

    Images that exist are kept. A video that cannot be read is reported, the others go on. Raises DataError for a folder
    without videos, or a stride below 1.
    """
    if stride < 1:
        raise DataError(f"stride={stride} must be at least 1")
    videos, images = Path(source) / "videos", Path(output) / "images"
    if not videos.is_dir():
        raise DataError(f"{videos}: no such folder; a video dataset is DIR/videos/*.mp4")
    found = sorted(path for path in videos.iterdir() if video_reader.is_video(path))
    if not found:
        raise DataError(f"{videos}: no video in it ({', '.join(video_reader.VIDEO_SUFFIXES)})")
    report, first = WriteReport(), {path.stem: path for path in reversed(found)}
    for video in tqdm(found, unit="video", desc="images"):
        try:
            if first[video.stem] != video:
                raise DataError(f"its images would overwrite those of {first[video.stem].name}; rename one of the two")
            _extract(video, images, stride, report)
        except (DataError, OSError) as error:
            report.failed[video] = str(error)
    return report


def _extract(video: Path, images: Path, stride: int, report: WriteReport) -> None:
    from PIL import Image

    targets = {
        frame: images / f"{video.stem}_{number:08d}.jpg"
        for number, frame in enumerate(range(0, video_reader.probe(video).frames, stride))
    }
    missing = [frame for frame, target in targets.items() if not target.is_file()]
    report.kept += len(targets) - len(missing)
    for start in range(0, len(missing), 16):  # frames in memory at a time
        ids = missing[start : start + 16]
        for frame, picture in zip(ids, video_reader.read_frames(video, ids), strict=True):
            with atomic_path(targets[frame]) as temporary:
                Image.fromarray(picture).save(temporary, quality=95)
            report.written += 1


def _caption(video: Path, source: Path, default: str) -> str:
    for place in (video.with_suffix(".txt"), source / "metas" / f"{video.stem}.txt"):
        if place.is_file() and place.read_text().strip():
            return place.read_text().strip()
    return default or f"A video of {re.sub(r'[^0-9A-Za-z]+', ' ', video.stem).strip()}."


def _shrink(source: Path, target: Path, short_side: int) -> bool:
    """Write a smaller copy, whose shorter side is `short_side` pixels; False where the clip is no larger or unreadable."""
    try:
        if target.exists():  # made before: kept, unless it is a larger one
            info = video_reader.probe(target)
            if min(info.height, info.width) <= short_side + 1:
                return True
        info = video_reader.probe(source)
        scale = short_side / min(info.height, info.width)
        if scale >= 1:
            return False
        size = [2 * round(side * scale / 2) for side in (info.height, info.width)]
        parts = []
        for start in range(0, info.frames, 32):
            frames = video_reader.read_frames(source, range(start, min(start + 32, info.frames)))
            small = transforms.resize_truncated(torch.from_numpy(frames).permute(0, 3, 1, 2), size)
            parts.append(small.permute(0, 2, 3, 1).numpy())
    except DataError:
        return False  # linked as it is: the dataset names it and the reason
    video_reader.write_video(target, np.concatenate(parts), info.fps)
    return True


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)

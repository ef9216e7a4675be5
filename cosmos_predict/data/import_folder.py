"""From a folder of video files to a dataset folder in the published layout; files are linked where they can be, else copied."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from cosmos_predict.data import video_reader
from cosmos_predict.errors import DataError
from cosmos_predict.io.atomic import atomic_path, atomic_write_text


def import_videos(source: str | Path, dataset_dir: str | Path, caption: str = "") -> list[tuple[str, str]]:
    """Fill `dataset_dir/videos` and `dataset_dir/metas` from the videos of `source`; return (name, caption) of each.

    source: a folder of videos, or one with `videos/` (and `metas/`). A clip's caption is the text file of its name beside
    it or in `metas/`, else `caption`, else its file name in words. Existing captions of the dataset are kept. Raises
    DataError for a folder without videos.
    """
    source, dataset_dir = Path(source), Path(dataset_dir)
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; give one that holds video files")
    videos = source / "videos" if (source / "videos").is_dir() else source
    found = sorted(path for path in videos.iterdir() if video_reader.is_video(path))
    if not found:
        raise DataError(f"no video files in {videos} ({', '.join(video_reader.VIDEO_SUFFIXES)})")
    imported = []
    for path in found:
        _link(path, dataset_dir / "videos" / path.name)
        meta = dataset_dir / "metas" / f"{path.stem}.txt"
        if not meta.exists():
            atomic_write_text(meta, _caption(path, source, caption) + "\n")
        imported.append((path.stem, meta.read_text().strip()))
    return imported


def _caption(video: Path, source: Path, default: str) -> str:
    for place in (video.with_suffix(".txt"), source / "metas" / f"{video.stem}.txt"):
        if place.is_file() and place.read_text().strip():
            return place.read_text().strip()
    return default or f"A video of {re.sub(r'[^0-9A-Za-z]+', ' ', video.stem).strip()}."


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)

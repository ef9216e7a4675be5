"""What the files of a folder hold, read once: large folders keep it in an index file."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

from loguru import logger

from cosmos_predict.data.bad_items import label
from cosmos_predict.data.video_reader import VideoInfo
from cosmos_predict.errors import DataError
from cosmos_predict.io.atomic import atomic_write_text

INDEX_NAME = ".video_index.json"
INDEX_FROM = 200  # below this many clips a folder is probed in about a second, and no index is written into it


def probe_all(
    videos: list[Path], index: Path, probe: Callable[[Path], VideoInfo], views: Callable[[Path], list[Path]]
) -> list[VideoInfo | str]:
    """Probe all files, by threads; the reason in place of what cannot be read. Large folders keep an index file, keyed by name,
    and size and time of change of all the `views` of a clip, so that a start does not open every file again."""
    known: dict[str, Any] = {}
    if len(videos) >= INDEX_FROM and index.is_file():
        try:
            known = json.loads(index.read_text())
        except ValueError:
            logger.warning("{}: unreadable, made again", index)

    def look_up(path: Path) -> tuple[list[int], VideoInfo | str]:
        key: list[int] = []
        try:
            key = [number for s in map(Path.stat, views(path)) for number in (s.st_size, s.st_mtime_ns)]
            entry = known.get(label(path, index.parent))
            return key, VideoInfo(*entry[1]) if entry and entry[0] == key else probe(path)
        except (DataError, OSError) as error:
            return key, str(error)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(look_up, videos))
    fresh = {
        label(path, index.parent): [key, list(astuple(info))]
        for path, (key, info) in zip(videos, results, strict=True)
        if isinstance(info, VideoInfo)
    }
    merged = {**known, **fresh}  # other splits of the folder have theirs in the file
    if len(videos) >= INDEX_FROM and merged != known:
        try:
            atomic_write_text(index, json.dumps(merged))
        except OSError as error:
            logger.debug("{}: index not written ({})", index, error)
    return [info for _, info in results]

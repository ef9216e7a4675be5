"""Which files of the input folder are videos, which are captions beside them, and which are ignored, and why."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loguru import logger

from cosmos_predict.curate.captions import TABLES, names, rows
from cosmos_predict.curate.storage import Store
from cosmos_predict.data.video_reader import VIDEO_SUFFIXES
from cosmos_predict.errors import ConfigError, DataError

SUFFIXES = (*VIDEO_SUFFIXES, ".ts")
LISTED = 200  # ignored files that are named
LINES = 5  # of tables


@dataclass
class Inputs:
    """What lies in the input folder. videos: {relative path: path or URI}, of all shards; beside: files of captions.

    ignored: {file: why it is no input}, the first ones; num_ignored: how many there are.
    """

    videos: dict[str, str] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    num_ignored: int = 0


def beside(relative: str) -> set[str]:
    """Return where the captions of a video may be (`captions.sidecar`), as paths relative to the input folder."""
    path = Path(relative)
    texts = [path.with_suffix(".txt"), path.with_suffix(".json"), path.parent.parent / "metas" / f"{path.stem}.txt"]
    return {place.as_posix() for place in (*texts, *(folder / name for folder in path.parents for name in TABLES))}


def list_videos(
    source: Store | Path, shard: str = "1/1", only: Collection[str] | None = None
) -> tuple[dict[str, list[Any]], Inputs]:
    """Return {relative path: stamp} of the videos below a folder that belong to shard I/N, and all that is there.

    only: the full paths of those that count (`read_list`). Raises DataError where there is none, or one of `only` is not there;
    ConfigError for a shard that is not I/N, or a path in `only` that is not below the folder.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise ConfigError(f"--shard {shard}: expected I/N with I in 1..N, as 2/8")
    source = source if isinstance(source, Store) else Store(source)
    files, ignored = source.files(), dict[str, str]()
    for place in [place for place in files if not _is_text(place)]:
        logger.error(f"{place!r} is left out: its name is not UTF-8, so no record can name it; rename it")
        ignored[ascii(place)] = "its name is not UTF-8"
        del files[place]
    videos = {place: stamp for place, stamp in files.items() if Path(place).suffix.lower() in SUFFIXES}
    others = [place for place in files if place not in videos]
    if only is not None:
        videos = {place: files[place] for place in _below(source, files, only)}
    links = linked_folders(source)
    if not videos:
        aside = f"; links to folders are not followed, as {links[0]}: name its target" if links else ""
        raise DataError(f"{source.root}: no folder with videos ({' '.join(SUFFIXES)}){aside}")
    ignored |= dict.fromkeys(links, "a link to a folder, which is not followed; name its target as --input-video-path")
    ignored |= dict.fromkeys(broken_links(source), "a link to nothing")
    candidates = {place for video in videos for place in beside(video)}
    for place in (place for place in others if place not in candidates and place not in videos):
        caption = place.endswith((".txt", ".json", ".jsonl", ".csv"))
        ignored[place] = "captions of no video here" if caption else f"no video ({' '.join(SUFFIXES)})"
    named = dict([*ignored.items()][:LISTED])
    inputs = Inputs({place: source.uri(place) for place in videos}, sorted(candidates & {*others}), named, len(ignored))
    return {place: videos[place] for place in videos if zlib.crc32(place.encode()) % parts == part - 1}, inputs


def linked_folders(source: Store) -> list[str]:
    """Return the links to folders below a folder of this machine, in which nothing is looked for, with a / behind."""
    walk = [] if source.remote else os.walk(source.root)
    paths = (Path(folder, name) for folder, names, _ in walk for name in names if Path(folder, name).is_symlink())
    places = (f"{path.relative_to(source.root).as_posix()}/" for path in paths)
    return sorted(place for place in places if "/." not in f"/{place}")


def broken_links(source: Store) -> list[str]:
    """Return the links of videos below a folder of this machine whose file is not there (not fetched, on another disk)."""
    walk = [] if source.remote else os.walk(source.root)
    paths = (Path(folder, name) for folder, _, names in walk for name in names if name.lower().endswith(SUFFIXES))
    places = (path.relative_to(source.root).as_posix() for path in paths if not path.exists())
    return sorted(place for place in places if "/." not in f"/{place}")


def require_captions(source: Store, inputs: Inputs) -> None:
    """Raise DataError where there is no caption beside any video (`captions.sidecar`); warn of lines that name no video."""
    if inputs.beside:
        if strangers := _strangers(source, inputs):
            shown = ", ".join(strangers[:LINES]) + (", ..." if len(strangers) > LINES else "")
            where = "a table names videos by their paths from its own folder"
            logger.warning(f"{len(strangers)} lines of caption tables name no video here: {shown}; {where}")
        return
    root, _, _ = source.root.rpartition("/")
    above = Store(root or "/", source.profile).files("metas")
    if not any(f"metas/{Path(place).stem}.txt" in above for place in inputs.videos if "/" not in place):
        raise DataError(
            f"{source.root}: no captions beside any of {len(inputs.videos)} videos (NAME.txt, NAME.json, captions.jsonl or "
            "captions.csv); choose --captioning-algorithm template (from file names), none (curate.py caption adds them "
            "later), qwen, cosmos_r1 or openai (a model's)"
        )


def _strangers(source: Store, inputs: Inputs) -> list[str]:
    """Return "TABLE: FILE" of the lines of tables that name no video; a table that is none is told of later."""
    found, tables = list[str](), [place for place in inputs.beside if Path(place).name in TABLES]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch if source.remote else source.root)
        videos = [root / place for place in inputs.videos]
        for folder in {video.parent for video in videos} if source.remote and tables else ():  # `names` looks at these
            folder.mkdir(parents=True, exist_ok=True)
        of = defaultdict[str, list[Path]](list)
        for video in videos:
            of[video.stem].append(video)
        for place in tables:
            table = source.fetch(place, root / place)
            with contextlib.suppress(DataError):
                lines = (row for row in rows(table) if not any(names(table, row, video) for video in of[row["name"]]))
                found += [f"{place}: {row['file']}" for row in lines]
    return found


def read_list(path: str, profile: str = "") -> list[str]:
    """Return the full paths in a JSON file, an array of them; raises DataError where it is none."""
    folder, _, name = path.rpartition("/")
    text = Store(folder or ("/" if path.startswith("/") else "."), profile).read(name)
    if text is None:
        raise DataError(f"--input-video-list-json-path {path}: no such file")
    try:
        found = json.loads(text)
        if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
            raise ValueError(f"got {str(found)[:80]}")
    except ValueError as error:
        raise DataError(
            f"--input-video-list-json-path {path}: expected a JSON array of full paths ({error})"
        ) from error
    return found


def _below(source: Store, files: Collection[str], paths: Collection[str]) -> list[str]:
    """Return full paths as places below a folder, in the order of the folder's files."""
    paths = paths if source.remote else [os.path.abspath(path) for path in paths]
    outside = [path for path in paths if not path.startswith(f"{source.root}/")]
    if outside:
        raise ConfigError(f"--input-video-list-json-path: {outside[0]} does not lie below {source.root}, as all must")
    wanted = {path.removeprefix(f"{source.root}/") for path in paths}
    if absent := sorted(wanted - {*files}):
        raise DataError(f"--input-video-list-json-path: {source.uri(absent[0])} is not there, {len(absent)} in all")
    return [place for place in files if place in wanted]


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False

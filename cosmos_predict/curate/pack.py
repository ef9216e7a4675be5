"""`shard`: the kept clips as tar files in the published layout, sorted by resolution, shape and duration.

    OUT/v0/resolution_<R>/aspect_ratio_<W>_<H>/duration_<D>/{video,metas,t5_xxl}/part_<N>/<N>.tar, wdinfo.json
    OUT/wdinfo_list.csv

A sample has one key, its clip's id, in all three: `.mp4`, `.json` (as `metas/v0`), `.pickle` (a list, an array a window).
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from tqdm import tqdm

from cosmos_predict.curate.records import DATASET, Records
from cosmos_predict.curate.stage import Clip
from cosmos_predict.curate.storage import Store
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.embedding_index import EMBEDDING_SUFFIXES
from cosmos_predict.io.embeddings import dump_embeddings, read_embedding

ASPECTS = ((0.65, "9_16"), (0.88, "3_4"), (1.16, "1_1"), (1.55, "4_3"), (10.0, "16_9"))  # largest width / height
DURATIONS = ((5.0, 10.0, "5_10"), (10.0, 30.0, "10_30"), (30.0, float("inf"), "30_inf"))  # seconds
KEYS = {"video": "mp4", "t5_xxl": "pickle", "metas": "json"}


def bin_of(width: int, height: int, seconds: float) -> str | None:
    """Return the folder of a clip's kind; None for one shorter than 5 s or wider than 10 to 1, which are left out."""
    short = min(width, height)
    resolution = "1080" if short >= 1080 else "720" if short >= 720 else "lt_720"
    aspect = next((name for most, name in ASPECTS if width / height <= most), None)
    duration = next((name for least, most, name in DURATIONS if least <= seconds <= most), None)
    return f"resolution_{resolution}/aspect_ratio_{aspect}/duration_{duration}" if aspect and duration else None


def pack(results: Store, target: Store, tar_mb: float, tars_per_part: int, min_clips: int) -> Counter[str]:
    """Write the tar files; return how many clips went in, and how many not, by reason.

    tar_mb: a tar is closed once its videos are that large. min_clips: smaller tars are left out.

    Raises ConfigError where `target` is not empty, DataError where no clip has a text embedding.
    """
    if target.files():
        raise ConfigError(f"{target.root}: not empty; shard needs an empty folder")
    records, counts = Records(results, {}), Counter[str]()
    bins = defaultdict[str, list[list[Clip]]](lambda: [[]])
    places = results.files(f"{DATASET}/t5_xxl")
    embedded = {Path(place).stem: place for place in places if place.endswith(EMBEDDING_SUFFIXES)}
    sizes = Counter[str]()
    for video in records.restored(records.videos()):
        for clip in (clip for clip in video.clips if clip.place and clip.alive):
            folder = bin_of(clip.meta["width"], clip.meta["height"], clip.frames / clip.meta["framerate"])
            missing = not clip.windows or any(f"{clip.uuid}_{w.start}_{w.end}" not in embedded for w in clip.windows)
            reason = "without text embedding" if missing else "" if folder else "shorter than 5 s, or of an odd shape"
            counts[reason or "packed"] += 1
            if folder and not reason:
                if sizes[folder] >= tar_mb * 1e6:
                    bins[folder].append([])
                    sizes[folder] = 0
                bins[folder][-1].append(clip)
                sizes[folder] += clip.meta["num_bytes"]
    if not counts["packed"] and counts["without text embedding"]:
        raise DataError(f"{results.root}: no clip has a text embedding; make them with: scripts/curate.py embed")
    listing = []
    for folder, groups in sorted(bins.items()):
        tars = [group for group in groups if len(group) >= min_clips]
        counts["in tars that are too small"] += (few := sum(len(group) for group in groups if len(group) < min_clips))
        counts["packed"] -= few
        names = [f"part_{number // tars_per_part:06d}/{number % tars_per_part:06d}.tar" for number in range(len(tars))]
        for name, group in zip(tqdm(names, unit="tar", desc=folder), tars, strict=True):
            _write_tars(results, target, f"v0/{folder}", name, group, embedded)
        if tars:
            about = {"data_keys": [*KEYS], "chunk_size": max(map(len, tars)), "data_list": names}
            about |= {"root": target.uri(f"v0/{folder}"), "total_key_count": sum(map(len, tars))}
            target.write(f"v0/{folder}/wdinfo.json", json.dumps(about, indent=1))
            listing.append(f"v0/{folder}/wdinfo.json")
    target.write("wdinfo_list.csv", "".join(f"{line}\n" for line in listing))
    return counts


def _write_tars(
    results: Store, target: Store, folder: str, name: str, clips: list[Clip], embedded: dict[str, str]
) -> None:
    """Write the three tars of a group of clips; their bytes depend on the clips alone."""
    with tempfile.TemporaryDirectory() as scratch:
        with contextlib.ExitStack() as stack:
            tars = {key: stack.enter_context(tarfile.open(Path(scratch, f"{key}.tar"), "w")) for key in KEYS}
            for clip in clips:
                places = [embedded[f"{clip.uuid}_{window.start}_{window.end}"] for window in clip.windows]
                files = [results.fetch(place, Path(scratch, Path(place).name)) for place in places]
                video = results.fetch(clip.place, Path(scratch, "clip.mp4")).read_bytes()
                texts = json.dumps(clip.meta, indent=1).encode()
                vectors = dump_embeddings([read_embedding(file) for file in files])
                for key, data in zip(KEYS, (video, vectors, texts), strict=True):
                    entry = tarfile.TarInfo(f"{clip.uuid}.{KEYS[key]}")
                    entry.size = len(data)
                    tars[key].addfile(entry, io.BytesIO(data))
        for key in KEYS:
            target.put(f"{folder}/{key}/{name}", Path(scratch, f"{key}.tar"))

"""Captions without a model: what lies beside the video, or a template."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from cosmos_predict.curate.stage import Clip, Window
from cosmos_predict.errors import DataError

Captioner = Callable[[Clip, Window], str]  # returns the caption, or raises DataError saying why there is none


def sidecar(clip: Clip, window: Window) -> str:
    """Return the caption beside the clip's video: the first of these that there is.

    `NAME.txt`, or `../metas/NAME.txt`; `NAME.json` with `caption` or `prompt`; the lines of `captions.jsonl` or
    `captions.csv` in the folder whose `file` (or `video`, `video_clip`) names the video, with their `caption`. Where there
    are several captions, with `start` and `end` in seconds of the video, the one that overlaps the window most is taken.
    """
    path, fps = Path(clip.video.identity), clip.video.footage.fps
    start, end = (clip.start + window.start) / fps, (clip.start + window.end + 1) / fps
    for place in (path.with_suffix(".txt"), path.parent.parent / "metas" / f"{path.stem}.txt"):
        if place.is_file() and (text := place.read_text(encoding="utf-8-sig").strip()):
            return text
    tables = [path.parent / "captions.jsonl", path.parent / "captions.csv"]
    rows = [
        row for file in (path.with_suffix(".json"), *tables) for row in _rows(file) if row["name"] in ("", path.stem)
    ]
    overlaps = [min(end, float(row.get("end", end))) - max(start, float(row.get("start", start))) for row in rows]
    if not rows or max(overlaps) <= 0:
        raise DataError(
            f"no caption of {clip.video.relative}, {start:.1f}..{end:.1f} s: expected {path.stem}.txt or .json beside it, or "
            "its line in captions.jsonl; or choose --captioning-algorithm template"
        )
    return rows[overlaps.index(max(overlaps))]["caption"]


def template(pattern: str) -> Captioner:
    """Return a captioner that fills {words} (file name in words), {stem}, {parent}, {duration} (s) and {fps} into `pattern`.

    Raises DataError for a pattern that names anything else.
    """

    def caption(clip: Clip, window: Window) -> str:
        path, fps = Path(clip.video.identity), clip.video.footage.fps
        words = " ".join(word for word in re.split(r"[^0-9A-Za-z]+", path.stem) if word and not word.isdigit())
        fields = {"words": words or path.parent.name, "stem": path.stem, "parent": path.parent.name}
        return pattern.format(**fields, duration=f"{(window.end + 1 - window.start) / fps:.1f}", fps=f"{fps:g}")

    try:
        pattern.format(words="", stem="", parent="", duration="", fps="")
    except (KeyError, IndexError, ValueError) as error:
        known = "{words} {stem} {parent} {duration} {fps}"
        raise DataError(f"--caption-template {pattern!r}: {error!r}; known: {known}") from error
    return caption


def _rows(file: Path) -> list[dict[str, Any]]:
    """Return {name, caption, start?, end?} of each entry of a file; name: the video's without suffix, "" in its own file."""
    return _read_rows(file, file.stat().st_mtime_ns) if file.is_file() else []


@lru_cache(maxsize=64)
def _read_rows(file: Path, changed: int) -> list[dict[str, Any]]:
    entries: Any
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".json":
            content = json.loads(text)
            value = content.get("caption") or content.get("prompt") if isinstance(content, dict) else content
            entries = [{"caption": value}] if isinstance(value, str) else value
        elif file.suffix == ".csv":
            entries = list(csv.DictReader(text.splitlines()))
        else:
            entries = [json.loads(line) for line in text.splitlines() if line.strip()]
        names = [next((row[key] for key in ("file", "video", "video_clip") if row.get(key)), "") for row in entries]
        rows = [{**row, "name": Path(name).stem} for row, name in zip(entries, names, strict=True)]
        return [{**row, "caption": row["caption"].strip()} for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{file}: expected entries with caption (and file, in a table), got {error!r}") from error

"""Captions: what lies beside the video, a template, or what a model says; and a model's rewriting of them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cosmos_predict.curate.endpoint import Answer
from cosmos_predict.curate.stage import Clip, Window
from cosmos_predict.curate.vlm import Model, final_answer, prompts, watch
from cosmos_predict.errors import DataError

TABLES = ("captions.jsonl", "captions.csv")
Captioner = Callable[[Clip, Window], str]  # returns the caption, or raises DataError saying why there is none


def sidecar(clip: Clip, window: Window) -> str:
    """Return the caption beside the clip's video: the first of these that there is.

    `NAME.txt`, or `../metas/NAME.txt`; `NAME.json` with `caption` or `prompt`; the lines of `captions.jsonl` or
    `captions.csv` that name the video (columns: `data.captions.COLUMNS`; tables: `names`). Where there are several
    captions, with `start` and `end` in seconds of the video, the one that overlaps the window most is taken.

    Raises DataError where there is none, or a file is not what its name says.
    """
    path, fps = clip.video.path, clip.video.footage.fps
    start, end = (clip.start + window.start) / fps, (clip.start + window.end + 1) / fps
    for place in (path.with_suffix(".txt"), path.parent.parent / "metas" / f"{path.stem}.txt"):
        if place.is_file() and (text := _text(place)):
            return text
    beside = path.with_suffix(".json")
    tables = (folder / name for folder in [*path.parents][: len(Path(clip.video.relative).parts)] for name in TABLES)
    found = [(file, row) for file in (beside, *tables) for row in rows(file) if names(file, row, path)]
    overlaps = [min(end, row.get("end", end)) - max(start, row.get("start", start)) for _, row in found]
    if not found or max(overlaps) <= 0:
        files = " and ".join(dict.fromkeys(file.name for file, _ in found))
        place = f"{path.stem}.txt or .json beside it, or its line in captions.jsonl or captions.csv there or further up"
        why = f"{files} has no entry for these seconds" if found else f"expected {place}"
        of = f"no caption of {clip.video.relative}, {start:.1f}..{end:.1f} s"
        raise DataError(f"{of}: {why}; or choose --captioning-algorithm template")
    return found[overlaps.index(max(overlaps))][1]["caption"]


def names(table: Path, row: Mapping[str, Any], video: Path) -> bool:
    """Return whether a line of a table means a video: it has its path from the table's folder, with or without suffix.

    In the video's own folder its name is enough, but not behind that of a folder there; an entry of NAME.json needs neither.
    """
    if row["name"] != video.stem:
        return not row["name"]
    named = table.parent / row["file"]
    if named.with_suffix("") == video.with_suffix("") or video.parent != table.parent:
        return named.with_suffix("") == video.with_suffix("")
    return not (named.is_relative_to(table.parent) and named.parent.is_dir())


def template(pattern: str) -> Captioner:
    """Return a captioner that fills {words} (file name in words), {stem}, {parent}, {duration} (s) and {fps} into `pattern`.

    Raises DataError for a pattern that names anything else.
    """

    def caption(clip: Clip, window: Window) -> str:
        path, fps = clip.video.path, clip.video.footage.fps
        words = " ".join(word for word in re.split(r"[^0-9A-Za-z]+", path.stem) if word and not word.isdigit())
        fields = {"words": words or path.parent.name, "stem": path.stem, "parent": path.parent.name}
        return pattern.format(**fields, duration=f"{(window.end + 1 - window.start) / fps:.1f}", fps=f"{fps:g}")

    try:
        pattern.format(words="", stem="", parent="", duration="", fps="")
    except (KeyError, IndexError, ValueError) as error:
        known = "{words} {stem} {parent} {duration} {fps}"
        raise DataError(f"--caption-template {pattern!r}: {error!r}; known: {known}") from error
    return caption


def by_model(model: Model, options: Mapping[str, Any]) -> Captioner:
    """Return a captioner that shows the window to a model; it raises DataError for an answer that is empty or cut short."""
    asked, rate = prompts(), options["captioning_sampling_fps"]
    prompt = options["captioning_prompt_text"] or asked["caption"][options["captioning_prompt_variant"]]
    system = asked["reasoning"] if options["captioning_algorithm"].startswith("cosmos") else ""

    def caption(clip: Clip, window: Window) -> str:
        tokens = options["captioning_max_output_tokens"]
        said = model.answer(prompt, watch(clip, window, rate), rate, system, tokens)
        window.prompt_tokens, window.output_tokens = said.prompt_tokens, said.output_tokens
        return _accept(said, options)

    return caption


def enhanced(caption: str, model: Model, options: Mapping[str, Any]) -> str:
    """Return the caption as a model rewrites it; raises DataError as `by_model`."""
    prompt = options["enhance_captions_prompt_text"] or prompts()["enhance"][options["enhance_captions_prompt_variant"]]
    prompt = prompt.replace("{caption}", caption) if "{caption}" in prompt else f"{prompt}\n\n{caption}"
    return _accept(model.answer(prompt, None, 0.0, "", options["captioning_max_output_tokens"]), options)


def _accept(said: Answer, options: Mapping[str, Any]) -> str:
    if not said.whole and not options["accept_truncated"]:
        tokens = options["captioning_max_output_tokens"]
        raise DataError(f"the caption was cut off at --captioning-max-output-tokens {tokens} (see --accept-truncated)")
    if not (text := final_answer(said.text)):
        raise DataError("the model answered nothing")
    return text


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected a caption in UTF-8, got {error}") from error


def rows(file: Path) -> list[dict[str, Any]]:
    """Return {file, name, caption, start?, end?} of each entry; [] where there is no such file.

    name: of the video, without suffix, "" in NAME.json. Raises DataError for another content.
    """
    return _read_rows(file, file.stat().st_mtime_ns) if file.is_file() else []


@lru_cache(maxsize=64)
def _read_rows(file: Path, changed: int) -> list[dict[str, Any]]:
    from cosmos_predict.data.captions import COLUMNS

    entries: Any
    files, texts = COLUMNS
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".json":
            content = json.loads(text)
            value = content.get("caption") or content.get("prompt") if isinstance(content, dict) else content
            entries = [{"caption": value}] if isinstance(value, str) else value
        elif file.suffix == ".csv":
            found = csv.DictReader(text.splitlines(keepends=True), skipinitialspace=True)
            entries = [{(key or "").strip().lower(): value for key, value in row.items()} for row in found]
        else:
            entries = [json.loads(line) for line in text.splitlines() if line.strip()]
        found = [_row(entry, files, texts, named=file.suffix != ".json") for entry in entries]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        expected = "expected entries with caption (and file, in a table)"
        columns = f"columns of a table: {' or '.join(files)}; {' or '.join(texts)}"
        raise DataError(f"{file}: {expected}, got {error!r}; {columns}") from error
    for number, row in enumerate(found, 1):
        for key in ("start", "end"):
            try:
                row |= {key: float(row[key])} if key in row else {}
            except (ValueError, TypeError) as error:
                raise DataError(f"{file}: entry {number}: {key} must be seconds, got {row[key]!r}") from error
    return found


def _row(entry: Mapping[str, Any], files: Sequence[str], texts: Sequence[str], named: bool) -> dict[str, Any]:
    name = next((entry[key] for key in files if entry.get(key)), "")
    if named and not name:
        raise ValueError(f"no video named in {dict(entry)}")
    caption = next((entry[key] for key in texts if key in entry), None)
    if not isinstance(caption, str):
        raise ValueError(f"no caption in {dict(entry)}")
    seconds = {key: entry[key] for key in ("start", "end") if entry.get(key) not in (None, "")}
    return {"file": name, "name": Path(name).stem, "caption": caption.strip(), **seconds}

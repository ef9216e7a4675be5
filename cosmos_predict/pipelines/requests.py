"""What a user asks for in files: the items of a batch, and the sidecar beside a clip, which says how to make it again."""

from __future__ import annotations

import difflib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loguru import logger

from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.atomic import atomic_write_text

# Published names of a batch item's keys, and the options that they stand for.
ITEM_KEYS = {
    **dict.fromkeys(("input_video", "input_image", "input_path", "visual_input"), "input_path"),
    **dict.fromkeys(("output_video", "output_image", "save_path"), "save_path"),
    **{name: name for name in ("prompt", "negative_prompt", "seed")},
}


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file. Raises DataError with the line that is no UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        what = f"line {line}, byte {error.start} of the file ({error.object[error.start]:#04x})"
        raise DataError(f"{path}: no UTF-8 text at {what}; save it as UTF-8") from None


def read_batch(
    path: str | Path, required: Iterable[str], suffix: str, stem: str = "output_{}", *, lines: bool = False
) -> list[dict[str, Any]]:
    """Return the options of every item of a batch file, a JSON list of objects with keys of `ITEM_KEYS`.

    required: options that every item must have; save_path is `stem` with the index in it + suffix where an item has none.
    lines: one object per line (JSON Lines) instead of a list.
    Raises DataError showing the line of what is wrong, FileNotFoundError for no file.
    """
    path = Path(path)
    if not path.is_file():
        expected = "an object per line" if lines else "a JSON list of objects"
        raise FileNotFoundError(f"no batch file {path}: expected {expected}")
    text = read_text(path)

    def wrong(position: int, what: str) -> DataError:
        number = text.count("\n", 0, position) + 1
        line = (text.splitlines() or [""])[number - 1].strip()
        return DataError(f"{path}, line {number}: {what}\n  {line[:160]}")

    def parse(part: str, start: int = 0) -> Any:
        try:
            return json.loads(part)
        except json.JSONDecodeError as error:
            raise wrong(start + min(error.pos, len(part.rstrip()) - 1), f"no valid JSON: {error.msg}") from None

    def of_lines() -> Iterator[tuple[int, Any]]:
        start = 0
        for line in text.split("\n"):
            if line.strip():
                yield start, parse(line, start)
            start += len(line) + 1

    def of_list() -> Iterator[tuple[int, Any]]:
        items = parse(text)
        if not isinstance(items, list) or not items:
            raise wrong(0, 'expected a list of objects, [{"prompt": ...}, ...]')
        position = text.index("[") + 1
        for item in items:
            position += len(text[position:]) - len(text[position:].lstrip(" \t\r\n,"))
            yield position, item
            position = json.JSONDecoder().raw_decode(text, position)[1]

    found: dict[Path, dict[str, Any]] = {}
    for index, (position, item) in enumerate(of_lines() if lines else of_list()):
        if not isinstance(item, dict):
            raise wrong(position, f"item {index} is no object")
        if unknown := [key for key in item if key not in ITEM_KEYS]:
            near = difflib.get_close_matches(unknown[0], ITEM_KEYS, 1) or ITEM_KEYS
            position = max(text.find(f'"{unknown[0]}"', position), position)  # it may stand there in escapes
            raise wrong(position, f"unknown key {unknown[0]!r}; did you mean {' or '.join(near)}?")
        options = {"save_path": stem.replace("{}", str(index)) + suffix}
        options |= {ITEM_KEYS[key]: value for key, value in item.items()}
        for name in {*options, *required}:
            kind = int if name == "seed" else str
            given = options.get(name)
            fits = type(given) is kind and (not isinstance(given, int) or 0 <= given < 2**32)  # True is an int, too
            if not fits or (name in required and not given):
                key = next((key for key in item if ITEM_KEYS[key] == name), name)
                wanted = f"{kind.__name__}{' from 0 to 4294967295' if kind is int else ''}"
                raise wrong(position, f"item {index}: {key} is {given!r}, expected {wanted}")
        if found.setdefault(sidecar_path(options["save_path"]), options) is not options:
            raise wrong(position, f"item {index} writes {options['save_path']}, as an item before it does")
    if not found:
        raise wrong(0, 'no items; expected a line {"prompt": ...} for each')
    return list(found.values())


def output_path(save_path: str, suffixes: tuple[str, ...]) -> Path:
    """Return the file to write, with the first of `suffixes` where it has none. Makes its folder.

    Raises ConfigError for another suffix, or for a folder that cannot be written to.
    """
    path = Path(save_path)
    if path.is_dir() or save_path.endswith("/"):
        raise ConfigError(f"--save_path {save_path or repr('')}: expected a file's name, and this is a folder's")
    path = path if path.suffix else path.with_name(path.name + suffixes[0])
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"--save_path {save_path}: expected a name that ends in {' or '.join(suffixes)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write to {path.parent} ({error.strerror}): give another --save_path") from None
    return path


def sidecar_path(save_path: str | Path) -> Path:
    """Return where the settings of an output are kept: beside it, as `.json`."""
    return Path(save_path).with_suffix(".json")


def write_sidecar(save_path: Path, content: Mapping[str, Any]) -> None:
    """Write the settings of an output; it comes after the output itself, so that it also says that this is whole."""
    atomic_write_text(sidecar_path(save_path), json.dumps(content, indent=1) + "\n")


def read_sidecar(path: str | Path) -> dict[str, Any]:
    """Return the content of a sidecar. Raises DataError for another file, FileNotFoundError for none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no sidecar {path}: expected the .json that lies beside a generated clip")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        needed = {name: content[name] for name in ("command", "arguments")}
        return {"hashes": {}, "environment": {}, **needed, **content}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the sidecar of a generated clip ({type(error).__name__}: {error})") from None


def is_done(save_path: Path, content: Mapping[str, Any]) -> bool:
    """Return whether an earlier run wrote this output with exactly these settings."""
    sidecar = sidecar_path(save_path)
    return save_path.is_file() and sidecar.is_file() and sidecar.read_text() == json.dumps(content, indent=1) + "\n"


def check_same_files(path: str | Path, new: Mapping[str, Any]) -> None:
    """Compare the sidecar of a clip that is made again with the `new` one: DataError where a file has another content
    than it had then, a warning where bits may differ.
    """
    old = read_sidecar(path)
    for name, mark in old["hashes"].items():
        flag, _, part = name.partition(" ")  # a part that has no option of its own
        found = new["arguments"].get(flag), old["arguments"].get(flag), new["hashes"].get(name), mark
        for file, was, now, then in zip(*(v if isinstance(v, list) else [v] for v in found), strict=False):
            if now and file == was and now != then:
                what = f"the {part} of {file}" if part else file
                advice = f"give the one it was made with as --{flag}"
                raise DataError(f"{path}: {what} was {then} and is {now} now; {advice}")
    for name, value in old["environment"].items():
        if new["environment"].get(name) != value:
            logger.warning("made with {} {}, now {}: bits may differ", name, value, new["environment"].get(name))

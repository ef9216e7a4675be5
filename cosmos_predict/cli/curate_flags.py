"""Words of `scripts/curate.py split` before they are parsed: options of a file as flags, published flags without a meaning."""

from __future__ import annotations

import argparse
import fnmatch
import functools
import sys
from pathlib import Path
from typing import Any

from cosmos_predict.config.names import did_you_mean

FOLDER = Path(__file__).parents[1] / "curate"
ALWAYS = {"input-video-path", "output-clip-path", "config", "help", "help-all", "verbose"}


def read_options() -> dict[str, dict[str, list[Any]]]:
    """Return the options of `split` by group: `curate/options.yaml`."""
    import yaml

    return yaml.safe_load((FOLDER / "options.yaml").read_text(encoding="utf-8"))


def from_file(file: Path, command: str, parser: argparse.ArgumentParser) -> list[str]:
    """Return the options of a YAML or JSON file as flags; those of the command line come later and overrule them.

    parser: of the command, which need not have all options of `split` that the file has; but a name that no command has
    ends the program. The published form, {pipeline: split, args: {...}}, is taken, too.
    """
    import yaml

    try:
        given = dict(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
        given = dict(given["args"]) if {*given} == {"pipeline", "args"} and given["pipeline"] == "split" else given
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        parser.error(f"--config {file}: no YAML file of options by name ({error})")
    groups, flags = read_options().values(), list[str]()
    lists = {name for group in groups for name, (default, *_) in group.items() if isinstance(default, list)}
    own = {name.removeprefix("--") for name in parser._option_string_actions if name.startswith("--")}
    for key, values in given.items():
        name = str(key).replace("_", "-")
        if f"no-{name}" in _known() and isinstance(values, bool):  # as the published files have it
            name, values = f"no-{name}", not values
        if name == "qwen-filter-enable":
            name, values = "vlm-filter", "enable" if values else "disable"
        if (found := key if key in own else name) in own:  # embed has names with _
            name = found
        elif name not in _known() and not _published(name):
            parser.error(f"--config {file}: {key}: no such option; {did_you_mean(name, own | _known())}")
        elif command != "split":
            continue
        if isinstance(values, list) and name not in lists:
            parser.error(f"--config {file}: {name}: expected one value, got {values}")
        for value in values if isinstance(values, list) else [values]:
            if value is not False and value is not None:  # 0 is a value
                flags.append(f"--{name}" if value is True else f"--{name}={value}")
    return flags


def without_published(words: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """Return the words but for published flags that mean nothing here (`curate/published.yaml`), which are told of.

    One that asks for what there is not ends the program, with a line that says so.
    """
    rest, remaining = list[str](), words[::-1]
    while remaining:
        word = remaining.pop()
        name, is_given, value = word.removeprefix("--").partition("=")
        row = _published(name) if word.startswith("--") and name not in _known() else None
        if row is None:
            rest.append(word)
            continue
        if not is_given and remaining and not remaining[-1].startswith("--"):
            is_given, value = "=", remaining.pop()
        kind, why, unless = row
        if kind == "refused" and not (is_given and value.lower() in unless):
            parser.error(f"--{name}: {why}")
        print(f"--{name} has no effect: {why}", file=sys.stderr)
    return rest


@functools.cache
def _known() -> set[str]:
    """Return the names of all options of `split`."""
    rows = [(name, more) for group in read_options().values() for name, (_, _, *more) in group.items()]
    return ALWAYS.union(*([name, *(more[0].get("aliases", []) if more else [])] for name, more in rows))


def _published(name: str) -> tuple[str, str, list[str]] | None:
    """Return of a published flag that means nothing here: accepted or refused, why, and unless it has which value."""
    import yaml

    table = yaml.safe_load((FOLDER / "published.yaml").read_text(encoding="utf-8"))
    rows = (row for row in table["flags"] if any(fnmatch.fnmatchcase(name, pattern) for pattern in row[1]))
    return next(((kind, why, table["unless"]) for kind, _, why in rows), None)

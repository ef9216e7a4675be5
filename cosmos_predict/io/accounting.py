"""Strict accounting: every tensor of a file has a place in the network and every place is filled, or the load is refused."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Accounting:
    """How the tensors of a file differ from what a network expects; names are native unless the file's is unknown.

    wrong_shape: (name, shape in the file, shape in the network). cause: the likely reason in words, or "".
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[tuple[str, Shape, Shape], ...]
    cause: str = ""

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        lines = []
        for title, names in (("missing from the file", self.missing), ("not in the network", self.unexpected)):
            if names:
                lines += [f"{title}: {len(names)}", *rows(grouped(names))]
        if self.wrong_shape:
            wrong = [f"{name}  file {found}, network {expected}" for name, found, expected in self.wrong_shape]
            lines += [f"wrong shape: {len(wrong)}", *rows(wrong)]
        if self.cause:
            lines.append(f"likely cause: {self.cause}")
        return "\n".join(lines)


def compare(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> Accounting:
    """Return how the shapes of a file differ from those of a network, without a cause."""
    missing = tuple(name for name in expected if name not in found)
    unexpected = tuple(name for name in found if name not in expected)
    both = ((name, tuple(found[name]), tuple(expected[name])) for name in expected if name in found)
    return Accounting(missing, unexpected, tuple(entry for entry in both if entry[1] != entry[2]))


def shapes_of(state: Mapping[str, Any]) -> dict[str, Shape]:
    """Return {name: shape} of a state dict, or of whatever has shapes."""
    return {name: tuple(value.shape) for name, value in state.items()}


def grouped(names: Iterable[str]) -> list[str]:
    """Return names with equal ones of different blocks folded, `blocks.{0-27}.mlp.layer1.weight`, those outside blocks first."""
    groups: dict[str, list[int]] = {}
    for name in sorted(names, key=lambda name: "blocks." in name):
        numbers = re.findall(r"(?<=blocks\.)\d+|(?<=blocks\.block)\d+", name)[:1]
        pattern = re.sub(r"(?<=blocks\.)\d+|(?<=blocks\.block)\d+", "{}", name, count=1)
        groups.setdefault(pattern, []).extend(int(number) for number in numbers)
    return [pattern.replace("{}", _ranges(numbers)) if numbers else pattern for pattern, numbers in groups.items()]


def _ranges(numbers: list[int]) -> str:
    places = enumerate(sorted(set(numbers)))
    runs = itertools.groupby(places, lambda pair: pair[1] - pair[0])  # the same for numbers that follow one another
    parts = [[number for _, number in run] for _, run in runs]
    text = ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
    return text if text.isdigit() else "{" + text + "}"


def rows(entries: Sequence[str], most: int = 16) -> list[str]:
    """Return the lines of a list in a message: the first `most` entries, indented, and how many more there are."""
    more = [f"  ... and {len(entries) - most} more"] if len(entries) > most else []
    return [f"  {entry}" for entry in entries[:most]] + more

"""Items of a dataset that cannot be read: named once, counted over all workers of a rank, replaced; too many are an error."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from loguru import logger

from cosmos_predict.errors import DataError
from cosmos_predict.randomness import numpy_generator

# A share of bad items is judged on at least so many items read, or on the whole dataset.
_JUDGED_FROM = 200
S = TypeVar("S")


@dataclass
class BadItems:
    """What is known of the items of one dataset, in this process (`reasons`) and in all its workers (the counts).

    Args:
        where: the dataset's folder; files: what each item is read from. For messages.
        shapes: the (T, H, W) of each item's samples.
        seed: with the sample number, decides the replacement.
        strict: any bad item is an error.
        max_bad_share: more than this share of items (and more than one) that cannot be read is an error.
        same_shape: items are replaced by those of their shape alone, not by others with as many frames.
        reasons: what was wrong with the bad items that this process has read.
    """

    where: Path
    files: Sequence[Path]
    shapes: Sequence[tuple[int, ...]]
    seed: int
    strict: bool
    max_bad_share: float
    same_shape: bool = False
    reasons: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Shared with the workers: which items any of them has read, and which of those were bad.
        self._read, self._bad = torch.zeros(2, len(self.files), dtype=torch.bool).share_memory_()

    def read(self, item: int, sample_number: int, read: Callable[[int], S]) -> S:
        """Return `read(item)`, or that of a replacement where it raises DataError or OSError.

        Raises DataError where no replacement can be read or too many items were bad, what `read` raises if `strict`.
        """
        for candidate in itertools.chain([item], self._replacements(item, sample_number)):
            self._read[candidate] = True
            try:
                return read(candidate)
            except (DataError, OSError) as error:
                if self.strict:
                    raise
                self._note(candidate, error)
        raise DataError(
            f"{self.where}: sample {sample_number} and its replacements cannot be read: {self._bad_listing()}"
        )

    def _replacements(self, item: int, sample_number: int) -> Iterable[int]:
        """Up to eight other items with as many frames, in an order that only (seed, sample number) decide, those of the
        same bucket first; drawn when first needed."""
        order = numpy_generator(self.seed, sample_number, "replacement").permutation(len(self.files))
        shapes, shape = self.shapes, self.shapes[item]
        others = [int(other) for other in order if other != item and shapes[other][0] >= shape[0]]
        others = [other for other in others if not self.same_shape or shapes[other] == shape]
        yield from sorted(others, key=lambda other: shapes[other] != shape)[:8]

    def _note(self, item: int, error: Exception) -> None:
        if item in self.reasons:
            return
        self.reasons[item] = str(error)
        known, self._bad[item] = bool(self._bad[item]), True
        bad, read = int(self._bad.sum()), int(self._read.sum())
        if not known:  # by another worker, which has named it
            logger.warning("{}: replaced by another clip ({} failed so far): {}", self.files[item], bad, error)
        judged = max(read, min(len(self.files), _JUDGED_FROM))
        refuse_bad(self.where, bad, judged, self.max_bad_share, self._bad_listing())

    def _bad_listing(self) -> str:
        return listing((label(self.files[item], self.where), reason) for item, reason in self.reasons.items())


@dataclass
class WriteReport:
    """What a command that writes a dataset did: files (or samples) written, files kept, and why a source failed."""

    written: int = 0
    kept: int = 0
    failed: dict[Path, str] = field(default_factory=dict)


def refuse_bad(where: Path, bad: int, read: int, max_bad_share: float, names: str) -> None:
    """Raise DataError where `bad` of `read` clips are more than `max_bad_share`, and more than one."""
    if bad > max(1.0, max_bad_share * read):
        raise DataError(
            f"{where}: {bad} of {read} clips cannot be read, more than max_bad_share={max_bad_share:g}: {names}"
        )


def label(path: Path, dataset: Path) -> str:
    """Return how messages call a file of a dataset: its path below videos/, images/ or whichever folder it is in."""
    parts = path.relative_to(dataset).parts if path.is_relative_to(dataset) else path.parts[-1:]
    return "/".join(parts[1:] or parts)


def listing(reasons: Iterable[tuple[str, str]], limit: int = 10) -> str:
    """Return `name (reason); ...` of the first `limit`, and how many more there are."""
    entries = [f"{name} ({reason})" for name, reason in reasons]
    more = f"; and {len(entries) - limit} more" if len(entries) > limit else ""
    return "; ".join(entries[:limit]) + more

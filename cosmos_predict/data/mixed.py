"""Several datasets in one run: micro-batches of each in turn, at given ratios (images and videos, say)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from cosmos_predict.config.lazy import configurable
from cosmos_predict.data.loader import read_batch
from cosmos_predict.errors import ConfigError


@configurable
class MixedDataset(Dataset[dict[str, Any]]):
    """Micro-batches of several datasets; which one micro-batch m comes from is a function of m alone.

    Of any sum(ratio) consecutive micro-batches, `ratio[name]` come from `parts[name]`, spread evenly; each dataset goes
    through its own epochs, and its k-th micro-batch is that of sample numbers k B to k B + B - 1. Samples carry the global
    number, so that noise and dropout do not repeat. A micro-batch of one-frame samples trains as images.

    Args:
        parts: the datasets by name, each with the keys that the model needs.
        ratio: whole numbers by name; one 0 leaves its dataset out.
        num_frames, video_size: those of the largest samples; what the run's other settings are derived from.

    Raises:
        ConfigError: names that differ, or ratios that are no whole numbers, one of them positive.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        ratio: Mapping[str, int],
        num_frames: int | None = None,
        video_size: Sequence[int] | None = None,
    ) -> None:
        ratio = dict(ratio)
        if set(ratio) != set(parts) or any(n != int(n) or n < 0 for n in ratio.values()) or sum(ratio.values()) < 1:
            raise ConfigError(
                f"ratio={ratio} must name the parts {', '.join(parts)}, each with a whole number, one of them positive"
            )
        self.parts = {name: part for name, part in parts.items() if ratio[name]}
        self.num_frames, self.video_size = num_frames, video_size
        self.shapes = [shape for part in self.parts.values() for shape in getattr(part, "shapes", [])]
        # Of cached latents alone; the others' tokenizer tells.
        self.latent_shapes = dict(i for part in self.parts.values() for i in getattr(part, "latent_shapes", {}).items())
        self.text_encoders = dict(i for part in self.parts.values() for i in getattr(part, "text_encoders", {}).items())
        self.turns: list[str] = []
        credit = dict.fromkeys(self.parts, 0)
        for _ in range(sum(ratio.values())):  # the one that is furthest behind its ratio is next
            credit = {name: value + ratio[name] for name, value in credit.items()}
            self.turns.append(max(credit, key=lambda name: credit[name]))
            credit[self.turns[-1]] -= sum(ratio.values())

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts.values())

    def __getitem__(self, sample_number: int) -> dict[str, Any]:
        return self.__getitems__([sample_number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return the samples of the micro-batch of consecutive `numbers`, all of one dataset."""
        size = len(numbers)
        rounds, turn = divmod(int(numbers[0]) // size, len(self.turns))
        name = self.turns[turn]
        batch = rounds * self.turns.count(name) + self.turns[:turn].count(name)
        samples = read_batch(self.parts[name], range(batch * size, (batch + 1) * size))
        return [
            {**sample, "sample_number": torch.tensor(number, dtype=torch.int64)}
            for sample, number in zip(samples, numbers, strict=True)
        ]

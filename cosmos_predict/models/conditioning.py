"""What one evaluation of a world model is conditioned on, and how conditions are dropped in training and guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosmos_predict.conditions.frames import GivenFrames
from cosmos_predict.randomness import numpy_generator


@dataclasses.dataclass
class Conditioning:
    """Everything that steers one denoising evaluation of a batch.

    text: `(B, V * L, C)`; negative_text: what dropping the text puts in its place, zeros when None. signals: what the
    network's controls read, by batch key. frames: given frames, None for text-to-video and images.
    """

    text: Tensor
    negative_text: Tensor | None = None
    fps: Tensor | float | None = None
    padding_mask: Tensor | None = None
    data_type: str = "video"
    views: int = 1
    signals: dict[str, Any] = dataclasses.field(default_factory=dict)
    frames: GivenFrames | None = None

    def drop(self, names: Collection[str]) -> Conditioning:
        """Return a copy without the conditions `names`: text becomes `negative_text` or zeros, signals become zeros."""
        if not names:
            return self
        text = self.text
        if "text" in names:
            text = torch.zeros_like(text) if self.negative_text is None else self.negative_text.to(text)
        signals = {key: torch.zeros_like(value) if key in names else value for key, value in self.signals.items()}
        return dataclasses.replace(self, text=text, signals=signals)

    def droppable(self) -> frozenset[str]:
        """Return the conditions whose dropping changes the network's input at all."""
        names = {key for key, value in self.signals.items() if isinstance(value, Tensor) and bool(value.any())}
        if not torch.equal(self.drop({"text"}).text, self.text):
            names.add("text")
        return frozenset(names)

    @staticmethod
    def stack(parts: Sequence[Conditioning]) -> Conditioning:
        """Return one conditioning whose batch is the batches of `parts`, one after another."""
        batch = parts[0].text.shape[0]

        def join(values: Sequence[Any]) -> Any:
            first = values[0]
            if isinstance(first, Tensor) and first.ndim > 0:
                return torch.cat([value.expand(batch, *value.shape[1:]) for value in values])
            if isinstance(first, GivenFrames):
                names = [field.name for field in dataclasses.fields(GivenFrames)]
                return GivenFrames(**{name: join([getattr(value, name) for value in values]) for name in names})
            if isinstance(first, dict):
                return {key: join([value[key] for value in values]) for key in first}
            return first

        names = [field.name for field in dataclasses.fields(Conditioning)]
        return Conditioning(**{name: join([getattr(part, name) for part in parts]) for name in names})


def keep_draws(seed: int, sample_numbers: Sequence[int], probability: float, purpose: str) -> Tensor:
    """Return `(B,)` float32, 0 with `probability` and 1 otherwise, a function of (seed, sample number, purpose)."""
    if probability <= 0:
        return torch.ones(len(sample_numbers))
    return torch.tensor([float(numpy_generator(seed, n, purpose).random() >= probability) for n in sample_numbers])


def integer_draws(seed: int, sample_numbers: Sequence[int], low: int, high: int, purpose: str) -> list[int]:
    """Return one integer of [low, high], both included, per sample, a function of (seed, sample number, purpose)."""
    return [int(numpy_generator(seed, n, purpose).integers(low, high + 1)) for n in sample_numbers]


def weighted_draws(seed: int, sample_numbers: Sequence[int], weights: Sequence[float], purpose: str) -> list[int]:
    """Return an index of `weights` per sample, drawn in proportion to them, a function of (seed, sample number, purpose)."""
    ends = np.cumsum(weights)
    draws = [numpy_generator(seed, n, purpose).random() * ends[-1] for n in sample_numbers]
    return [int(np.searchsorted(ends, draw, side="right")) for draw in draws]

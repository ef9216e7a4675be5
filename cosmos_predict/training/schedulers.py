"""Learning-rate schedules: functions from the number of finished optimizer updates to a multiplier of the base rate.

Each schedule is a small object made by its keywords and called with n, so that a config can name it; `lr_scheduler`
drives an optimizer with one. Source: Cosmos-Predict2 functional/lr_scheduler.py, Cosmos-Predict1 utils, NeMo's
annealing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR

from cosmos_predict.config.lazy import configurable
from cosmos_predict.errors import ConfigError

Schedule = Callable[[int], float]


def lr_scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule) -> LambdaLR:
    """Return the torch scheduler under which optimizer update k (counted from 0) uses base_lr * schedule(k).

    Its state holds the position alone: a resumed run follows the schedule of its own config.
    """
    # torch stores the attributes of callable objects in the state, but never those of plain functions.
    return LambdaLR(optimizer, lambda n: schedule(n))


class _Cycles:
    """One or several cycles, each a linear warm-up from f_start to f_max and a fall to f_min, held after the last.

    Args (one entry per cycle):
        warm_up_steps: W, updates from f_start to f_max.
        cycle_lengths: L, updates of the whole cycle; its last position still belongs to it.
        f_start, f_max, f_min: multipliers at the cycle's start, after the warm-up, and at its end.

    Raises ConfigError when the lists differ in length, or a length is not positive.
    """

    def __init__(
        self,
        warm_up_steps: Sequence[int],
        f_min: Sequence[float],
        f_max: Sequence[float],
        f_start: Sequence[float],
        cycle_lengths: Sequence[int],
    ) -> None:
        given = {
            "warm_up_steps": warm_up_steps,
            "f_min": f_min,
            "f_max": f_max,
            "f_start": f_start,
            "cycle_lengths": cycle_lengths,
        }
        sizes = {name: len(values) for name, values in given.items()}
        if len(set(sizes.values())) != 1 or not sizes["cycle_lengths"]:
            raise ConfigError(f"the schedule needs one entry per cycle in each list, got lengths {sizes}")
        if any(length < 1 for length in cycle_lengths) or any(steps < 0 for steps in warm_up_steps):
            raise ConfigError(
                f"cycle_lengths must be >= 1 and warm_up_steps >= 0, got {list(cycle_lengths)}, {list(warm_up_steps)}"
            )
        self._cycles = tuple(zip(cycle_lengths, warm_up_steps, f_start, f_max, f_min, strict=True))

    def __call__(self, n: int) -> float:
        for length, warm_up, f_start, f_max, f_min in self._cycles:
            if n <= length:
                if n < warm_up:
                    return (f_max - f_start) / warm_up * n + f_start
                # A cycle that ends with its warm-up never falls.
                return self.fall(n - warm_up, length - warm_up, f_max, f_min) if length > warm_up else f_max
            n -= length
        return self._cycles[-1][-1]

    def fall(self, n: int, length: int, f_max: float, f_min: float) -> float:
        """Return the multiplier n updates after the warm-up of a cycle that falls over `length` updates."""
        raise NotImplementedError


@configurable
class LambdaLinearScheduler(_Cycles):
    """Cycles with a linear fall; arguments as in `_Cycles`."""

    def fall(self, n: int, length: int, f_max: float, f_min: float) -> float:
        return f_min + (f_max - f_min) * (length - n) / length


@configurable
class LambdaWarmUpCosineScheduler(_Cycles):
    """Cycles that fall along half a cosine wave; arguments as in `_Cycles`."""

    def fall(self, n: int, length: int, f_max: float, f_min: float) -> float:
        return f_min + 0.5 * (f_max - f_min) * (1 + math.cos(math.pi * n / length))


@configurable
class ConstantScheduler:
    """The multiplier 1."""

    def __call__(self, n: int) -> float:
        return 1.0


@configurable
@dataclass(frozen=True)
class WarmupLambdaLR:
    """(n + 1) / warmup until it reaches 1, then 1."""

    warmup: int

    def __call__(self, n: int) -> float:
        return min(1.0, (n + 1) / max(self.warmup, 1))


@configurable
@dataclass(frozen=True)
class WarmupCosineLR:
    """n / warmup_iters, then a cosine down to the rate min_lr at update lr_decay_iters, then min_lr (Predict1).

    `lr` is the optimizer's base rate, which turns the absolute min_lr into a multiplier.
    """

    warmup_iters: int
    lr_decay_iters: int
    min_lr: float
    lr: float

    def __call__(self, n: int) -> float:
        floor = self.min_lr / self.lr
        if n < self.warmup_iters:
            return n / self.warmup_iters
        if n >= self.lr_decay_iters:
            return floor
        progress = (n - self.warmup_iters) / (self.lr_decay_iters - self.warmup_iters)
        return floor + 0.5 * (1 - floor) * (1 + math.cos(math.pi * progress))


@configurable
@dataclass(frozen=True)
class NemoLinearAnnealing:
    """NeMo's linear annealing: (n + 1) / (w + 1) for n <= w = warmup_steps, linear to min_lr at max_steps, then min_lr.

    `lr` is the optimizer's base rate, which turns the absolute min_lr into a multiplier.
    """

    warmup_steps: int
    max_steps: int
    min_lr: float
    lr: float

    def __call__(self, n: int) -> float:
        if n <= self.warmup_steps:
            return (n + 1) / (self.warmup_steps + 1)
        floor = self.min_lr / self.lr
        if n > self.max_steps:
            return floor
        return floor + (1 - (n - self.warmup_steps) / (self.max_steps - self.warmup_steps)) * (1 - floor)


@configurable
@dataclass(frozen=True)
class NemoWarmupHold:
    """NeMo's warm-up, (n + 1) / (warmup_steps + 1), then 1."""

    warmup_steps: int

    def __call__(self, n: int) -> float:
        return min(1.0, (n + 1) / (self.warmup_steps + 1))

"""Learning-rate schedules: functions from the number of finished optimizer updates to a multiplier of the base rate.

Each schedule is a small object made by its keywords and called with n, so that a config can name it; `lr_scheduler`
drives an optimizer with one. Source: Cosmos-Predict2 functional/lr_scheduler.py.

Other published schedules are one cycle of these (f_max 1; base rate lr, warm-up W, end N, both in updates):
Predict1's WarmupLambdaLR is linear with warm_up_steps W - 1, f_start 1 / W, f_min 1; its WarmupCosineLR the cosine with W,
f_start 0, f_min min_lr / lr, cycle N; NeMo's linear annealing linear with W, f_start 1 / (W + 1), f_min min_lr / lr, cycle N;
its warm-up and hold the same with f_min 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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

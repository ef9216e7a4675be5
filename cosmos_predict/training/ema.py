"""Power-function EMA of the weights (Karras et al. 2023, "Analyzing and Improving the Training Dynamics", appendix C).

The average follows a power of the update number, so that its relative width `s` stays the same at any training length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.parallel.fsdp import reshard
from cosmos_predict.parallel.shards import own


def power_ema_exponent(s: float) -> float:
    """Return gamma for the relative width s: the largest real part among the roots of
    x^3 + 7 x^2 + (16 - s^-2) x + (12 - s^-2). Raises ConfigError where gamma would not be positive.
    """
    if not 0 < s < 0.28:  # at s = 1/sqrt(12) gamma is 0, and wider averages do not exist
        raise ConfigError(
            f"the relative width of the power EMA is {s}; it must lie in (0, 0.28), published runs use 0.1"
        )
    return float(np.roots([1, 7, 16 - s**-2, 12 - s**-2]).real.max())


def power_ema_beta(iteration: int, gamma: float, iteration_shift: int = 0) -> float:
    """Return the decay of one update; `iteration` counts the updates before it, from 0.

    With it = iteration + iteration_shift: 0 if it < 1, else (1 - 1/(it + 1))^(gamma + 1). The first update of a run
    without shift therefore copies the weights.
    """
    position = iteration + iteration_shift
    return 0.0 if position < 1 else (1 - 1 / (position + 1)) ** (gamma + 1)


class PowerEMA:
    """A float32 shadow of named weights.

    Args:
        weights: name -> tensor, for example `dict(module.named_parameters())`; plain tensors or DTensors, any dtype.
            Pass the float32 weights (or the float32 masters of low-precision ones): small changes of the weights are
            below bfloat16's resolution.
        s: relative width of the averaging profile (published `rate`).
        iteration_shift: added to the iteration, for runs that continue another one's average.
    """

    def __init__(self, weights: Mapping[str, Tensor], s: float = 0.1, iteration_shift: int = 0) -> None:
        self.gamma = power_ema_exponent(s)
        self.iteration_shift = iteration_shift
        self.shadow = {name: weight.detach().clone().to(torch.float32) for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], iteration: int) -> float:
        """Move the shadow towards `weights` after optimizer update `iteration` (0 for the first); return the decay.

        shadow <- beta * shadow + (1 - beta) * weight. Raises CheckpointError for other names than at construction.
        """
        if weights.keys() != self.shadow.keys():
            raise CheckpointError(f"the weights to average changed: {_difference(self.shadow, weights)}")
        beta = power_ema_beta(iteration, self.gamma, self.iteration_shift)
        shadow = [own(tensor) for tensor in self.shadow.values()]
        torch._foreach_mul_(shadow, beta)
        torch._foreach_add_(shadow, [own(weights[name]) for name in self.shadow], alpha=1 - beta)
        return beta

    def state_dict(self) -> dict[str, Tensor]:
        """Return the shadow itself, name -> float32 tensor (a DTensor where the weight is one)."""
        return dict(self.shadow)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a shadow, or weights to begin with: the same names and shapes, DTensors sharded alike, else CheckpointError."""
        if state.keys() != self.shadow.keys():
            raise CheckpointError(f"the EMA state does not fit: {_difference(self.shadow, state)}")
        for name, tensor in self.shadow.items():
            if state[name].shape != tensor.shape:
                wrong, right = tuple(state[name].shape), tuple(tensor.shape)
                raise CheckpointError(f"EMA {name} has shape {wrong}, expected {right}")
            tensor.copy_(state[name])

    @contextmanager
    def scope(self, module: nn.Module) -> Iterator[None]:
        """Let `module` compute with the averaged weights, and give it its own back, bit for bit, when the block ends.

        The shadow's names are parameter names of `module`. Inside the block the shadow holds the module's weights where
        both are float32 (one tensor of extra memory); low-precision weights are kept aside. Do not update or save
        inside.
        """
        parameters = dict(module.named_parameters())
        if missing := [name for name in self.shadow if name not in parameters]:
            raise CheckpointError(
                f"the module has no parameter {missing[0]} ({len(missing)} averaged names are missing)"
            )
        reshard(module)
        parameters = dict(module.named_parameters())  # resharding puts the sharded parameters back in place
        restore: list[tuple[Tensor, Tensor]] = []
        try:
            with torch.no_grad():
                for name, average in self.shadow.items():
                    weight, average = own(parameters[name]), own(average)
                    kept = weight.clone()
                    weight.copy_(average)
                    if kept.dtype == average.dtype:
                        average.copy_(kept)
                        kept = average
                    restore.append((weight, kept))
            yield
        finally:
            reshard(module)
            with torch.no_grad():
                for weight, kept in restore:
                    average = weight.clone()
                    weight.copy_(kept)
                    if kept.dtype == torch.float32:
                        kept.copy_(average)


def _difference(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    missing = [name for name in expected if name not in got]
    added = [name for name in got if name not in expected]
    return f"{len(missing)} missing {missing[:3]}, {len(added)} unexpected {added[:3]}"

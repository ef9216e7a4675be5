"""The seam between a DiT and what steers it: four injection sites, and the small base class of a control.

A control lives in `cosmos_predict.conditions`; the network knows only this page. Sites:

1. `channels`: named input channels, appended to the latent before the patch embedding;
2. `time` and `lora`: added to the timestep sinusoid before its norm, and to the shared adaLN-LoRA vector;
3. `blocks`: features that every block projects and adds to its modulated self-attention input;
4. text: one text per view, chosen by the `views` argument of the forward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.config import DiTConfig


@dataclasses.dataclass(frozen=True)
class Grid:
    """Sizes of one forward: batch B, latent frames T over all views, latent height H and width W, number of views."""

    batch: int
    frames: int
    height: int
    width: int
    views: int
    dtype: torch.dtype
    device: torch.device

    @property
    def frames_per_view(self) -> int:
        return self.frames // self.views


@dataclasses.dataclass
class Injection:
    """What controls add to one forward.

    channels: name -> `(B, c, T, H, W)`; time: `(B, T or 1, D)`; lora: `(B, T or 1, 3D)`;
    blocks: module name -> `(B, N, F)` in token order, projected by every block's module of that name.
    """

    channels: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    time: Tensor | None = None
    lora: Tensor | None = None
    blocks: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def add_time(self, value: Tensor) -> None:
        self.time = value if self.time is None else self.time + value

    def add_lora(self, value: Tensor) -> None:
        self.lora = value if self.lora is None else self.lora + value


def wrong_shape(name: str, value: Tensor, expected: object) -> ConfigError:
    """Return the error for a signal whose shape does not fit."""
    return ConfigError(f"{name!r} has shape {tuple(value.shape)}, expected {expected}")


class Control:
    """One way to steer a DiT. A subclass is a small record of parameters; modules it asks for become the network's own.

    `signals` lists the keyword arguments of the forward that it reads; `channels` the input channels it provides.
    """

    name: str = ""
    signals: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()

    def modules(self, config: DiTConfig) -> dict[str, nn.Module]:
        """Return modules to register on the network under these (published) names."""
        return {}

    def block_modules(self, config: DiTConfig) -> dict[str, nn.Module]:
        """Return modules to register on every block under these (published) names."""
        return {}

    def num_block_parameters(self, config: DiTConfig) -> int:
        """Return the number of parameters that this control adds to each block, applied to every token."""
        with torch.device("meta"):
            return sum(p.numel() for module in self.block_modules(config).values() for p in module.parameters())

    def init_weights(self, net: nn.Module) -> None:
        """Initialise the control's own modules on a network trained from scratch or grown from a base."""
        for name in self.modules(net.config):  # type: ignore[attr-defined]
            for module in getattr(net, name).modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()

    def inject(self, net: nn.Module, signals: Mapping[str, Any], grid: Grid, injection: Injection) -> None:
        """Add this control's contribution to `injection`. Absent signals mean: no contribution, or zeros."""
        raise NotImplementedError

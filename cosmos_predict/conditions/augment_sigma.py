"""The noise level of Predict1's given frames as a control: its sinusoid joins the time embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cosmos_predict.config.lazy import configurable
from cosmos_predict.networks.blocks import TimestepEmbedder
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.control import Control, Grid, Injection, wrong_shape


@configurable
@dataclasses.dataclass(frozen=True)
class AugmentSigmaControl(Control):
    """Add the sinusoid of `augment_sigma` `(B,)` (a c_noise) to the time embedding; absent means zeros, as without given frames.

    As published, the embedder's two linears exist in the checkpoint and have no effect: only the sinusoid is used.
    """

    name = "augment_sigma"
    signals = ("augment_sigma",)

    def modules(self, config: DiTConfig) -> dict[str, nn.Module]:
        return {"augment_sigma_embedder": TimestepEmbedder(config)}

    def inject(self, net: nn.Module, signals: Mapping[str, Any], grid: Grid, injection: Injection) -> None:
        level = signals.get("augment_sigma")
        level = torch.zeros(grid.batch, device=grid.device) if level is None else level
        if level.numel() != grid.batch:
            raise wrong_shape("augment_sigma", level, (grid.batch,))
        sinusoid, _ = net.get_submodule("augment_sigma_embedder")(level.reshape(grid.batch, 1))
        injection.add_time(sinusoid)

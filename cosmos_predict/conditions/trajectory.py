"""Trajectory control: the ego vehicle's future path, as input channels constant over space, time and views."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cosmos_predict.config.lazy import configurable
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.control import Control, Grid, Injection, wrong_shape


@configurable
@dataclasses.dataclass(frozen=True)
class TrajectoryControl(Control):
    """Append `Linear(trajectory)` as channels named `trajectory`; batch key `trajectory` `(B, 192)`, absent means zeros.

    192 = 64 future positions (x, y, z), time slowest, scaled by `cosmos_predict.data.ego_trajectory`.
    """

    dim: int = 12
    in_features: int = 192
    name = "trajectory"
    signals = ("trajectory",)
    channels = ("trajectory",)

    def modules(self, config: DiTConfig) -> dict[str, nn.Module]:
        return {"traj_embeddings": nn.Linear(self.in_features, self.dim)}

    def inject(self, net: nn.Module, signals: Mapping[str, Any], grid: Grid, injection: Injection) -> None:
        trajectory = signals.get("trajectory")
        if trajectory is None:
            trajectory = torch.zeros(grid.batch, self.in_features, device=grid.device)
        if trajectory.ndim < 2 or trajectory.flatten(1).shape != (grid.batch, self.in_features):
            raise wrong_shape("trajectory", trajectory, (grid.batch, self.in_features))
        channels = net.get_submodule("traj_embeddings")(trajectory.flatten(1).to(grid.device, grid.dtype))
        injection.channels["trajectory"] = channels[:, :, None, None, None]

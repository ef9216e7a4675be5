"""View control: which camera a latent frame belongs to, as input channels constant over the frame."""

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
class ViewControl(Control):
    """Append a learned vector per view (channel name `view`); batch keys `view_indices`, `frame_repeat`.

    view_indices: `(B, V)` or `(B, T)` integers, semantic ids; absent means 0..V-1; ids beyond the table use its last row.
    frame_repeat: `(B, V)` repeated frames divided by 10 (Predict1; a batch holds them undivided, `WorldModel.prepare`
        divides), absent means zeros; only with `add_frame_repeat`.
    """

    num_views: int = 7
    dim: int = 7
    add_frame_repeat: bool = False
    name = "view"
    signals = ("view_indices", "frame_repeat")
    channels = ("view",)

    def modules(self, config: DiTConfig) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {"view_embeddings": nn.Embedding(self.num_views, self.dim)}
        if self.add_frame_repeat:
            modules["repeat_frame_embedding"] = nn.Linear(1, self.dim)
        return modules

    def inject(self, net: nn.Module, signals: Mapping[str, Any], grid: Grid, injection: Injection) -> None:
        indices = signals.get("view_indices")
        if indices is None:
            indices = torch.arange(grid.views, device=grid.device).expand(grid.batch, -1)
        indices = indices.to(grid.device).long()
        fitting = ((grid.batch, grid.views), (grid.batch, grid.frames))
        if indices.shape not in fitting:
            raise wrong_shape("view_indices", indices, f"{fitting[0]} or {fitting[1]}")
        per_frame = indices.repeat_interleave(grid.frames // indices.shape[1], dim=1)
        channels = net.get_submodule("view_embeddings")(per_frame.clamp(0, self.num_views - 1))
        if self.add_frame_repeat:
            repeat = signals.get("frame_repeat")
            repeat = torch.zeros(grid.batch, grid.views, device=grid.device) if repeat is None else repeat
            if repeat.shape != (grid.batch, grid.views):
                raise wrong_shape("frame_repeat", repeat, f"({grid.batch}, {grid.views}), one per view")
            vectors = net.get_submodule("repeat_frame_embedding")(repeat.to(grid.device, grid.dtype).unsqueeze(-1))
            channels = channels + vectors.repeat_interleave(grid.frames_per_view, dim=1)
        injection.channels["view"] = channels.transpose(1, 2)[..., None, None]

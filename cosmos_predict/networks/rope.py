"""Position: the 3-D rotary table, Predict1's extra per-block tables, and the timestep sinusoid. All in float32.

The published code forms the rotary angles in bfloat16 when the module is cast; that is an accident of casting buffers,
not part of the model, and is not reproduced (spec: angles move by at most 0.19 rad).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cosmos_predict.networks.config import DiTConfig


def rope_frequencies(dim: int, ratio: float, device: torch.device | str | None = None) -> Tensor:
    """Return `theta^(-2i/dim)`, i < dim/2, for `theta = 10000 * ratio^(dim/(dim-2))`: float32 `(dim/2,)` (NTK-aware stretch)."""
    theta = 10000.0 * ratio ** (dim / (dim - 2))
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    return 1.0 / theta**exponents


def rope_angles(
    head_dim: int,
    grid: tuple[int, int, int],
    ratios: tuple[float, float, float],
    *,
    fps: float | None = None,
    base_fps: float = 24.0,
    views: int = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return rotary angles `(views*T*h*w, head_dim/2)` in float32, columns `[time, height, width]`.

    Args:
        head_dim: size of an attention head; height and width get `head_dim // 6 * 2` of it each, time the rest.
        grid: (T, h, w) tokens of one view; every view starts at time 0 and repeats the table.
        ratios: (h, w, t) extrapolation ratios.
        fps: frames per second; time is then `index / fps * base_fps`. None: plain index.
    """
    time, rows, columns = (torch.arange(length, dtype=torch.float32, device=device) for length in grid)
    if fps is not None:
        time = time / fps * base_fps
    dim_hw, (ratio_h, ratio_w, ratio_t) = head_dim // 6 * 2, ratios
    axes = ((time, head_dim - 2 * dim_hw, ratio_t), (rows, dim_hw, ratio_h), (columns, dim_hw, ratio_w))
    angles = (torch.outer(positions, rope_frequencies(dim, ratio, device)) for positions, dim, ratio in axes)
    return _over_grid(*angles).repeat(views, 1)


def _over_grid(time: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the tables of three axes, `(T, .)`, `(h, .)` and `(w, .)`, side by side for every token: `(T*h*w, .)`."""
    grid = len(time), len(rows), len(columns)
    axes = (time[:, None, None], rows[:, None], columns)
    return torch.cat([values.expand(*grid, -1) for values in axes], dim=-1).flatten(0, 2)


def rope_table(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) of angles `(N, head_dim/2)`, shaped `(N, 1, head_dim/2)` to broadcast over heads."""
    return angles.cos()[:, None], angles.sin()[:, None]


def apply_rope(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x `(B, N, heads, d)` by the table: pairs are (i, i + d/2), computed in float32, returned in x's dtype."""
    cos, sin = table
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = (x.unflatten(-1, (2, half)) * cos.unsqueeze(-2)).flatten(-2)  # float32, as the table is
    out[..., :half].addcmul_(second, sin, value=-1)
    out[..., half:].addcmul_(first, sin)
    return out.to(x.dtype)


def timestep_sinusoid(t: Tensor, dim: int) -> Tensor:
    """Return `[cos(t f), sin(t f)]`, `f_i = 10000^(-i/(dim/2))`: t of any shape -> `(*t.shape, dim)` in float32."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class LearnablePositionEmbedding(nn.Module):
    """Predict1's learnable tables `pos_emb_{h,w,t}`, cropped to the grid, summed, and scaled to unit RMS."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        frames, height, width = config.largest_grid
        self.pos_emb_h = nn.Parameter(torch.empty(height, config.model_channels))
        self.pos_emb_w = nn.Parameter(torch.empty(width, config.model_channels))
        self.pos_emb_t = nn.Parameter(torch.empty(frames, config.model_channels))

    def reset_parameters(self) -> None:
        for table in (self.pos_emb_h, self.pos_emb_w, self.pos_emb_t):
            nn.init.trunc_normal_(table, std=0.02, a=-2.0, b=2.0)

    def forward(self, grid: tuple[int, int, int], views: int = 1) -> Tensor:
        """Return `(1, views*T*h*w, D)` for a grid of (T, h, w) tokens per view."""
        frames, height, width = grid
        table = self.pos_emb_t[:frames, None, None] + self.pos_emb_h[:height, None] + self.pos_emb_w[:width]
        table = table.flatten(0, 2)
        rms = torch.linalg.vector_norm(table, dim=-1, keepdim=True, dtype=torch.float32) / math.sqrt(table.shape[-1])
        table = table / (1e-6 + rms).to(table.dtype)
        return table.repeat(views, 1)[None]


class SinCosPositionEmbedding(nn.Module):
    """Predict1 multi-view's fixed table: per axis `[sin, cos]` of `index / ratio`, axes in the order t, h, w."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.dim = config.model_channels
        self.ratios = [getattr(config, f"extra_{axis}_extrapolation_ratio") for axis in "thw"]
        self.cache: dict[tuple, Tensor] = {}

    def forward(self, grid: tuple[int, int, int], views: int = 1, device: torch.device | None = None) -> Tensor:
        """Return `(1, views*T*h*w, D)` float32 for a grid of (T, h, w) tokens per view, the same for every view."""
        key = (grid, views, device)
        if key not in self.cache:
            dim_hw = self.dim // 6 * 2
            dims = (self.dim - 2 * dim_hw, dim_hw, dim_hw)
            axes = []
            for length, dim, ratio in zip(grid, dims, self.ratios, strict=True):
                omega = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
                angles = torch.outer(torch.arange(length, dtype=torch.float64) / ratio, omega)
                axes.append(torch.cat([angles.sin(), angles.cos()], dim=-1))
            self.cache = {key: _over_grid(*axes).float().repeat(views, 1)[None].to(device)}
        return self.cache[key]

"""Sparse self-attention, as in Predict2's `-natten` checkpoints: a token attends to a window around it, in all frames.

Generalized neighborhood attention (arXiv:2504.16922) over rows and columns of tokens. On an axis of n positions, windows of
w, stride s and dilation d: positions that are equal modulo d form a group, which is an axis of its own; in it every s
neighbours share one window, that of the middle one (of an even number the right one), which is shifted, not cut, at borders.

So tokens fall into cells that share their keys, and a cell's attention is dense: it runs through any backend, on any device,
without a mask, a compiler or another package. Keys are copied once for every cell that they are in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.attention import Attention

Grid = tuple[int, int, int]

BASE = (44, 80)  # rows and columns of tokens at 720p, 16:9, for which the published layers are given
# Layers by letter: (window, stride, dilation) of rows, of columns.
KINDS = {
    "D": ((4, 1, 11), (16, 1, 5)),
    "M": ((12, 4, 1), (16, 1, 5)),
    "S": ((12, 4, 1), (24, 8, 1)),
    "L": ((20, 4, 1), (40, 8, 1)),
    "X": ((28, 4, 1), (56, 8, 1)),
}
DENSE = "-"
# The published Video2World networks, a letter per block, by their number of blocks (2B, 14B).
PUBLISHED = {
    28: "DDMSSMSSSSMLLLLLLLLLLLLXLLLS",
    36: "DDDDDDDDDDDMMSSSSSSSSSSLXLX-XLLXXLXL",
}


class SparseAttention:
    """The attention of a layer of kind `kind`; `dense` computes its cells. `grid` (T, h, w) is set before every forward."""

    def __init__(self, kind: str, dense: Attention) -> None:
        self.kind, self.dense, self.grid = kind, dense, (1, 0, 0)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention for q, k, v `(B, N, heads, d)` in the order (frame, row, column); an image's is dense."""
        return _attend(self, q, k, v)


@torch.compiler.disable()  # a loop over index tensors, which a compiled block calls as it is
def _attend(layer: SparseAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if layer.grid[0] == 1:
        return layer.dense(q, k, v)
    queries, keys, places = cells(layer.kind, layer.grid, q.device)
    most = max(1, 2 * q.shape[1] // keys.shape[1])  # cells at a time: copies of about twice k and v
    parts = []
    for at, near in zip(queries.split(most), keys.split(most), strict=True):
        gathered = (x[:, where].flatten(0, 1) for x, where in ((q, at), (k, near), (v, near)))
        parts.append(layer.dense(*gathered).unflatten(0, (len(q), -1)).flatten(1, 2))
    return torch.cat(parts, dim=1)[:, places]


@functools.lru_cache(maxsize=16)
def cells(kind: str, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return token numbers of the queries `(cells, n)` and keys `(cells, m)` of every cell on a grid (T, h, w), int64; and
    where each token's result is `(N,)` among the queries, flat. Cells with fewer queries repeat their last one.
    """
    frames, height, width = grid
    axes = [axis_windows(n, *sizes) for n, sizes in zip(grid[1:], fitted_sizes(kind, grid), strict=True)]
    found = []
    for part in (0, 1):
        rows, columns = (_rectangle([each[part] for each in axis]) for axis in axes)
        places = rows[:, None, :, None] * width + columns[:, None]  # (cells of rows, of columns, rows, columns)
        places = places.reshape(len(rows) * len(columns), 1, -1) + np.arange(frames)[:, None] * height * width
        found.append(places.reshape(len(places), -1))
    queries, keys = found
    where = np.empty(frames * height * width, dtype=np.int64)
    where[queries.ravel()[::-1]] = np.arange(queries.size)[::-1]  # the first of several
    with torch.inference_mode(False):  # what is kept must serve training too
        first, second, third = (torch.from_numpy(array).to(device) for array in (queries, keys, where))
    return first, second, third


def axis_windows(extent: int, window: int, stride: int, dilation: int) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Return (positions that share a window, the positions in it) for all of an axis; needs window x dilation <= extent."""
    found = []
    for first in range(dilation):
        group = range(first, extent, dilation)
        step = len(group) if window == len(group) else stride  # the whole group is one window
        for start in range(0, len(group), step):
            leader = min(start + step // 2, len(group) - 1)
            low = min(max(leader - window // 2, 0), len(group) - window)
            found.append((group[start : start + step], group[low : low + window]))
    return found


def fitted_sizes(kind: str, grid: Grid) -> list[tuple[int, int, int]]:
    """Return (window, stride, dilation) of rows and of columns of a layer on a grid (T, h, w)."""
    return [fitted(n, base, *sizes) for n, base, sizes in zip(grid[1:], BASE, KINDS[kind], strict=True)]


def keys_per_query(kind: str, grid: Grid) -> int:
    """Return how many tokens of a grid (T, h, w) each token sees in a layer: a window in all frames, or every token."""
    if kind == DENSE or grid[0] == 1:
        return math.prod(grid)
    return grid[0] * math.prod(window for window, _, _ in fitted_sizes(kind, grid))


def fitted(extent: int, base: int, window: int, stride: int, dilation: int) -> tuple[int, int, int]:
    """Return window, stride and dilation for an axis of `extent` positions, as published: scaled by extent / base."""
    scale = extent / base
    window = min(max(2, round(window * scale)), extent)
    stride = min(max(1, round(stride * scale)), window)
    return window, stride, min(max(1, round(dilation * scale)), extent // window)


def published_layers(num_blocks: int) -> str:
    """Return the kinds of layers of the published network with so many blocks; ConfigError where there is none."""
    if num_blocks not in PUBLISHED:
        known = " and ".join(map(str, PUBLISHED))
        raise ConfigError(
            f"sparse attention (natten) was published for Video2World networks of {known} blocks, this one has {num_blocks}; "
            "another one says its own: sparse_attention=<a letter per block> in its config.yaml"
        )
    return PUBLISHED[num_blocks]


def check_layers(layers: str, num_blocks: int) -> None:
    """Raise ConfigError unless `layers` has a known letter for every block, or none."""
    if layers and (len(layers) != num_blocks or set(layers) - {*KINDS, DENSE}):
        letters = ", ".join((*KINDS, DENSE))
        raise ConfigError(
            f"sparse_attention={layers!r} must be one of the letters {letters} for each of {num_blocks} blocks, or ''"
        )


def _rectangle(parts: Sequence[Sequence[int]]) -> np.ndarray:
    """Return sequences as rows of an array, short ones filled up with their last value."""
    longest = max(map(len, parts))
    return np.array([[*part, *[part[-1]] * (longest - len(part))] for part in parts], dtype=np.int64)

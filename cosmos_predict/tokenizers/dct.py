"""A video tokenizer without weights: blocks of a causal 3D DCT, of which the lowest frequencies are kept.

For tests, demonstrations and small trainings: linear, exact in chunks of any length, lossless with all coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cosmos_predict.errors import ConfigError
from cosmos_predict.tokenizers.base import VideoTokenizer
from cosmos_predict.tokenizers.normalize import LatentNormalizer

SPATIAL = 8
DCT_STD_4X8X8 = (
    *(0.256, 0.286, 0.264, 0.0322, 0.0297, 0.0278, 0.0314, 0.0309),
    *(0.0302, 0.0299, 0.0270, 0.0268, 0.0117, 0.0134, 0.0137, 0.0109),
)
"""Standard deviations of the first 16 channels at 4x8x8 on synthetic clips of moving shapes."""


def dct_order(temporal: int) -> list[tuple[int, int, int, int]]:
    """Return all coefficients (colour d, time a, vertical u, horizontal v) of a block, the most telling first.

    Ordered by u + v + 0.7 a (0.49 a for blocks of 8 frames) + 0.3 [d > 0], ties by 0.001 d + 0.0001 u.
    """
    time_weight = 0.49 if temporal >= 8 else 0.7

    def rank(index: tuple[int, int, int, int]) -> float:
        d, a, u, v = index
        return round(u + v + time_weight * a + 0.3 * (d > 0) + 0.001 * d + 0.0001 * u, 6)

    sizes = (3, temporal, SPATIAL, SPATIAL)
    return sorted((tuple(i) for i in torch.cartesian_prod(*map(torch.arange, sizes)).tolist()), key=rank)  # type: ignore


def dct_basis(channels: int, temporal: int) -> Tensor:
    """Return the first `channels` basis vectors as rows over a block (colour, time, row, column), float32, scaled.

    Orthonormal rows divided by sqrt(3 * temporal * 64), so that a constant block of ones has a coefficient of one.
    """
    with torch.device("cpu"):
        colour = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
        colour = colour / colour.norm(dim=1, keepdim=True)
        time, space = _dct_matrix(temporal), _dct_matrix(SPATIAL)
        rows = [
            torch.einsum("i,j,k,l->ijkl", colour[d], time[a], space[u], space[v]).flatten()
            for d, a, u, v in dct_order(temporal)[:channels]
        ]
        return (torch.stack(rows) / math.sqrt(3 * temporal * SPATIAL**2)).float()


def _dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix (size, size), a frequency per row."""
    positions = torch.arange(size, dtype=torch.float64) + 0.5
    matrix = torch.cos(math.pi / size * torch.arange(size, dtype=torch.float64)[:, None] * positions)
    matrix *= math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


class DCTTokenizer(VideoTokenizer):
    """The first `channels` DCT coefficients of blocks of `temporal` x 8 x 8 pixels, divided by `std`.

    The first frame is a block of its own (repeated `temporal` times). std: one number per channel, from `fit_dct_std` or
    the default table (16 channels at 4x8x8); ones for other sizes. mean: subtracted before, default zeros. Tables are
    arguments, not weights: keep them in the model's configuration.
    """

    def __init__(
        self,
        channels: int = 16,
        temporal: int = 4,
        *,
        std: Sequence[float] | Tensor | None = None,
        mean: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        total = 3 * temporal * SPATIAL**2
        if temporal < 1 or not 1 <= channels <= total:
            raise ConfigError(f"DCT with {channels} channels, {temporal} frames: expected 1 to {max(total, 192)}")
        self.latent_ch = channels
        self.spatial_compression_factor, self.temporal_compression_factor = SPATIAL, temporal
        if std is None:
            std = DCT_STD_4X8X8 if (channels, temporal) == (len(DCT_STD_4X8X8), 4) else (1.0,) * channels
        if len(std) != channels:
            raise ConfigError(f"DCT std of {len(std)} numbers: expected one for each of {channels} channels")
        self.normalizer = LatentNormalizer((0.0,) * channels if mean is None else mean, std)
        self._basis = dct_basis(channels, temporal)  # a constant, not a buffer: in no state dict, never on meta

    def _encode(self, video: Tensor) -> Tensor:
        frames, p = self.temporal_compression_factor, SPATIAL
        video = torch.cat([video[:, :, :1].expand(-1, -1, frames - 1, -1, -1), video], 2)
        blocks = video.unflatten(4, (-1, p)).unflatten(3, (-1, p)).unflatten(2, (-1, frames))  # B, C, t, f, h, p, w, p
        return torch.einsum("bctfhiwj,kcfij->bkthw", blocks, self._blocks(video))

    def _decode(self, latent: Tensor) -> Tensor:
        frames = self.temporal_compression_factor
        norm = 3 * frames * SPATIAL**2  # undoes the division by its root, here and in the basis
        video = torch.einsum("bkthw,kcfij->bctfhiwj", latent * norm, self._blocks(latent))
        return video.flatten(6, 7).flatten(4, 5).flatten(2, 3)[:, :, frames - 1 :].contiguous()

    def _blocks(self, like: Tensor) -> Tensor:
        return self._basis.to(like).view(-1, 3, self.temporal_compression_factor, SPATIAL, SPATIAL)


def fit_dct_std(clips: Iterable[Tensor], channels: int = 16, temporal: int = 4) -> Tensor:
    """Return the standard deviation of each DCT channel over `clips`, for `DCTTokenizer(std=...)`.

    clips: videos (3, T, H, W) or (B, 3, T, H, W), float in [-1, 1] or uint8, of any sizes that fit.
    Returns (channels,) float32, at least 1e-4 (a channel that never moves stays harmless). Raises ConfigError without clips.
    """
    tokenizer = DCTTokenizer(channels, temporal, std=(1.0,) * channels)
    count, total, squares = 0, torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    for clip in clips:
        latent = tokenizer.encode(clip if clip.ndim == 5 else clip[None]).double().cpu().transpose(0, 1).flatten(1)
        count += latent.shape[1]
        total += latent.sum(1)
        squares += latent.square().sum(1)
    if not count:
        raise ConfigError("fit_dct_std: no clips given; expected at least one (3, T, H, W) video")
    variance = squares / count - (total / count).square()
    return variance.clamp_min(0).sqrt().clamp_min(1e-4).float()

"""A video tokenizer without weights: the low frequencies of a 3-D DCT per block of pixels.

Linear, causal and exactly chunkable. With 16 channels it keeps 25 to 30 dB, enough for tests, demos and small models that
train on a CPU; with all coefficients it is lossless. Use a learned tokenizer for real work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cosmos_predict.errors import ConfigError
from cosmos_predict.tokenizers.base import VideoTokenizer
from cosmos_predict.tokenizers.normalize import LatentNormalizer

# Standard deviations of the first 16 channels at 4x8x8 on synthetic shapes in motion (fit your own with `fit_dct_std`).
DEFAULT_STD = (0.256, 0.286, 0.264, 0.0322, 0.0297, 0.0278, 0.0314, 0.0309, 0.0302, 0.0299, 0.0270, 0.0268, 0.0117, 0.0134, 0.0137, 0.0109)  # fmt: skip
COLOURS = ((1, 1, 1), (1, 0, -1), (1, -2, 1))  # luma and two colour differences, each to be divided by its length


class DCTTokenizer(VideoTokenizer):
    """Blocks of `temporal` x `spatial` x `spatial` pixels to their `latent_ch` lowest DCT coefficients.

    temporal: 1, 4 or 8 frames per latent frame; the first frame is repeated so that it has a latent frame of its own.
    std: one number per channel, latents are divided by it; None takes `DEFAULT_STD` for 16 channels of 4x8x8, else ones.
    Raises ConfigError for sizes that do not fit.
    """

    basis: Tensor

    def __init__(
        self, latent_ch: int = 16, temporal: int = 4, spatial: int = 8, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        volume = 3 * temporal * spatial**2
        if temporal not in (1, 2, 4, 8) or not 1 <= latent_ch <= volume:
            raise ConfigError(
                f"DCT tokenizer: temporal={temporal} must be 1, 2, 4 or 8, latent_ch={latent_ch} in 1..{volume}"
            )
        self.latent_ch = latent_ch
        self.temporal_compression_factor, self.spatial_compression_factor = temporal, spatial
        if std is None:
            std = DEFAULT_STD if (latent_ch, temporal, spatial) == (16, 4, 8) else [1.0] * latent_ch
        if len(std) != latent_ch:
            raise ConfigError(f"DCT tokenizer: std has {len(std)} numbers for {latent_ch} channels")
        self.normalizer = LatentNormalizer(torch.zeros(latent_ch), torch.as_tensor([float(value) for value in std]))
        # A constant, not a weight: in no state dict, and the same on every device.
        self.register_buffer("basis", dct_basis(latent_ch, temporal, spatial), persistent=False)

    def _encode(self, video: Tensor) -> Tensor:
        t, s = self.temporal_compression_factor, self.spatial_compression_factor
        video = torch.cat([video[:, :, :1].expand(-1, -1, t - 1, -1, -1), video], dim=2)
        batch, colours, frames, height, width = video.shape
        blocks = video.reshape(batch, colours, frames // t, t, height // s, s, width // s, s)
        coefficients = blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4) @ self.basis.to(video)
        return coefficients.permute(0, 4, 1, 2, 3) / math.sqrt(self.basis.shape[0])

    def _decode(self, latent: Tensor) -> Tensor:
        t, s = self.temporal_compression_factor, self.spatial_compression_factor
        coefficients = latent.permute(0, 2, 3, 4, 1) * math.sqrt(self.basis.shape[0])
        blocks = (coefficients @ self.basis.to(latent).T).unflatten(-1, (3, t, s, s))
        batch, frames, height, width = blocks.shape[:4]
        video = blocks.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, 3, frames * t, height * s, width * s)
        return video[:, :, t - 1 :]


def dct_basis(latent_ch: int, temporal: int, spatial: int) -> Tensor:
    """Return the orthonormal columns (3 * temporal * spatial^2, latent_ch) float32 of the kept coefficients.

    Rows run over (colour, time, row, column). Coefficients (colour d, time a, vertical u, horizontal v) are ordered by
    u + v + 0.7 a (0.49 a at 8 frames) + 0.3 [d > 0], ties by 0.001 d + 0.0001 u.
    """
    time_cost = 0.49 if temporal == 8 else 0.7
    ranked = sorted(
        (u + v + time_cost * a + 0.3 * (d > 0) + 0.001 * d + 0.0001 * u, d, a, u, v)
        for d in range(3)
        for a in range(temporal)
        for u in range(spatial)
        for v in range(spatial)
    )[:latent_ch]
    colours = torch.tensor(COLOURS, dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    time, space = _dct_matrix(temporal), _dct_matrix(spatial)
    columns = [
        torch.einsum("c,t,h,w->cthw", colours[d], time[a], space[u], space[v]).flatten() for _, d, a, u, v in ranked
    ]
    return torch.stack(columns, dim=1).float()


def fit_dct_std(
    clips: Iterable[Tensor], latent_ch: int = 16, temporal: int = 4, spatial: int = 8, smallest: float = 1e-3
) -> list[float]:
    """Return the std table that gives the latents of `clips` unit variance, one number per channel.

    clips: videos (B, 3, T, H, W), uint8 or in [-1, 1], of valid sizes. Channels that hardly move get `smallest`.
    Raises ConfigError when there is no clip.
    """
    tokenizer = DCTTokenizer(latent_ch, temporal, spatial, std=[1.0] * latent_ch)
    total, squares, count = torch.zeros(latent_ch), torch.zeros(latent_ch), 0
    for clip in clips:
        latent = tokenizer.encode(clip).float().transpose(0, 1).flatten(1)
        total, squares, count = total + latent.sum(1), squares + (latent**2).sum(1), count + latent.shape[1]
    if count == 0:
        raise ConfigError("fit_dct_std needs at least one clip")
    variance = (squares / count - (total / count) ** 2).clamp(min=0)
    return [round(max(float(value), smallest), 5) for value in variance.sqrt()]


def _dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II, row k the k-th frequency: (size, size) float64."""
    positions = (2 * torch.arange(size, dtype=torch.float64) + 1) / (2 * size)
    matrix = torch.cos(math.pi * torch.arange(size, dtype=torch.float64)[:, None] * positions) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix

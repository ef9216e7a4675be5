"""The Haar patcher of the Cosmos tokenizers: space (and time) folded into channels by sums and differences."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_predict.errors import ConfigError


def _steps(patch_size: int) -> int:
    steps = patch_size.bit_length() - 1
    if patch_size < 1 or patch_size != 1 << steps:
        raise ConfigError(f"patch_size {patch_size}: expected a power of two (1, 2, 4, ...)")
    return steps


def _split(x: Tensor, axis: int, band_axis: int) -> Tensor:
    """Replace `axis` by sums and differences of neighbours, stacked along a new `band_axis`."""
    even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
    return torch.stack([even + odd, even - odd], band_axis)


def _merge(x: Tensor, axis: int, band_axis: int) -> Tensor:
    """Invert `_split` up to a factor of 2."""
    low, high = x.unbind(band_axis)  # `axis` lies behind `band_axis` and moves up by one
    return torch.stack([low + high, low - high], axis).flatten(axis - 1, axis)


def _patch(x: Tensor, patch_size: int, axes: tuple[int, ...]) -> Tensor:
    """Halve every axis of `axes` log2(patch_size) times; the band indices of earlier axes are the outer ones."""
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    for _ in range(_steps(patch_size)):
        for band_axis, axis in enumerate(axes, start=1):
            y = _split(y, axis + band_axis - 1, band_axis)
        y = y.flatten(1, 1 + len(axes)) * 0.5 ** len(axes)
    return y.to(x.dtype)


def _unpatch(x: Tensor, patch_size: int, axes: tuple[int, ...]) -> Tensor:
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    for _ in range(_steps(patch_size)):
        y = y.unflatten(1, (2,) * len(axes) + (-1,))
        for band_axis in range(len(axes), 0, -1):
            y = _merge(y, axes[band_axis - 1] + band_axis, band_axis)
    return y.to(x.dtype)


def haar_patch_3d(video: Tensor, patch_size: int) -> Tensor:
    """Patch a video causally: the first frame stands for `patch_size` copies of itself.

    video: (B, C, T, H, W) with T = 1 + patch_size * m, H and W multiples of patch_size.
    Returns (B, C * patch_size**3, 1 + m, H / patch_size, W / patch_size). In each of the log2(patch_size) steps
    band[a, b, c] = 1/8 sum (-1)^(a i + b j + c k) x[2t + i, 2h + j, 2w + k]; channel = (4a + 2b + c) * C_in + c_in.
    Computed in float32 for 16-bit inputs.
    """
    first = video[:, :, :1].expand(-1, -1, patch_size - 1, -1, -1)
    return _patch(torch.cat([first, video], 2), patch_size, (2, 3, 4))


def haar_unpatch_3d(patches: Tensor, patch_size: int) -> Tensor:
    """Invert `haar_patch_3d`: (B, C * patch_size**3, t, h, w) to (B, C, 1 + patch_size * (t - 1), H, W)."""
    return _unpatch(patches, patch_size, (2, 3, 4))[:, :, patch_size - 1 :]


def haar_patch_2d(image: Tensor, patch_size: int) -> Tensor:
    """Patch an image: (B, C, H, W) to (B, C * patch_size**2, H / patch_size, W / patch_size).

    band[x, y] = 1/4 sum (-1)^(x i + y j) image[2h + j, 2w + i]: the outer band index belongs to the WIDTH filter.
    """
    return _patch(image, patch_size, (3, 2))


def haar_unpatch_2d(patches: Tensor, patch_size: int) -> Tensor:
    """Invert `haar_patch_2d`: (B, C * patch_size**2, h, w) to (B, C, h * patch_size, w * patch_size)."""
    return _unpatch(patches, patch_size, (3, 2))

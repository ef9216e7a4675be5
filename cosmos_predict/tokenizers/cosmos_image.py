"""The Cosmos continuous image tokenizers (CI8x8, CI16x16): 2D autoencoders over Haar patches.

Module names are the published checkpoints' keys.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cosmos_predict.tokenizers import cosmos_unet as unet
from cosmos_predict.tokenizers.base import VideoTokenizer
from cosmos_predict.tokenizers.frames import (
    channels_last_weights,
    from_frames,
    pad_right_bottom,
    to_frames,
    upsample_conv,
)
from cosmos_predict.tokenizers.haar import haar_patch_2d, haar_unpatch_2d
from cosmos_predict.tokenizers.normalize import LatentNormalizer


class Conv(nn.Conv2d):
    """A 2D convolution with padding k // 2."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        return super().forward(x)


class Norm(nn.GroupNorm):
    """Group normalisation with 32 groups."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels, eps=1e-6)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        return super().forward(x)


class Downsample(nn.Module):
    """Zero padding on the right and bottom, 3x3 with stride 2."""

    def __init__(self, channels: int, spatial: bool, temporal: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        return self.conv(pad_right_bottom(x))


class Upsample(nn.Module):
    """Repetition, 3x3."""

    def __init__(self, channels: int, spatial: bool, temporal: bool) -> None:
        super().__init__()
        self.conv = Conv(channels, channels)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        assert self.conv.bias is not None
        return upsample_conv(x, self.conv.weight, self.conv.bias)


_pointwise = functools.partial(Conv, kernel=1)
IMAGE_PARTS = unet.Parts(
    Norm, Conv, _pointwise, functools.partial(unet.Attention, Norm, _pointwise), Downsample, Upsample
)


class CosmosImageTokenizer(VideoTokenizer):
    """A Cosmos CI tokenizer; the defaults are CI8x8. The arguments are those of `CosmosVideoTokenizer` but for time.

    Same interface as the video tokenizers, with every frame on its own: (B, 3, T, H, W) to (B, C, T, h, w), T = 1 for
    images.
    """

    def __init__(
        self,
        channels: int = 128,
        channels_mult: Sequence[int] = (2, 4, 4),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (32,),
        resolution: int = 1024,
        patch_size: int = 2,
        z_channels: int = 16,
        latent_channels: int = 16,
        spatial_compression: int = 8,
        *,
        normalizer: LatentNormalizer | None = None,
        parts: Sequence[str] = ("encoder", "decoder"),
        **published: Any,
    ) -> None:
        super().__init__()
        unet.require_published(published, "Default")
        self.latent_ch, self.patch_size, self.normalizer = latent_channels, patch_size, normalizer
        self.spatial_compression_factor, self.temporal_compression_factor = spatial_compression, 1
        levels, halvings = len(channels_mult), unet.num_halvings(spatial_compression, patch_size)
        widths = [channels * m for m in (1, *channels_mult)]
        sizes = unet.Sizes(IMAGE_PARTS, 3 * patch_size**2, widths, num_res_blocks, z_channels)
        down = [(level < halvings, False) for level in range(levels)]
        up = [(level >= levels - halvings, False) for level in range(levels)]
        start = resolution // patch_size
        fine = [start // 2 ** min(level, halvings) in attn_resolutions for level in range(levels)]
        # The published counter starts at the coarsest level's value whatever the number of halvings.
        resolutions = [start // 2 ** (levels - 1) * 2 ** sum(c for c, _ in up[i + 1 :]) for i in range(levels)]
        attention = fine, [value in attn_resolutions for value in resolutions]
        unet.add_coders(self, sizes, latent_channels, parts, down, up, attention)
        channels_last_weights(self)

    def _encode(self, video: Tensor) -> Tensor:
        return unet.encode_patches(self, haar_patch_2d(to_frames(video), self.patch_size), video.shape[0])

    def _decode(self, latent: Tensor) -> Tensor:
        return from_frames(haar_unpatch_2d(unet.decode_patches(self, latent), self.patch_size), latent.shape[0])

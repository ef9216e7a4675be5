"""The Cosmos continuous image tokenizers (CI8x8, CI16x16): 2D autoencoders over Haar patches.

Module names are the published checkpoints' keys.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cosmos_predict.tokenizers.base import VideoTokenizer
from cosmos_predict.tokenizers.cosmos_unet import Decoder, Encoder, Parts
from cosmos_predict.tokenizers.cosmos_video import num_halvings, require_part, require_published
from cosmos_predict.tokenizers.frames import (
    channels_last_weights,
    from_frames,
    pad_right_bottom,
    pixel_attention,
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


class Attention(nn.Module):
    """One head among the pixels, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.q = Conv(channels, channels, 1)
        self.k = Conv(channels, channels, 1)
        self.v = Conv(channels, channels, 1)
        self.proj_out = Conv(channels, channels, 1)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        y = self.norm(x, batch)
        return self.proj_out(pixel_attention(self.q(y, batch), self.k(y, batch), self.v(y, batch)), batch).add_(x)


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


IMAGE_PARTS = Parts(
    norm=Norm,
    conv=Conv,
    pointwise=lambda a, b: Conv(a, b, 1),
    attention=Attention,
    downsample=Downsample,
    upsample=Upsample,
)


class CosmosImageTokenizer(VideoTokenizer):
    """A Cosmos CI tokenizer; the defaults are CI8x8. The arguments carry their published names.

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
        dropout: float = 0.0,
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int = 2,
        z_channels: int = 16,
        latent_channels: int = 16,
        spatial_compression: int = 8,
        patch_method: str = "haar",
        z_factor: int = 1,
        formulation: str = "AE",
        encoder: str = "Default",
        decoder: str = "Default",
        *,
        normalizer: LatentNormalizer | None = None,
        parts: Sequence[str] = ("encoder", "decoder"),
    ) -> None:
        super().__init__()
        require_published("Default", patch_method, z_factor, formulation, encoder, decoder)
        self.latent_ch = latent_channels
        self.spatial_compression_factor = spatial_compression
        self.temporal_compression_factor = 1
        self.patch_size = patch_size
        self.normalizer = normalizer
        levels = len(channels_mult)
        halvings = num_halvings(spatial_compression, patch_size)
        widths = [channels * m for m in (1, *channels_mult)]
        start = resolution // patch_size
        if "encoder" in parts:
            down = [(level < halvings, False) for level in range(levels)]
            attention = [start // 2 ** min(level, halvings) in attn_resolutions for level in range(levels)]
            self.encoder = Encoder(
                *(IMAGE_PARTS, in_channels * patch_size**2, widths, num_res_blocks),
                *(z_channels, down, attention, dropout),
            )
            self.quant_conv = Conv(z_channels, latent_channels, 1)
        if "decoder" in parts:
            up = [(level >= levels - halvings, False) for level in range(levels)]
            # The published counter starts at the coarsest level's value whatever the number of halvings.
            resolutions, current = [0] * levels, start // 2 ** (levels - 1)
            for level in reversed(range(levels)):
                resolutions[level] = current
                current *= 2 if up[level][0] else 1
            self.post_quant_conv = Conv(latent_channels, z_channels, 1)
            self.decoder = Decoder(
                *(IMAGE_PARTS, out_channels * patch_size**2, widths, num_res_blocks),
                *(z_channels, up, [value in attn_resolutions for value in resolutions], dropout),
            )
        channels_last_weights(self)

    def _encode(self, video: Tensor) -> Tensor:
        require_part(self, "encoder")
        batch = video.shape[0]
        x = haar_patch_2d(to_frames(video), self.patch_size)
        return from_frames(self.quant_conv(self.encoder(x, batch), batch), batch)

    def _decode(self, latent: Tensor) -> Tensor:
        require_part(self, "decoder")
        batch = latent.shape[0]
        x = self.decoder(self.post_quant_conv(to_frames(latent), batch), batch)
        return from_frames(haar_unpatch_2d(x, self.patch_size), batch)

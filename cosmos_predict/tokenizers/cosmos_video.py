"""The Cosmos continuous video tokenizers (CV4x8x8, CV8x8x8, CV8x16x16) of Cosmos 1.0 and Predict1.

Causal autoencoders: a 3D Haar patcher, then space and time convolutions apart ((1, 3, 3) and (3, 1, 1)). Module names are
the published checkpoints' keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_predict.errors import ConfigError
from cosmos_predict.tokenizers.base import VideoTokenizer
from cosmos_predict.tokenizers.cosmos_unet import Decoder, Encoder, Parts
from cosmos_predict.tokenizers.frames import (
    from_frames,
    pad_right_bottom,
    pixel_attention,
    repeated_conv,
    tap_major,
    time_attention,
    to_frames,
    upsample_conv,
)
from cosmos_predict.tokenizers.haar import haar_patch_3d, haar_unpatch_3d
from cosmos_predict.tokenizers.normalize import LatentNormalizer

IGNORED_KEYS = (
    r"encoder\.patcher(3d)?\.(wavelets|_arange|patch_size_buffer)",
    r"decoder\.unpatcher(3d)?\.(wavelets|_arange|patch_size_buffer)",
)
"""Constant buffers of published files that carry no information."""


class CausalConv3d(nn.Module):
    """A convolution padded in time on the left with copies of the first frame, in space with zeros."""

    def __init__(self, in_channels: int, out_channels: int, time: int, space: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, (time, space, space))
        self.conv3d.weight = nn.Parameter(tap_major(self.conv3d.weight.detach()))

    def forward(self, x: Tensor, batch: int, *, stride: int = 1) -> Tensor:
        weight, bias = self.conv3d.weight, self.conv3d.bias
        assert bias is not None
        return repeated_conv(x, weight, bias, batch, stride=stride)

    def spatial(self) -> tuple[Tensor, Tensor]:
        """Return weight (O, I, kh, kw) and bias of a convolution that looks at one frame."""
        assert self.conv3d.bias is not None
        return self.conv3d.weight[:, :, 0], self.conv3d.bias


class FactorizedConv(nn.ModuleList):
    """(1, 3, 3), then (3, 1, 1)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        space, time = CausalConv3d(in_channels, out_channels, 1, 3), CausalConv3d(out_channels, out_channels, 3, 1)
        super().__init__([space, time])

    def forward(self, x: Tensor, batch: int) -> Tensor:
        return self[1](self[0](x, batch), batch)


class FrameNorm(nn.Module):
    """Normalise each frame over all its channels and pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=1e-6)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        return self.norm(x)


class Attention(nn.Module):
    """One head, residual: among the pixels of a frame, or causally along time at each pixel."""

    def __init__(self, channels: int, over_time: bool) -> None:
        super().__init__()
        self.over_time = over_time
        self.norm = FrameNorm(channels)
        self.q = CausalConv3d(channels, channels, 1, 1)
        self.k = CausalConv3d(channels, channels, 1, 1)
        self.v = CausalConv3d(channels, channels, 1, 1)
        self.proj_out = CausalConv3d(channels, channels, 1, 1)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        y = self.norm(x, batch)
        q, k, v = self.q(y, batch), self.k(y, batch), self.v(y, batch)
        y = time_attention(q, k, v, batch) if self.over_time else pixel_attention(q, k, v)
        return self.proj_out(y, batch).add_(x)


class FactorizedAttention(nn.ModuleList):
    """Attention in space, then in time."""

    def __init__(self, channels: int) -> None:
        super().__init__([Attention(channels, over_time=False), Attention(channels, over_time=True)])

    def forward(self, x: Tensor, batch: int) -> Tensor:
        return self[1](self[0](x, batch), batch)


class HybridDownsample(nn.Module):
    """Halve space and/or time: strided convolution plus average pooling; then a 1x1x1 convolution."""

    def __init__(self, channels: int, spatial: bool, temporal: bool) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(channels, channels, 1, 3) if spatial else None
        self.conv2 = CausalConv3d(channels, channels, 3, 1) if temporal else None
        self.conv3 = CausalConv3d(channels, channels, 1, 1)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        if self.conv1 is not None:
            y = F.conv2d(pad_right_bottom(x), *self.conv1.spatial(), stride=2)
            x = y.add_(F.avg_pool2d(x, 2))
        if self.conv2 is not None:
            # The pool sees the first frame twice: it stays as it is, and the others are averaged in pairs.
            frames = x.unflatten(0, (-1, batch))
            pooled = ((frames[1::2] + frames[2::2]) * 0.5).flatten(0, 1)
            y = self.conv2(x, batch, stride=2)
            y[:batch] += x[:batch]
            y[batch:] += pooled
            x = y
        return self.conv3(x, batch)


class HybridUpsample(nn.Module):
    """Double time and/or space by repetition, each plus a convolution of itself; then a 1x1x1 convolution."""

    def __init__(self, channels: int, spatial: bool, temporal: bool) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(channels, channels, 3, 1) if temporal else None
        self.conv2 = CausalConv3d(channels, channels, 1, 3) if spatial else None
        self.conv3 = CausalConv3d(channels, channels, 1, 1)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        if self.conv1 is not None:
            frames = x.permute(0, 2, 3, 1).unflatten(0, (-1, batch))
            twice = frames[:, None].expand(-1, 2, -1, -1, -1, -1).flatten(0, 2)
            x = twice[batch:].permute(0, 3, 1, 2)  # the first frame stays single
            x = self.conv1(x, batch).add_(x)
        if self.conv2 is not None:
            x = upsample_conv(x, *self.conv2.spatial(), residual=True)
        return self.conv3(x, batch)


VIDEO_PARTS = Parts(
    norm=FrameNorm,
    conv=FactorizedConv,
    pointwise=lambda a, b: CausalConv3d(a, b, 1, 1),
    attention=FactorizedAttention,
    downsample=HybridDownsample,
    upsample=HybridUpsample,
)


class CosmosVideoTokenizer(VideoTokenizer):
    """A Cosmos CV tokenizer; the defaults are CV8x8x8. The arguments carry their published names.

    patch_size and the compressions are powers of two; latent_channels is the width after `quant_conv`.
    Arguments that every published continuous tokenizer has in common (patch_method, formulation, ...) are accepted with
    that value only.
    pixel_chunk_duration: encode every so many frames (1 + f k) as an independent clip; clips that fit into one chunk may
        be shorter. None: the whole video is one clip.
    normalizer: latent statistics (`mean_std.pt`); its columns start again with every chunk.
    parts: "encoder", "decoder" or both, for the published one-sided files.
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
        patch_size: int = 4,
        z_channels: int = 16,
        latent_channels: int = 16,
        spatial_compression: int = 8,
        temporal_compression: int = 8,
        legacy_mode: bool = False,
        patch_method: str = "haar",
        z_factor: int = 1,
        num_groups: int = 1,
        formulation: str = "AE",
        encoder: str = "FACTORIZED",
        decoder: str = "FACTORIZED",
        *,
        pixel_chunk_duration: int | None = None,
        normalizer: LatentNormalizer | None = None,
        parts: Sequence[str] = ("encoder", "decoder"),
    ) -> None:
        super().__init__()
        require_published("FACTORIZED", patch_method, z_factor, formulation, encoder, decoder)
        if num_groups != 1:
            raise ConfigError(f"num_groups={num_groups}: only 1 is causal, and published")
        self.latent_ch = latent_channels
        self.spatial_compression_factor = spatial_compression
        self.temporal_compression_factor = temporal_compression
        self.patch_size = patch_size
        self.normalizer = normalizer
        if pixel_chunk_duration is not None and (pixel_chunk_duration - 1) % temporal_compression:
            raise ConfigError(f"pixel_chunk_duration={pixel_chunk_duration}: expected 1 + {temporal_compression} k")
        self.pixel_chunk_duration = pixel_chunk_duration
        levels = len(channels_mult)
        halvings = num_halvings(spatial_compression, patch_size), num_halvings(temporal_compression, patch_size)
        widths = [channels * m for m in (1, *channels_mult)]
        # Published code counts a resolution that is halved at every level but the last, whether it is resampled or not.
        attention = [resolution // patch_size // 2**level in attn_resolutions for level in range(levels)]
        patch_channels = patch_size**3
        if "encoder" in parts:
            last = levels - 1
            down = [(i < last and i < halvings[0], i < last and i < halvings[1]) for i in range(levels)]
            self.encoder = Encoder(
                *(VIDEO_PARTS, in_channels * patch_channels, widths, num_res_blocks),
                *(z_channels, down, attention, dropout),
            )
            self.quant_conv = CausalConv3d(z_channels, latent_channels, 1, 1)
        if "decoder" in parts:
            up = []
            for rank in reversed(range(levels)):  # 0: the coarsest level, run first
                temporal = rank < halvings[1] if legacy_mode else 0 < rank < halvings[1] + 1
                spatial = temporal or (rank < halvings[0] and halvings[0] > halvings[1])
                up.append((spatial, temporal) if rank < levels - 1 else (False, False))
            self.post_quant_conv = CausalConv3d(latent_channels, z_channels, 1, 1)
            self.decoder = Decoder(
                *(VIDEO_PARTS, out_channels * patch_channels, widths, num_res_blocks),
                *(z_channels, up, attention, dropout),
            )

    def get_latent_num_frames(self, num_pixel_frames: int) -> int:
        """Return t for T frames: a number of whole chunks, or one clip that fits into a chunk."""
        chunk, frames = self.pixel_chunk_duration, num_pixel_frames
        if chunk is None or frames < chunk:
            return super().get_latent_num_frames(frames)
        if frames % chunk:
            below = frames // chunk * chunk
            raise ConfigError(
                f"T = {frames} frames: expected a multiple of pixel_chunk_duration={chunk}, such as {below} or "
                f"{below + chunk}, or at most {chunk} frames; cut or extend the clip"
            )
        return frames // chunk * super().get_latent_num_frames(chunk)

    def get_pixel_num_frames(self, num_latent_frames: int) -> int:
        """Return T for t latent frames: whole chunks, or one clip that fits into a chunk."""
        chunk, frames = self.latent_chunk_duration, num_latent_frames
        if chunk is None or frames < chunk:
            return super().get_pixel_num_frames(frames)
        if frames % chunk:
            below = frames // chunk * chunk
            raise ConfigError(
                f"t = {frames} latent frames: expected a multiple of {chunk} (pixel_chunk_duration="
                f"{self.pixel_chunk_duration}), such as {below} or {below + chunk}"
            )
        return frames // chunk * super().get_pixel_num_frames(chunk)

    @property
    def latent_chunk_duration(self) -> int | None:
        """Latent frames of a chunk; None without chunks."""
        if self.pixel_chunk_duration is None:
            return None
        return 1 + (self.pixel_chunk_duration - 1) // self.temporal_compression_factor

    def _encode(self, video: Tensor) -> Tensor:
        require_part(self, "encoder")
        return torch.cat([self._encode_clip(clip) for clip in _chunks(video, self.pixel_chunk_duration)], 2)

    def _decode(self, latent: Tensor) -> Tensor:
        require_part(self, "decoder")
        return torch.cat([self._decode_clip(clip) for clip in _chunks(latent, self.latent_chunk_duration)], 2)

    def _encode_clip(self, video: Tensor) -> Tensor:
        batch = video.shape[0]
        x = to_frames(haar_patch_3d(video, self.patch_size))
        return from_frames(self.quant_conv(self.encoder(x, batch), batch), batch)

    def _decode_clip(self, latent: Tensor) -> Tensor:
        batch = latent.shape[0]
        x = self.decoder(self.post_quant_conv(to_frames(latent), batch), batch)
        return haar_unpatch_3d(from_frames(x, batch), self.patch_size)


def _chunks(x: Tensor, size: int | None) -> Sequence[Tensor]:
    return [x] if size is None else x.split(size, dim=2)


def num_halvings(compression: int, patch_size: int) -> int:
    """Return log2(compression / patch_size); raises ConfigError where that is no whole number >= 0."""
    ratio, rest = divmod(compression, patch_size)
    if rest or ratio < 1 or ratio & (ratio - 1):
        raise ConfigError(
            f"compression {compression} with patch_size {patch_size}: expected patch_size times 1, 2, 4, ..."
        )
    return ratio.bit_length() - 1


def require_part(module: nn.Module, part: str) -> None:
    """Raise ConfigError where `module` was built without its encoder or decoder."""
    if not hasattr(module, part):
        raise ConfigError(f"this tokenizer has no {part}: load the {part} file or the whole autoencoder")


def require_published(
    nets: str, patch_method: str, z_factor: int, formulation: str, encoder: str, decoder: str
) -> None:
    """Raise ConfigError for settings that no published continuous tokenizer has."""
    expected = {"patch_method": "haar", "z_factor": 1, "formulation": "AE", "encoder": nets, "decoder": nets}
    given = (patch_method, z_factor, formulation, encoder, decoder)
    for (name, wanted), value in zip(expected.items(), given, strict=True):
        if value != wanted:
            raise ConfigError(f"{name}={value!r}: only {wanted!r} is supported, as in every published tokenizer")

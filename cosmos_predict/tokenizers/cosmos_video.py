"""The Cosmos continuous video tokenizers (CV4x8x8, CV8x8x8, CV8x16x16) of Cosmos 1.0 and Predict1.

Causal autoencoders: a 3D Haar patcher, then space and time convolutions apart ((1, 3, 3) and (3, 1, 1)). Module names are
the published checkpoints' keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_predict.errors import ConfigError
from cosmos_predict.tokenizers import cosmos_unet as unet
from cosmos_predict.tokenizers.base import VideoTokenizer
from cosmos_predict.tokenizers.frames import (
    from_frames,
    pad_right_bottom,
    repeated_conv,
    tap_major,
    to_frames,
    upsample_conv,
)
from cosmos_predict.tokenizers.haar import haar_patch_3d, haar_unpatch_3d
from cosmos_predict.tokenizers.normalize import LatentNormalizer

IGNORED_KEYS = r"(encoder\.|decoder\.un)patcher(3d)?\.(wavelets|_arange|patch_size_buffer)"
"""Constant buffers of published files that carry no information."""


class CausalConv3d(nn.Module):
    """A convolution padded in time on the left with copies of the first frame, in space with zeros."""

    def __init__(self, in_channels: int, out_channels: int, time: int, space: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, (time, space, space))
        self.conv3d.weight = nn.Parameter(tap_major(self.conv3d.weight.detach()))

    def forward(self, x: Tensor, batch: int, *, stride: int = 1) -> Tensor:
        assert self.conv3d.bias is not None
        return repeated_conv(x, self.conv3d.weight, self.conv3d.bias, batch, stride=stride)

    def spatial(self) -> tuple[Tensor, Tensor]:
        """Return weight (O, I, kh, kw) and bias of a convolution that looks at one frame."""
        assert self.conv3d.bias is not None
        return self.conv3d.weight[:, :, 0], self.conv3d.bias


class SpaceThenTime(nn.ModuleList):
    """A layer in space, then one in time."""

    def forward(self, x: Tensor, batch: int) -> Tensor:
        return self[1](self[0](x, batch), batch)


_pointwise = functools.partial(CausalConv3d, time=1, space=1)


def _factorized_conv(in_channels: int, out_channels: int) -> SpaceThenTime:
    return SpaceThenTime(
        [CausalConv3d(in_channels, out_channels, 1, 3), CausalConv3d(out_channels, out_channels, 3, 1)]
    )


class FrameNorm(nn.Module):
    """Normalise each frame over all its channels and pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=1e-6)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        return self.norm(x)


def _factorized_attention(channels: int) -> SpaceThenTime:
    return SpaceThenTime([unet.Attention(FrameNorm, _pointwise, channels, over_time) for over_time in (False, True)])


class HybridDownsample(nn.Module):
    """Halve space and/or time: strided convolution plus average pooling; then a 1x1x1 convolution."""

    def __init__(self, channels: int, spatial: bool, temporal: bool) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(channels, channels, 1, 3) if spatial else None
        self.conv2 = CausalConv3d(channels, channels, 3, 1) if temporal else None
        self.conv3 = _pointwise(channels, channels)

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
        self.conv3 = _pointwise(channels, channels)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        if self.conv1 is not None:
            frames = x.permute(0, 2, 3, 1).unflatten(0, (-1, batch))
            twice = frames[:, None].expand(-1, 2, -1, -1, -1, -1).flatten(0, 2)
            x = twice[batch:].permute(0, 3, 1, 2)  # the first frame stays single
            x = self.conv1(x, batch).add_(x)
        if self.conv2 is not None:
            x = upsample_conv(x, *self.conv2.spatial(), residual=True)
        return self.conv3(x, batch)


VIDEO_PARTS = unet.Parts(
    FrameNorm, _factorized_conv, _pointwise, _factorized_attention, HybridDownsample, HybridUpsample
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
        patch_size: int = 4,
        z_channels: int = 16,
        latent_channels: int = 16,
        spatial_compression: int = 8,
        temporal_compression: int = 8,
        *,
        pixel_chunk_duration: int | None = None,
        normalizer: LatentNormalizer | None = None,
        parts: Sequence[str] = ("encoder", "decoder"),
        **published: Any,
    ) -> None:
        super().__init__()
        unet.require_published(published, "FACTORIZED")
        self.latent_ch, self.patch_size, self.normalizer = latent_channels, patch_size, normalizer
        self.spatial_compression_factor, self.temporal_compression_factor = spatial_compression, temporal_compression
        if pixel_chunk_duration is not None and (pixel_chunk_duration - 1) % temporal_compression:
            raise ConfigError(f"pixel_chunk_duration={pixel_chunk_duration}: expected 1 + {temporal_compression} k")
        self.pixel_chunk_duration = pixel_chunk_duration
        levels = len(channels_mult)
        space, time = (unet.num_halvings(n, patch_size) for n in (spatial_compression, temporal_compression))
        widths = [channels * m for m in (1, *channels_mult)]
        # Published code counts a resolution that is halved at every level but the last, whether it is resampled or not.
        attention = [resolution // patch_size // 2**level in attn_resolutions for level in range(levels)]
        sizes = unet.Sizes(VIDEO_PARTS, 3 * patch_size**3, widths, num_res_blocks, z_channels)
        down = [(level < space, level < time) for level in range(levels - 1)] + [(False, False)]
        up = [(False, False)]  # the finest level, run last
        for rank in reversed(range(levels - 1)):  # 0: the coarsest level
            temporal = 0 < rank <= time
            up.append((temporal or (rank < space and space > time), temporal))
        unet.add_coders(self, sizes, latent_channels, parts, down, up, (attention, attention))

    def get_latent_num_frames(self, num_pixel_frames: int) -> int:
        """Return t for T frames: a number of whole chunks, or one clip that fits into a chunk."""
        frames, chunk = num_pixel_frames, self.pixel_chunk_duration
        name = f"pixel_chunk_duration={chunk}"
        return _by_chunks(super().get_latent_num_frames, frames, chunk, f"T = {frames} frames", name)

    def get_pixel_num_frames(self, num_latent_frames: int) -> int:
        """Return T for t latent frames: whole chunks, or one clip that fits into a chunk."""
        frames, chunk = num_latent_frames, self.latent_chunk_duration
        name = f"{chunk} (pixel_chunk_duration={self.pixel_chunk_duration})"
        return _by_chunks(super().get_pixel_num_frames, frames, chunk, f"t = {frames} latent frames", name)

    @property
    def latent_chunk_duration(self) -> int | None:
        """Latent frames of a chunk; None without chunks."""
        if self.pixel_chunk_duration is None:
            return None
        return 1 + (self.pixel_chunk_duration - 1) // self.temporal_compression_factor

    def _encode(self, video: Tensor) -> Tensor:
        clips = video.split(self.pixel_chunk_duration or video.shape[2], dim=2)
        patches = (to_frames(haar_patch_3d(clip, self.patch_size)) for clip in clips)
        return torch.cat([unet.encode_patches(self, each, video.shape[0]) for each in patches], 2)

    def _decode(self, latent: Tensor) -> Tensor:
        clips = latent.split(self.latent_chunk_duration or latent.shape[2], dim=2)
        patches = (from_frames(unet.decode_patches(self, clip), latent.shape[0]) for clip in clips)
        return torch.cat([haar_unpatch_3d(each, self.patch_size) for each in patches], 2)


def _by_chunks(count: Callable[[int], int], frames: int, chunk: int | None, given: str, name: str) -> int:
    """Return `count` of every whole chunk together, or of one clip that fits into a chunk."""
    if chunk is None or frames < chunk:
        return count(frames)
    if frames % chunk:
        below = frames // chunk * chunk
        near = f"such as {below} or {below + chunk}, or fewer than {chunk}"
        raise ConfigError(f"{given}: expected a multiple of {name}, {near}; give another number of frames")
    return frames // chunk * count(chunk)

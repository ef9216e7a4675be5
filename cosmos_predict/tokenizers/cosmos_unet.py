"""The encoder and decoder that the Cosmos video and image tokenizers share; only their parts differ.

Module names are the published checkpoints' keys. Layers work on frames (T*B, C, H, W) and are called with the batch size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_predict.errors import ConfigError
from cosmos_predict.tokenizers.frames import from_frames, pixel_attention, time_attention, to_frames

Resampling = tuple[bool, bool]
"""Whether a level changes space, and whether it changes time."""


Layer = Callable[..., nn.Module]
"""How to build a layer, which is then called as layer(frames, batch)."""


@dataclass(frozen=True)
class Parts:
    """The layers that differ: norm(C), 3x3 (x3) conv and pointwise(C_in, C_out), attention(C), down- and
    upsample(C, spatial, temporal).
    """

    norm: Layer
    conv: Layer
    pointwise: Layer
    attention: Layer
    downsample: Layer
    upsample: Layer


class Sizes(NamedTuple):
    """What encoder and decoder have in common.

    channels: of a patch. widths: channels after the first convolution and after each level. z_channels: of the latent.
    """

    parts: Parts
    channels: int
    widths: Sequence[int]
    num_res_blocks: int
    z_channels: int


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, twice, plus the input."""

    def __init__(self, parts: Parts, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = parts.norm(in_channels)
        self.conv1 = parts.conv(in_channels, out_channels)
        self.norm2 = parts.norm(out_channels)
        self.conv2 = parts.conv(out_channels, out_channels)
        self.nin_shortcut = parts.pointwise(in_channels, out_channels) if in_channels != out_channels else None

    def forward(self, x: Tensor, batch: int) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x, batch), inplace=True), batch)
        y = self.conv2(F.silu(self.norm2(y, batch), inplace=True), batch)
        return y.add_(x if self.nin_shortcut is None else self.nin_shortcut(x, batch))


class Attention(nn.Module):
    """One head, residual: among the pixels of a frame, or causally along time at each pixel."""

    def __init__(self, norm: Layer, pointwise: Layer, channels: int, over_time: bool = False) -> None:
        super().__init__()
        self.over_time = over_time
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (pointwise(channels, channels) for _ in range(4))

    def forward(self, x: Tensor, batch: int) -> Tensor:
        y = self.norm(x, batch)
        q, k, v = self.q(y, batch), self.k(y, batch), self.v(y, batch)
        y = time_attention(q, k, v, batch) if self.over_time else pixel_attention(q, k, v)
        return self.proj_out(y, batch).add_(x)


class Mid(nn.Module):
    """block, attention, block."""

    def __init__(self, parts: Parts, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(parts, channels, channels)
        self.attn_1 = parts.attention(channels)
        self.block_2 = ResnetBlock(parts, channels, channels)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, batch), batch), batch)


class Level(nn.Module):
    """Residual blocks, each followed by attention where asked, and a change of resolution at the end."""

    def __init__(self, parts: Parts, widths: Sequence[int], attention: bool) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.block = nn.ModuleList([ResnetBlock(parts, a, b) for a, b in pairs])
        self.attn = nn.ModuleList([parts.attention(b) for _, b in pairs] if attention else [])
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor, batch: int) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x, batch)
            if len(self.attn):
                x = self.attn[index](x, batch)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x, batch)
        return x


class Encoder(nn.Module):
    """Patches (T*B, channels, H, W) to (t*B, z_channels, h, w).

    down: what is halved after each level; attention: whether a level has it.
    """

    def __init__(self, sizes: Sizes, down: Sequence[Resampling], attention: Sequence[bool]) -> None:
        super().__init__()
        parts, channels, widths, num_res_blocks, z_channels = sizes
        self.conv_in = parts.conv(channels, widths[0])
        self.down = nn.ModuleList()
        for (before, width), change, attends in zip(itertools.pairwise(widths), down, attention, strict=True):
            level = Level(parts, [before] + [width] * num_res_blocks, attends)
            if any(change):
                level.downsample = parts.downsample(width, *change)
            self.down.append(level)
        self.mid = Mid(parts, widths[-1])
        self.norm_out = parts.norm(widths[-1])
        self.conv_out = parts.conv(widths[-1], z_channels)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        x = self.conv_in(x, batch)
        for level in self.down:
            x = level(x, batch)
        x = self.mid(x, batch)
        return self.conv_out(F.silu(self.norm_out(x, batch), inplace=True), batch)


class Decoder(nn.Module):
    """(t*B, z_channels, h, w) to patches (T*B, channels, H, W); `up.0` is the finest level, run last.

    up: what is doubled after each level, by level index; attention: whether a level has it.
    """

    def __init__(self, sizes: Sizes, up: Sequence[Resampling], attention: Sequence[bool]) -> None:
        super().__init__()
        parts, channels, widths, num_res_blocks, z_channels = sizes
        self.conv_in = parts.conv(z_channels, widths[-1])
        self.mid = Mid(parts, widths[-1])
        levels = []
        before = widths[-1]
        for width, change, attends in reversed(list(zip(widths[1:], up, attention, strict=True))):
            level = Level(parts, [before] + [width] * (num_res_blocks + 1), attends)
            if any(change):
                level.upsample = parts.upsample(width, *change)
            levels.append(level)
            before = width
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = parts.norm(before)
        self.conv_out = parts.conv(before, channels)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        x = self.mid(self.conv_in(x, batch), batch)
        for level in reversed(self.up):
            x = level(x, batch)
        return self.conv_out(F.silu(self.norm_out(x, batch), inplace=True), batch)


def num_halvings(compression: int, patch_size: int) -> int:
    """Return log2(compression / patch_size); raises ConfigError where that is no whole number >= 0."""
    ratio, rest = divmod(compression, patch_size)
    if rest or ratio < 1 or ratio & (ratio - 1):
        raise ConfigError(f"compression {compression} with patch_size {patch_size}: expected patch_size x 1, 2, 4...")
    return ratio.bit_length() - 1


def add_coders(
    tokenizer: Any,
    sizes: Sizes,
    latent_channels: int,
    wanted: Sequence[str],
    down: Sequence[Resampling],
    up: Sequence[Resampling],
    attention: tuple[Sequence[bool], Sequence[bool]],
) -> None:
    """Give a tokenizer what is wanted of "encoder" and "decoder", and the convolution between each and the latents.

    down, up, attention: as `Encoder` and `Decoder` take them.
    """
    if "encoder" in wanted:
        tokenizer.encoder = Encoder(sizes, down, attention[0])
        tokenizer.quant_conv = sizes.parts.pointwise(sizes.z_channels, latent_channels)
    if "decoder" in wanted:
        tokenizer.post_quant_conv = sizes.parts.pointwise(latent_channels, sizes.z_channels)
        tokenizer.decoder = Decoder(sizes, up, attention[1])


def encode_patches(tokenizer: Any, patches: Tensor, batch: int) -> Tensor:
    """Return latents (B, C, t, h, w) of patches (T*B, C, H, W); ConfigError where the tokenizer has no encoder."""
    _require_part(tokenizer, "encoder")
    return from_frames(tokenizer.quant_conv(tokenizer.encoder(patches, batch), batch), batch)


def decode_patches(tokenizer: Any, latent: Tensor) -> Tensor:
    """Return patches (T*B, C, H, W) of latents (B, C, t, h, w); ConfigError where the tokenizer has no decoder."""
    _require_part(tokenizer, "decoder")
    batch = latent.shape[0]
    return tokenizer.decoder(tokenizer.post_quant_conv(to_frames(latent), batch), batch)


def _require_part(tokenizer: nn.Module, part: str) -> None:
    if not hasattr(tokenizer, part):
        raise ConfigError(f"this tokenizer has no {part}: load the {part} file or the whole autoencoder")


def require_published(settings: Mapping[str, Any], nets: str) -> None:
    """Raise ConfigError for a setting that no published continuous tokenizer has, TypeError for an unknown one."""
    expected = {"in_channels": 3, "out_channels": 3, "dropout": 0.0, "patch_method": "haar", "z_factor": 1}
    expected |= {"num_groups": 1, "formulation": "AE", "encoder": nets, "decoder": nets, "legacy_mode": False}
    for name, value in settings.items():
        if name not in expected:
            raise TypeError(f"unexpected keyword argument {name!r}")
        if value != (wanted := expected[name]):
            raise ConfigError(f"{name}={value!r}: only {wanted!r} is supported, as in every published tokenizer")

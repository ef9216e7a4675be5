"""The encoder and decoder that the Cosmos video and image tokenizers share; only their parts differ.

Module names are the published checkpoints' keys. Layers work on frames (T*B, C, H, W) and are called with the batch size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Parts:
    """How to build the parts; every module is called as module(frames, batch)."""

    norm: Callable[[int], nn.Module]
    conv: Callable[[int, int], nn.Module]
    """The 3x3 (x3) convolution."""
    pointwise: Callable[[int, int], nn.Module]
    attention: Callable[[int], nn.Module]
    downsample: Callable[[int, bool, bool], nn.Module]
    """(channels, spatial, temporal)."""
    upsample: Callable[[int, bool, bool], nn.Module]


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, twice (dropout before the second conv), plus the input."""

    def __init__(self, parts: Parts, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = parts.norm(in_channels)
        self.conv1 = parts.conv(in_channels, out_channels)
        self.norm2 = parts.norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = parts.conv(out_channels, out_channels)
        self.nin_shortcut = parts.pointwise(in_channels, out_channels) if in_channels != out_channels else None

    def forward(self, x: Tensor, batch: int) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x, batch), inplace=True), batch)
        y = self.conv2(self.dropout(F.silu(self.norm2(y, batch), inplace=True)), batch)
        return y.add_(x if self.nin_shortcut is None else self.nin_shortcut(x, batch))


class Mid(nn.Module):
    """block, attention, block."""

    def __init__(self, parts: Parts, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(parts, channels, channels, dropout)
        self.attn_1 = parts.attention(channels)
        self.block_2 = ResnetBlock(parts, channels, channels, dropout)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, batch), batch), batch)


class Level(nn.Module):
    """Residual blocks, each followed by attention where asked, and a change of resolution at the end."""

    def __init__(self, parts: Parts, widths: Sequence[int], dropout: float, attention: bool) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.block = nn.ModuleList([ResnetBlock(parts, a, b, dropout) for a, b in pairs])
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
    """Patches (T*B, in_channels, H, W) to (t*B, z_channels, h, w).

    down: (spatial, temporal) halving after each level; attention: whether a level has it.
    """

    def __init__(
        self,
        parts: Parts,
        in_channels: int,
        widths: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        down: Sequence[tuple[bool, bool]],
        attention: Sequence[bool],
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv_in = parts.conv(in_channels, widths[0])
        self.down = nn.ModuleList()
        for index in range(len(widths) - 1):
            level_widths = [widths[index]] + [widths[index + 1]] * num_res_blocks
            level = Level(parts, level_widths, dropout, attention[index])
            if any(down[index]):
                level.downsample = parts.downsample(widths[index + 1], *down[index])
            self.down.append(level)
        self.mid = Mid(parts, widths[-1], dropout)
        self.norm_out = parts.norm(widths[-1])
        self.conv_out = parts.conv(widths[-1], z_channels)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        x = self.conv_in(x, batch)
        for level in self.down:
            x = level(x, batch)
        x = self.mid(x, batch)
        return self.conv_out(F.silu(self.norm_out(x, batch), inplace=True), batch)


class Decoder(nn.Module):
    """(t*B, z_channels, h, w) to patches (T*B, out_channels, H, W); `up.0` is the finest level, run last.

    up: (spatial, temporal) doubling after each level, by level index; attention: whether a level has it.
    """

    def __init__(
        self,
        parts: Parts,
        out_channels: int,
        widths: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        up: Sequence[tuple[bool, bool]],
        attention: Sequence[bool],
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv_in = parts.conv(z_channels, widths[-1])
        self.mid = Mid(parts, widths[-1], dropout)
        levels = []
        width = widths[-1]
        for index in reversed(range(len(widths) - 1)):
            level = Level(parts, [width] + [widths[index + 1]] * (num_res_blocks + 1), dropout, attention[index])
            width = widths[index + 1]
            if any(up[index]):
                level.upsample = parts.upsample(width, *up[index])
            levels.append(level)
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = parts.norm(width)
        self.conv_out = parts.conv(width, out_channels)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        x = self.mid(self.conv_in(x, batch), batch)
        for level in reversed(self.up):
            x = level(x, batch)
        return self.conv_out(F.silu(self.norm_out(x, batch), inplace=True), batch)

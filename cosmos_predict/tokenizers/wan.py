"""The Wan 2.1 VAE (Predict2 and 2.5): causal 3D convolutions, 4x8x8, whole clips, exact chunks, and streams.

Module names are the published checkpoint's keys. Encoding gives the posterior's mean; the variance is never used.
The published code runs frame 0 and then groups of frames through caches. That equals one causal computation over the whole
clip with zeros before frame 0 (spec: the first latent is left out of the history of the temporal upsampling), so any
grouping gives the same numbers; here a `WanStream` carries the few frames of history that each layer needs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_predict.errors import ConfigError
from cosmos_predict.tokenizers.base import VideoTokenizer
from cosmos_predict.tokenizers.frames import (
    causal_conv,
    channels_last_weights,
    from_frames,
    pad_right_bottom,
    pixel_attention,
    tap_major,
    to_frames,
    upsample_conv,
)
from cosmos_predict.tokenizers.normalize import LatentNormalizer

WAN_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


class WanStream:
    """What a causal pass over a clip in pieces remembers: a few frames per layer, and whether it has begun.

    Make one per clip and direction (`WanVAE.encode_chunk`, `decode_chunk`), not shared between them. `keep=False` is the
    whole clip in one piece, which remembers nothing.
    """

    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
        self.batch = 0
        self.begun = False
        self._history: dict[nn.Module, Tensor] = {}

    def exchange(self, layer: nn.Module, x: Tensor, keep: int) -> Tensor | None:
        """Return the frames that `layer` saw before `x` (or None) and remember its last `keep` frames."""
        before = self._history.get(layer)
        if self.keep and x.shape[0]:
            tail = x[-keep * self.batch :]
            if before is not None and tail.shape[0] < keep * self.batch:
                tail = torch.cat([before, tail])[-keep * self.batch :]
            self._history[layer] = tail.clone()  # a view would hold all of x
        return before

    def copy(self) -> WanStream:
        """Return a stream that goes on from here on its own (tensors are shared, never written to)."""
        other = WanStream(self.keep)
        other.batch, other.begun, other._history = self.batch, self.begun, dict(self._history)
        return other


class CausalConv3d(nn.Conv3d):
    """A convolution causal in time, zero padded, over frames (T*B, C, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int], time_stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size)
        self.time_stride = time_stride
        self.weight = nn.Parameter(tap_major(self.weight.detach()))

    def forward(self, x: Tensor, stream: WanStream) -> Tensor:
        assert self.bias is not None
        history = None
        if self.kernel_size[0] > 1:
            history = stream.exchange(self, x, self.kernel_size[0] - self.time_stride)
        return causal_conv(x, self.weight, self.bias, stream.batch, history, stride=self.time_stride)


class RMSNorm(nn.Module):
    """x / |x| * sqrt(C) * gamma over the channels of each pixel; gamma is (C, 1, 1, 1), or (C, 1, 1) in attention."""

    def __init__(self, channels: int, *ones: int, inplace: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *ones))
        self.inplace = inplace  # may overwrite its input, where no gradient needs it

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        if x.dtype in (torch.float16, torch.bfloat16):  # sums in float32; 1e-24 / C is the published 1e-12 on |x|
            y = F.rms_norm(x.permute(0, 2, 3, 1), (channels,), self.gamma.flatten(), eps=1e-24 / channels)
            return y.permute(0, 3, 1, 2)
        scale = channels**0.5 / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
        y = x.mul_(scale) if self.inplace and not x.requires_grad else x * scale
        return y.mul_(self.gamma.view(-1, 1, 1))


class ResidualBlock(nn.Module):
    """norm, SiLU, 3x3x3 conv, twice, plus the input (through a 1x1x1 `shortcut` where the width changes)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        first, (norm, silu, conv) = _layers(in_channels, out_channels, False), _layers(out_channels, out_channels)
        self.residual = nn.ModuleList([*first, norm, silu, nn.Identity(), conv])  # published: a dropout of 0
        self.shortcut = CausalConv3d(in_channels, out_channels, (1, 1, 1)) if in_channels != out_channels else None

    def forward(self, x: Tensor, stream: WanStream) -> Tensor:
        y = x
        for layer in self.residual:
            y = layer(y, stream) if isinstance(layer, CausalConv3d) else layer(y)
        return y.add_(x if self.shortcut is None else self.shortcut(x, stream))


class AttentionBlock(nn.Module):
    """Attention among the pixels of each frame, a single head, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, 1, 1)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, stream: WanStream) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).chunk(3, dim=1)
        return self.proj(pixel_attention(q, k, v)).add_(x)


class Downsample(nn.Module):
    """Halve H and W, and with `temporal` the frames after the first."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        # The published Sequential of nn.ZeroPad2d and this convolution.
        self.resample = nn.ModuleList([nn.Identity(), nn.Conv2d(channels, channels, 3, stride=2)])
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1), time_stride=2) if temporal else None

    def forward(self, x: Tensor, stream: WanStream) -> Tensor:
        x = self.resample[1](pad_right_bottom(x))
        if self.time_conv is None:
            return x
        if stream.begun:
            return self.time_conv(x, stream)
        # Frame 0 passes through, and starts the first window (0, 1, 2); the next ones are (2, 3, 4), ...
        if x.shape[0] == stream.batch:
            stream.exchange(self.time_conv, x, 1)
            return x
        return torch.cat([x[: stream.batch], self.time_conv(x, stream)])


class Upsample(nn.Module):
    """Double H and W and halve the width; with `temporal`, first double the frames after the first."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        # The published Sequential of nn.Upsample and this convolution, which `upsample_conv` computes in one.
        self.resample = nn.ModuleList([nn.Identity(), nn.Conv2d(channels, channels // 2, 3, padding=1)])
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, stream: WanStream) -> Tensor:
        if self.time_conv is not None:
            # The clip's first frame stays single and is no history either: the conv sees zeros before the second.
            first = 0 if stream.begun else stream.batch
            head, x = x[:first], x[first:]
            if x.shape[0]:
                pairs = self.time_conv(x, stream).unflatten(1, (2, -1)).unflatten(0, (-1, stream.batch))
                x = pairs.permute(0, 2, 1, 4, 5, 3).flatten(0, 2).permute(0, 3, 1, 2)  # halves become frames 2t, 2t + 1
            x = torch.cat([head, x]) if first else x
        conv = self.resample[1]
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        return upsample_conv(x, conv.weight, conv.bias)


class Encoder(nn.Module):
    """Pixels to 2 z channels, before the last 1x1x1 convolution."""

    def __init__(self, dim: int, z_dim: int, mults: Sequence[int], blocks: int, temporal: Sequence[bool]) -> None:
        super().__init__()
        widths = [dim * m for m in (1, *mults)]
        self.conv1 = CausalConv3d(3, widths[0], (3, 3, 3))
        self.downsamples = nn.ModuleList()
        for level, (width, next_width) in enumerate(itertools.pairwise(widths)):
            self.downsamples.extend(_blocks(width, next_width, blocks))
            if level < len(mults) - 1:
                self.downsamples.append(Downsample(next_width, temporal[level]))
        self.middle = _middle(widths[-1])
        self.head = nn.ModuleList(_layers(widths[-1], 2 * z_dim))

    def forward(self, x: Tensor, stream: WanStream) -> Tensor:
        return _run(self.conv1, (*self.downsamples, *self.middle), self.head, x, stream)


class Decoder(nn.Module):
    """Latents to pixels, after the first 1x1x1 convolution."""

    def __init__(self, dim: int, z_dim: int, mults: Sequence[int], blocks: int, temporal: Sequence[bool]) -> None:
        super().__init__()
        widths = [dim * m for m in (mults[-1], *reversed(mults))]
        self.conv1 = CausalConv3d(z_dim, widths[0], (3, 3, 3))
        self.middle = _middle(widths[0])
        self.upsamples = nn.ModuleList()
        for level, (width, next_width) in enumerate(itertools.pairwise(widths)):
            width = width if level == 0 else width // 2  # the upsampler before has halved it
            self.upsamples.extend(_blocks(width, next_width, blocks + 1))
            if level < len(mults) - 1:
                self.upsamples.append(Upsample(next_width, temporal[level]))
        self.head = nn.ModuleList(_layers(widths[-1], 3))

    def forward(self, x: Tensor, stream: WanStream) -> Tensor:
        return _run(self.conv1, (*self.middle, *self.upsamples), self.head, x, stream)


def _blocks(width: int, next_width: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(width if index == 0 else next_width, next_width) for index in range(count)]


def _middle(channels: int) -> nn.ModuleList:
    first, last = ResidualBlock(channels, channels), ResidualBlock(channels, channels)
    return nn.ModuleList([first, AttentionBlock(channels), last])


def _layers(channels: int, out_channels: int, inplace: bool = True) -> list[nn.Module]:
    """Return norm (which with `inplace` may overwrite its input), SiLU and a 3x3x3 convolution."""
    norm = RMSNorm(channels, 1, 1, 1, inplace=inplace)
    return [norm, nn.SiLU(inplace=True), CausalConv3d(channels, out_channels, (3, 3, 3))]


def _run(first: CausalConv3d, layers: Iterable[nn.Module], head: nn.ModuleList, x: Tensor, stream: WanStream) -> Tensor:
    x = first(x, stream)
    for layer in layers:
        x = layer(x, stream)
    norm, activation, last = head
    return last(activation(norm(x)), stream)


class WanVAE(VideoTokenizer):
    """The Wan 2.1 VAE; the defaults are the published model.

    dim, z_dim, dim_mult, num_res_blocks, temperal_downsample (spelled as published), attn_scales, dropout: its arguments.
    temporal_window: frames per encoded chunk after the first frame, a multiple of the temporal factor; decoding takes the
        same number of frames at a time. None: the whole clip at once. "auto": as many as `CHUNK_PIXELS` allows.
    mean, std: per-channel latent statistics.
    """

    CHUNK_PIXELS: ClassVar[dict[str, int]] = {"cpu": 3 << 15, "cuda": 1 << 22}
    """Pixels (T * H * W) per chunk by device type under temporal_window="auto"; bounds the memory of any clip length.

    Large chunks keep a GPU busy; a CPU is fastest where a layer's activations stay near its caches."""

    def __init__(
        self,
        dim: int = 96,
        z_dim: int = 16,
        dim_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attn_scales: Sequence[float] = (),
        temperal_downsample: Sequence[bool] = (False, True, True),
        dropout: float = 0.0,
        *,
        temporal_window: int | Literal["auto"] | None = "auto",
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        temporal, levels = [bool(value) for value in temperal_downsample], len(dim_mult)
        for name, value in (("attn_scales", list(attn_scales)), ("dropout", dropout)):
            if value:
                raise ConfigError(f"{name}={value}: no published Wan VAE has any; leave it out")
        if len(temporal) != levels - 1:
            raise ConfigError(f"temperal_downsample {temporal} has {len(temporal)} entries for {levels} levels")
        factor = 2 ** sum(temporal)
        self.latent_ch, self.spatial_compression_factor = z_dim, 2 ** len(temporal)
        self.temporal_compression_factor = factor
        fits = isinstance(temporal_window, int) and temporal_window > 0 and temporal_window % factor == 0
        if not fits and temporal_window not in ("auto", None):
            raise ConfigError(f"temporal_window={temporal_window!r}: expected a multiple of {factor}, 'auto' or None")
        self.temporal_window: int | Literal["auto"] | None = temporal_window
        self.encoder = Encoder(dim, z_dim, dim_mult, num_res_blocks, temporal)
        self.conv1 = CausalConv3d(2 * z_dim, 2 * z_dim, (1, 1, 1))
        self.conv2 = CausalConv3d(z_dim, z_dim, (1, 1, 1))
        self.decoder = Decoder(dim, z_dim, dim_mult, num_res_blocks, temporal[::-1])
        channels_last_weights(self)
        if mean is None and std is None and z_dim == len(WAN_MEAN):
            mean, std = WAN_MEAN, WAN_STD
        if mean is not None and std is not None:
            self.normalizer = LatentNormalizer(mean, std)

    def encode_chunk(self, video: Tensor, stream: WanStream) -> Tensor:
        """Encode the next frames of a clip: first 1 + f k, then any multiples of f = `temporal_compression_factor`.

        video: (B, 3, T, H, W), float in [-1, 1] or uint8. Returns the normalised latents that these frames complete. The
        pieces put together are `encode` of the whole clip, whose errors are raised here too.
        """
        self._check(video, "video", 3)
        factor = self.temporal_compression_factor
        if stream.begun and (video.shape[2] % factor or not video.shape[2]):
            raise ConfigError(f"T = {video.shape[2]} frames to go on with: expected a multiple of {factor}")
        if not stream.begun:
            self.get_latent_num_frames(video.shape[2])
        return self._encode_with(functools.partial(self._encode_piece, stream=stream), video)

    def decode_chunk(self, latent: Tensor, stream: WanStream) -> Tensor:
        """Decode the next latents (B, C, t, h, w) of a clip, any t >= 1; pieces put together are `decode` of the clip."""
        return self._decode_with(functools.partial(self._decode_piece, stream=stream), latent)

    def window(self, height: int, width: int) -> int | None:
        """Return the frames per chunk for clips of H x W pixels, or None for whole clips."""
        if self.temporal_window != "auto":
            return self.temporal_window
        factor, pixels = self.temporal_compression_factor, self.CHUNK_PIXELS.get(self.conv1.weight.device.type, 1 << 22)
        return max(1, pixels // (height * width * factor)) * factor

    def _encode(self, video: Tensor) -> Tensor:
        window = self.window(video.shape[3], video.shape[4])
        return _in_pieces(self._encode_piece, video, window, self.get_latent_num_frames(video.shape[2]))

    def _decode(self, latent: Tensor) -> Tensor:
        factor, scale = self.temporal_compression_factor, self.spatial_compression_factor
        window = self.window(latent.shape[3] * scale, latent.shape[4] * scale)
        step = None if window is None else window // factor
        return _in_pieces(self._decode_piece, latent, step, self.get_pixel_num_frames(latent.shape[2]))

    def _encode_piece(self, video: Tensor, stream: WanStream) -> Tensor:
        stream.batch = video.shape[0]
        moments = self.conv1(self.encoder(to_frames(video), stream), stream)
        stream.begun = True
        return from_frames(moments[:, : self.latent_ch], stream.batch)

    def _decode_piece(self, latent: Tensor, stream: WanStream) -> Tensor:
        stream.batch = latent.shape[0]
        frames = self.decoder(self.conv2(to_frames(latent), stream), stream)
        stream.begun = True
        return from_frames(frames, stream.batch)


def _in_pieces(run: Callable[[Tensor, WanStream], Tensor], x: Tensor, step: int | None, frames: int) -> Tensor:
    """Return `run` over `x` in pieces of 1 + step, then `step` frames, written to one result of `frames` frames."""
    if step is None or x.shape[2] <= 1 + step:
        return run(x, WanStream(keep=False))
    stream, result, done = WanStream(), None, 0
    for piece in torch.tensor_split(x, list(range(1 + step, x.shape[2], step)), dim=2):
        part = run(piece, stream)
        if result is None:
            # One block for the whole result: pieces kept apart would scatter over the heap, and need it twice to join.
            result = part.new_empty(*part.shape[:2], frames, *part.shape[3:])
        result[:, :, done : done + part.shape[2]] = part
        done += part.shape[2]
    assert result is not None and done == frames
    return result

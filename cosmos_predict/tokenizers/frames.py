"""Networks that run on frames: the layout, the causal convolution over time, and attention inside a frame.

Inside a tokenizer, activations are *frames*: (T*B, C, H, W), time-major, channels last in memory. Everything that looks
at one frame (norms, spatial convolutions, attention) is then an ordinary 2D operation, a time shift is a slice of the
first axis, zero frames before the start of a clip need no memory and no work, and no layer transposes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below this width the sums of the two-outputs-at-once form cost more than the third of the products that it saves.
PAIRED_MIN_CHANNELS = 64
# Up to this many channels in all, the frames of a window are stacked and convolved at once.
STACKED_MAX_CHANNELS = 48


def to_frames(video: Tensor) -> Tensor:
    """Return (B, C, T, H, W) as frames (T*B, C, H, W)."""
    frames = video.permute(2, 0, 1, 3, 4).flatten(0, 1)
    return frames.contiguous(memory_format=torch.channels_last)


def from_frames(frames: Tensor, batch: int) -> Tensor:
    """Return frames (T*B, C, H, W) as a contiguous (B, C, T, H, W)."""
    return frames.unflatten(0, (-1, batch)).permute(1, 2, 0, 3, 4).contiguous()


def channels_last_weights(module: nn.Module) -> None:
    """Lay the weights of every Conv2d inside `module` out channels last; shapes and values stay."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


def tap_major(weight: Tensor) -> Tensor:
    """Return a (O, I, kt, kh, kw) weight laid out so that each time tap `weight[:, :, k]` is dense and channels last."""
    return weight.permute(2, 0, 3, 4, 1).contiguous().permute(1, 4, 0, 2, 3)


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, batch: int, history: Tensor | None = None, *, stride: int = 1
) -> Tensor:
    """Convolve frames in time (causally) and space; odd kernels, zero padding of k // 2 in H and W.

    x: (T*B, I, H, W). weight: (O, I, kt, kh, kw). history: up to kt - 1 earlier frames (n*B, I, H, W), the newest last;
    with `stride` 1 the frames missing before it count as zeros, with a larger one windows start at the first frame given.
    Returns ((T + n + zeros - kt) // stride + 1 frames, O, H, W).
    """
    taps, lags = weight.shape[2], range(1, weight.shape[2])
    if taps == 1:
        return _conv2d(x, weight[:, :, 0], bias)
    length = x.shape[0] // batch
    known = 0 if history is None else history.shape[0] // batch
    if (x.is_cuda and length > 1) or stride > 1:
        x = x if history is None else torch.cat([history, x])
        if x.is_cuda:
            return _conv3d(x, weight, bias, batch, taps - 1 - known if stride == 1 else 0, stride)
        frames = x.permute(0, 2, 3, 1).unflatten(0, (-1, batch))
        last = len(frames) - taps + 1
        terms = [frames[tap : tap + last : stride].flatten(0, 1).permute(0, 3, 1, 2) for tap in range(taps)]
        y = _conv2d(terms[0], weight[:, :, 0], bias)
        for tap in lags:
            _accumulate(y, terms[tap], weight[:, :, tap])
        return y
    if taps == 3 and length > 1 and _pairs_pay(x, weight):
        return _paired_conv(x, weight, bias, batch, history)
    if weight.shape[1] * taps <= STACKED_MAX_CHANNELS:
        return _stacked_conv(x, weight, bias, batch, history)
    # 2D convolutions summed: on CPUs as fast as the 3D kernel for wide layers, ten times faster for narrow ones.
    y = _conv2d(x, weight[:, :, -1], bias)
    for lag in lags:
        tap = weight[:, :, -1 - lag]
        if length > lag:
            _accumulate(y[lag * batch :], x[: -lag * batch], tap)
        first, last = max(0, lag - known), min(lag, length)  # the outputs that see a given earlier frame at this lag
        if history is not None and first < last:
            start = known - lag
            _accumulate(y[first * batch : last * batch], history[(start + first) * batch : (start + last) * batch], tap)
    return y


def repeated_conv(x: Tensor, weight: Tensor, bias: Tensor, batch: int, *, stride: int = 1) -> Tensor:
    """Convolve as `causal_conv`, with copies of the first frame before it instead of zeros; kt is 1 or 3."""
    if weight.shape[2] == 1:
        return _conv2d(x, weight[:, :, 0], bias)
    if x.shape[0] == batch:  # every tap sees the one frame
        return _conv2d(x, weight.sum(2), bias)
    if x.is_cuda or stride > 1:
        return causal_conv(x, weight, bias, batch, torch.cat([x[:batch], x[:batch]]), stride=stride)
    w0, w1, w2 = weight.unbind(2)
    y = _conv2d(x, w2, bias)
    earlier = _conv2d(x[:batch], w0 + w1, None)  # what the copies and frame 0 give to frames 0 and 1
    y[:batch] += earlier
    y[batch : 2 * batch] += earlier
    if x.shape[0] > 2 * batch:
        _accumulate(y[2 * batch :], x[batch:-batch], w1)
        _accumulate(y[2 * batch :], x[: -2 * batch], w0)
    return y


def pad_right_bottom(x: Tensor) -> Tensor:
    """Return frames (N, C, H, W) with a row and a column of zeros more, channels last."""
    n, channels, height, width = x.shape
    y = x.new_empty(n, height + 1, width + 1, channels).permute(0, 3, 1, 2)
    y[:, :, :-1, :-1] = x
    y[:, :, -1:] = 0
    y[:, :, :-1, -1:] = 0
    return y


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each frame, padding k // 2."""
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def _accumulate(y: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add `_conv2d(x, weight)` to `y` in place."""
    pixels = y.permute(0, 2, 3, 1)
    if weight.shape[2:] == (1, 1) and pixels.is_contiguous():
        pixels.view(-1, y.shape[1]).addmm_(x.permute(0, 2, 3, 1).flatten(0, 2), weight[:, :, 0, 0].t())
    else:
        y += _conv2d(x, weight, None)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor, *, residual: bool = False) -> Tensor:
    """Double H and W by repetition, then convolve 3x3 (zero padding 1): (N, I, H, W) to (N, O, 2H, 2W).

    With `residual`, add the repeated input. In float32 the four output phases are 2x2 convolutions of the small input,
    with taps that fall on one pixel summed beforehand: 16 products for 36, equal up to rounding, and the repeated input
    is never stored. In 16 bits the summed taps would lose bits, so there it is done as said.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = F.interpolate(x, scale_factor=2.0)
        y = F.conv2d(x, weight, bias, padding=1)
        return y.add_(x) if residual else y
    (out_channels, in_channels), (height, width) = weight.shape[:2], x.shape[2:]
    taps = x.new_empty(2, 2, out_channels, 2, 2, in_channels)  # phases (a, b), then taps of the small input
    w0, w1, w2 = weight.permute(0, 2, 3, 1).unbind(1)
    for a, row_taps in enumerate(((w0, w1 + w2), (w0 + w1, w2))):
        for row, line in enumerate(row_taps):
            c0, c1, c2 = line.unbind(1)
            for b, column_taps in enumerate(((c0, c1 + c2), (c0 + c1, c2))):
                for column, values in enumerate(column_taps):
                    taps[a, b, :, row, column] = values
    kernel = taps.view(4 * out_channels, 2, 2, in_channels).permute(0, 3, 1, 2)
    phases = F.conv2d(x, kernel, bias.repeat(4), padding=1).unflatten(1, (2, 2, out_channels))
    y = x.new_empty(x.shape[0], height, 2, width, 2, out_channels)
    for a in range(2):
        for b in range(2):
            phase = phases[:, a, b, :, a : a + height, b : b + width].permute(0, 2, 3, 1)
            y[:, :, a, :, b] = phase + x.permute(0, 2, 3, 1) if residual else phase
    return y.flatten(1, 2).flatten(2, 3).permute(0, 3, 1, 2)


def _pairs_pay(x: Tensor, weight: Tensor) -> bool:
    differentiated = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    wide = weight.shape[1] >= PAIRED_MIN_CHANNELS and weight.shape[3:] == (3, 3)
    return wide and x.dtype == torch.float32 and not differentiated


def _conv3d(x: Tensor, weight: Tensor, bias: Tensor, batch: int, zeros: int, stride: int) -> Tensor:
    """One 3D convolution, channels_last_3d: what accelerators have kernels for."""
    if zeros:
        x = torch.cat([_empty_frames(x, zeros * batch, x.shape[1]).zero_(), x])
    video = x.unflatten(0, (-1, batch)).permute(1, 2, 0, 3, 4)
    padding = (0, weight.shape[3] // 2, weight.shape[4] // 2)
    y = F.conv3d(video, weight, bias, stride=(stride, 1, 1), padding=padding)
    return y.permute(2, 0, 1, 3, 4).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _paired_conv(x: Tensor, weight: Tensor, bias: Tensor, batch: int, history: Tensor | None) -> Tensor:
    """Two outputs from four products instead of six: Winograd's F(2, 3) along time (Lavin and Gray, 2015). No gradient.

    With d0..d3 four frames in a row and g0..g2 the taps: y0 = m1 + (m2 + m3) / 2, y1 = m4 + (m2 - m3) / 2, where
    m1 = g0 (d0 - d2), m2 = (g0 + g1 + g2)(d1 + d2), m3 = (g0 - g1 + g2)(d2 - d1), m4 = g2 (d3 - d1). Exact up to
    rounding, with errors of the same size as the direct sum's.
    """
    padding = (weight.shape[3] // 2, weight.shape[4] // 2)
    frames = x.unflatten(0, (-1, batch))
    before = list(history.unflatten(0, (-1, batch))) if history is not None else []
    before = [torch.zeros_like(frames[0])] * (2 - len(before)) + before
    y = _empty_frames(x, x.shape[0], weight.shape[0])
    rest = y.unflatten(0, (-1, batch))
    if len(frames) % 2:  # the first output alone, so that pairs remain
        y[:batch] = causal_conv(x[:batch], weight, bias, batch, history)
        before, frames, rest = [before[1], frames[0]], frames[1:], rest[1:]
    first = [*before, frames[0], frames[1]]
    later = [frames[0:-2:2], frames[1:-2:2], frames[2::2], frames[3::2]]
    buffer = _empty_frames(x, x.shape[0] // batch // 2 * batch, x.shape[1])
    d = buffer.unflatten(0, (-1, batch))

    def product(combine: Callable[..., Tensor], i: int, j: int, tap: Tensor, bias: Tensor | None = None) -> Tensor:
        combine(first[i], first[j], out=d[0])
        combine(later[i], later[j], out=d[1:])
        return F.conv2d(buffer, tap, bias, padding=padding)

    g0, g1, g2 = weight.unbind(2)
    outer = g0 + g2
    m2 = product(torch.add, 1, 2, outer + g1)
    m3 = product(torch.sub, 2, 1, outer - g1)
    m = product(torch.sub, 0, 2, g0, bias).add_(m2, alpha=0.5).unflatten(0, (-1, batch))
    torch.add(m, m3.unflatten(0, (-1, batch)), alpha=0.5, out=rest[0::2])
    m2.sub_(m3)
    m = product(torch.sub, 3, 1, g2, bias).unflatten(0, (-1, batch))
    torch.add(m, m2.unflatten(0, (-1, batch)), alpha=0.5, out=rest[1::2])
    return y


def _stacked_conv(x: Tensor, weight: Tensor, bias: Tensor, batch: int, history: Tensor | None) -> Tensor:
    """One convolution of the frames of each window side by side, for layers with few input channels."""
    out_channels, in_channels, taps = weight.shape[:3]
    known = 0 if history is None else history.shape[0]
    before = x.new_zeros((taps - 1) * batch, x.shape[2], x.shape[3], in_channels).permute(0, 3, 1, 2)
    if history is not None:
        before[before.shape[0] - known :] = history
    x = torch.cat([before, x])
    last = x.shape[0] - (taps - 1) * batch
    windows = torch.cat([x[tap * batch : tap * batch + last] for tap in range(taps)], 1)
    stacked = weight.transpose(1, 2).reshape(out_channels, taps * in_channels, *weight.shape[3:])
    return _conv2d(windows, stacked, bias)


def _empty_frames(like: Tensor, count: int, channels: int) -> Tensor:
    """Return uninitialised frames (count, channels, H, W), channels last, of the size of the frames `like`."""
    return like.new_empty(count, *like.shape[2:], channels).permute(0, 3, 1, 2)


def pixel_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend among the pixels of each frame, one head of width C, never forming the (H*W, H*W) matrix.

    q, k, v: frames (N, C, H, W), channels last. Returns frames of the same shape.
    """
    height, width = q.shape[2:]
    q, k, v = (x.flatten(2).transpose(1, 2).unsqueeze(1) for x in (q, k, v))  # (N, 1, H*W, C)
    y = F.scaled_dot_product_attention(q, k, v)
    return y.squeeze(1).transpose(1, 2).unflatten(2, (height, width))


def time_attention(q: Tensor, k: Tensor, v: Tensor, batch: int) -> Tensor:
    """Attend causally along time at each pixel, one head of width C; frames (T*B, C, H, W) in and out."""
    height, width = q.shape[2:]

    def pixels(x: Tensor) -> Tensor:  # (T*B, C, H, W) -> (B*H*W, 1, T, C)
        return x.permute(0, 2, 3, 1).reshape(-1, batch * height * width, x.shape[1]).transpose(0, 1).unsqueeze(1)

    y = F.scaled_dot_product_attention(pixels(q), pixels(k), pixels(v), is_causal=True)
    return y.squeeze(1).transpose(0, 1).reshape(-1, height, width, q.shape[1]).permute(0, 3, 1, 2)

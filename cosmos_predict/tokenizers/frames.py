"""Networks that run on frames: the layout, the causal convolution over time, and attention inside a frame.

Inside a tokenizer, activations are *frames*: (T*B, C, H, W), time-major, channels last in memory. Everything that looks
at one frame (norms, spatial convolutions, attention) is then an ordinary 2D operation, a time shift is a slice of the
first axis, zero frames before the start of a clip need no memory and no work, and no layer transposes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below this width the sums of the two-outputs-at-once form cost more than the third of the products that it saves.
PAIRED_MIN_CHANNELS = 64


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
    taps = weight.shape[2]
    padding = (weight.shape[3] // 2, weight.shape[4] // 2)
    if taps == 1:
        return F.conv2d(x, weight[:, :, 0], bias, padding=padding)
    outputs = x.shape[0] // batch
    if history is not None:
        x = torch.cat([history, x])
    given = x.shape[0] // batch
    zeros = taps - 1 - (given - outputs) if stride == 1 else 0
    outputs = (zeros + given - taps) // stride + 1
    if x.is_cuda and outputs > 1:
        return _conv3d(x, weight, bias, batch, zeros, stride)
    if taps == 3 and stride == 1 and outputs > 1 and weight.shape[1] >= PAIRED_MIN_CHANNELS and x.dtype == torch.float32:
        return _paired_conv(x, weight, bias, batch, zeros)
    # Three 2D convolutions summed: on CPUs as fast as the 3D kernel for wide layers, ten times faster for narrow ones.
    frames = x.unflatten(0, (given, batch))
    y = None
    for tap in reversed(range(taps)):
        first = max(0, -((tap - zeros) // stride))  # the first output whose window has a real frame under this tap
        if first >= outputs:
            continue
        start = tap - zeros + first * stride
        window = frames[start : start + (outputs - first - 1) * stride + 1 : stride].flatten(0, 1)
        term = F.conv2d(window, weight[:, :, tap], bias if y is None else None, padding=padding)
        if y is None:
            y = term
        else:
            y[first * batch :] += term
    assert y is not None
    return y


def _conv3d(x: Tensor, weight: Tensor, bias: Tensor, batch: int, zeros: int, stride: int) -> Tensor:
    """One 3D convolution, channels_last_3d: what accelerators have kernels for."""
    if zeros:
        x = torch.cat([zero_frames(x, zeros * batch), x])
    video = x.unflatten(0, (-1, batch)).permute(1, 2, 0, 3, 4)
    padding = (0, weight.shape[3] // 2, weight.shape[4] // 2)
    y = F.conv3d(video, weight, bias, stride=(stride, 1, 1), padding=padding)
    return y.permute(2, 0, 1, 3, 4).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _paired_conv(x: Tensor, weight: Tensor, bias: Tensor, batch: int, zeros: int) -> Tensor:
    """Two outputs from four products instead of six: Winograd's F(2, 3) along time (Lavin and Gray, 2015).

    With d0..d3 four frames in a row and g0..g2 the taps: y0 = m1 + m2 + m3, y1 = m2 - m3 - m4, where m1 = g0 (d0 - d2),
    m2 = (g0 + g1 + g2)/2 (d1 + d2), m3 = (g0 - g1 + g2)/2 (d2 - d1), m4 = g2 (d1 - d3). Exact up to rounding, with
    errors of the same size as the direct sum's.
    """
    padding = (weight.shape[3] // 2, weight.shape[4] // 2)
    outputs = x.shape[0] // batch + zeros - 2
    head = []
    if outputs % 2:  # the first output alone, so that pairs remain
        known = (2 - zeros) * batch
        head = [causal_conv(x[known : known + batch], weight, bias, batch, x[:known] if known else None)]
        x, zeros = (x, zeros - 1) if zeros else (x[batch:], 0)
    if zeros:
        x = torch.cat([zero_frames(x, zeros * batch), x])
    frames = x.unflatten(0, (-1, batch))
    d0, d1, d2, d3 = frames[0:-2:2], frames[1:-1:2], frames[2::2], frames[3::2]
    g0, g1, g2 = weight.unbind(2)
    outer, inner = (g0 + g2) * 0.5, g1 * 0.5
    m1 = F.conv2d((d0 - d2).flatten(0, 1), g0, bias, padding=padding)
    m2 = F.conv2d((d1 + d2).flatten(0, 1), outer + inner, padding=padding)
    m3 = F.conv2d((d2 - d1).flatten(0, 1), outer - inner, padding=padding)
    m4 = F.conv2d((d1 - d3).flatten(0, 1), g2, -bias, padding=padding)
    y = m1.new_empty(2 * d0.shape[0], batch, *m1.shape[2:], m1.shape[1]).permute(0, 1, 4, 2, 3)
    y[0::2] = m1.add_(m2).add_(m3).unflatten(0, (-1, batch))
    y[1::2] = m2.sub_(m3).sub_(m4).unflatten(0, (-1, batch))
    return torch.cat([*head, y.flatten(0, 1)]) if head else y.flatten(0, 1)


def zero_frames(like: Tensor, count: int) -> Tensor:
    """Return `count` zero frames of the size and layout of the frames `like`."""
    shape = (count, like.shape[2], like.shape[3], like.shape[1])
    return like.new_zeros(shape).permute(0, 3, 1, 2)


def pixel_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend among the pixels of each frame, one head of width C, never forming the (H*W, H*W) matrix.

    q, k, v: frames (N, C, H, W), channels last. Returns frames of the same shape.
    """
    height, width = q.shape[2:]
    tokens = (x.flatten(2).transpose(1, 2).unsqueeze(1) for x in (q, k, v))  # (N, 1, H*W, C)
    y = F.scaled_dot_product_attention(*tokens)
    return y.squeeze(1).transpose(1, 2).unflatten(2, (height, width))


def time_attention(q: Tensor, k: Tensor, v: Tensor, batch: int) -> Tensor:
    """Attend causally along time at each pixel, one head of width C; frames (T*B, C, H, W) in and out."""
    height, width = q.shape[2:]

    def pixels(x: Tensor) -> Tensor:  # (T*B, C, H, W) -> (B*H*W, 1, T, C)
        return x.permute(0, 2, 3, 1).reshape(-1, batch * height * width, x.shape[1]).transpose(0, 1).unsqueeze(1)

    y = F.scaled_dot_product_attention(pixels(q), pixels(k), pixels(v), is_causal=True)
    return y.squeeze(1).transpose(0, 1).reshape(-1, height, width, q.shape[1]).permute(0, 3, 1, 2)

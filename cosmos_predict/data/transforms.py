"""Fit uint8 frames to a size: the published resize, crop and pad rules.

All of them resize with antialiased interpolation in float32. Policies of `fit_frames`:

- `stretch`: straight to the target, aspect ratio not kept. What the published training code does.
- `crop`: cover the target, cut the centre. What published inference does, and the better choice for new data.
- `pad`: fit inside the target, reflect the rest (published pre-training code).
- `pad_width`: fit the height, reflect or cut the width (camera-control recipe).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch.utils.data import get_worker_info

from cosmos_predict.errors import DataError

Fit = Literal["stretch", "crop", "pad", "pad_width"]
FIT_POLICIES: tuple[str, ...] = get_args(Fit)

# (width, height) by aspect ratio "width:height": the sizes of the published models.
RESOLUTION_BUCKETS: dict[str, dict[str, tuple[int, int]]] = {
    "480": {"1:1": (480, 480), "4:3": (640, 480), "3:4": (480, 640), "16:9": (768, 432), "9:16": (432, 768)},
    "512": {"1:1": (512, 512), "4:3": (640, 512), "3:4": (512, 640), "16:9": (640, 384), "9:16": (384, 640)},
    "720": {"1:1": (960, 960), "4:3": (960, 704), "3:4": (704, 960), "16:9": (1280, 704), "9:16": (704, 1280)},
    "1024": {"1:1": (1024, 1024), "4:3": (1168, 880), "3:4": (880, 1168), "16:9": (1360, 768), "9:16": (768, 1360)},
}


@dataclass(frozen=True)
class FittedFrames:
    """Frames at their target size.

    frames: uint8 (T, 3, H, W).
    padding_mask: float32 (1, H, W), 1 = padded.
    image_size: int64 (4,) = H padded, W padded, H resized, W resized; for `crop` the last two are the target's.
    """

    frames: torch.Tensor
    padding_mask: torch.Tensor
    image_size: torch.Tensor


def fit_frames(frames: torch.Tensor, size: Sequence[int], fit: str = "stretch") -> FittedFrames:
    """Fit uint8 RGB frames (T, 3, H, W) to `size` = (H, W) with one of the policies of this module.

    Raises:
        DataError: frames of another shape or dtype, a size below 1, an unknown policy.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
        raise DataError(f"frames must be uint8 (T, 3, H, W), got {frames.dtype} {tuple(frames.shape)}")
    target_h, target_w = (int(value) for value in size)
    if min(target_h, target_w) < 1:
        raise DataError(f"target size (H, W) must be positive, got {(target_h, target_w)}")
    height, width = frames.shape[-2:]
    resized, offset = (target_h, target_w), (0, 0)
    if fit == "stretch":
        fitted = resize_truncated(frames, (target_h, target_w))
    elif fit == "crop":
        scale = max(target_w / width, target_h / height)
        cover = math.ceil(scale * height), math.ceil(scale * width)
        fitted = resize_truncated(frames, cover, (target_h, target_w))
    elif fit in ("pad", "pad_width"):
        scale = target_h / height if fit == "pad_width" else min(target_w / width, target_h / height)
        resized = max(1, int(scale * height + 0.5)), max(1, int(scale * width + 0.5))
        picture = resize_uint8(frames, resized, "bicubic")
        if resized[1] > target_w:
            resized = resized[0], target_w
            picture = center_crop(picture, resized)
        offset = int((target_h - resized[0]) / 2), int((target_w - resized[1]) / 2)
        fitted = _pad(picture, (target_h, target_w), offset)
    else:
        raise DataError(f"unknown fit policy {fit!r}; known: {', '.join(FIT_POLICIES)}")
    mask = padding_mask((target_h, target_w), *offset, *resized)
    return FittedFrames(fitted, mask, torch.tensor([target_h, target_w, *resized]))


def resize_truncated(frames: torch.Tensor, size: Sequence[int], crop: Sequence[int] | None = None) -> torch.Tensor:
    """Resize uint8 (T, C, H, W) by the published training rule: x / 255, bilinear, times 255, clamped, truncated.

    The same size returns the frames unchanged. crop: (H, W) to cut out of the centre.
    """
    crop = size if crop is None else crop
    if tuple(frames.shape[-2:]) == tuple(size):
        return center_crop(frames, crop)

    def resize(frame: torch.Tensor) -> torch.Tensor:
        whole = _interpolate(frame.float().div_(255), size, "bilinear")
        return center_crop(whole, crop).mul_(255).clamp_(0, 255)

    return _each_frame(frames, resize, crop)


def resize_uint8(frames: torch.Tensor, size: Sequence[int], mode: Literal["bilinear", "bicubic"]) -> torch.Tensor:
    """Resize uint8 (T, C, H, W) in float32, clamp to [0, 255], round half to even, back to uint8.

    torch's own uint8 kernels give other numbers (up to 3 off).
    """
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames

    def resize(frame: torch.Tensor) -> torch.Tensor:
        return _interpolate(frame.float(), size, mode).clamp_(0, 255).round_()

    return _each_frame(frames, resize, size)


def center_crop(frames: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Cut the centre `size` = (H, W) out of (..., H, W); the offset (extra / 2) is rounded half to even."""
    height, width = frames.shape[-2:]
    target_h, target_w = size
    if target_h > height or target_w > width:
        raise DataError(f"cannot cut {target_h}x{target_w} out of {height}x{width} (H x W)")
    top, left = round((height - target_h) / 2), round((width - target_w) / 2)
    return frames[..., top : top + target_h, left : left + target_w]


def padding_mask(size: Sequence[int], top: int, left: int, height: int, width: int) -> torch.Tensor:
    """Return the float32 mask (1, *size), 1 = padded: 0 on `height` rows from `top` and `width` columns from `left`.

    A mask of zeros is one number in memory, seen everywhere.
    """
    if (height, width) == tuple(size):
        return torch.zeros(1, 1, 1).expand(1, *size)
    mask = torch.ones(1, *size)
    mask[:, top : top + height, left : left + width] = 0
    return mask


def normalize_video(video: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return uint8 pixels as `dtype` in [-1, 1]: x / 127.5 - 1, computed in `dtype`."""
    return video.to(dtype) / 127.5 - 1


def video_to_uint8(video: torch.Tensor) -> torch.Tensor:
    """Return pixels of a video in [-1, 1], any shape and dtype, as uint8: clamped, floor((x + 1) * 127.5 + 0.5)."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5 + 0.5).floor().to(torch.uint8)


def nearest_size(sizes: Sequence[tuple[int, int]], height: int, width: int) -> tuple[int, int]:
    """Return the (H, W) of `sizes` whose aspect ratio is closest to that of `height` x `width`."""
    return min(sizes, key=lambda size: abs(math.log(size[1] * height / (size[0] * width))))


def aspect_sizes(size: Sequence[int]) -> list[tuple[int, int]]:
    """Return the (H, W) of the aspect buckets at the resolution of `size` = (H, W).

    The published sizes where `size` is one of them; else `size` itself, and for the other published ratios sizes of about
    its area that are multiples of 16.
    """
    height, width = (int(value) for value in size)
    for published in RESOLUTION_BUCKETS.values():
        if (width, height) in published.values():
            return [(h, w) for w, h in published.values()]
    ratios = {w / h for w, h in ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))}
    others = sorted(ratios - {min(ratios, key=lambda ratio: abs(math.log(ratio * height / width)))})
    sides = [((height * width / ratio) ** 0.5, (height * width * ratio) ** 0.5) for ratio in others]
    return [(height, width), *((max(16, round(h / 16) * 16), max(16, round(w / 16) * 16)) for h, w in sides)]


def channels_first(frames: torch.Tensor) -> torch.Tensor:
    """Return (T, C, H, W) as the (C, T, H, W) of a sample, in one piece; frames that a transform here made are not copied."""
    video = frames.transpose(0, 1)
    return video if video.is_contiguous() else _memory(video.shape, video.dtype).copy_(video)


def _each_frame(
    frames: torch.Tensor, resize: Callable[[torch.Tensor], torch.Tensor], size: Sequence[int]
) -> torch.Tensor:
    """Resize frame by frame, truncated to uint8: the float32 copies stay in the processor's cache, twice as fast as the
    clip at once. The result (T, C, H, W) lies in memory as (C, T, H, W), which a sample is: no copy turns it around.
    """
    fitted = _memory((frames.shape[1], len(frames), *size), torch.uint8).transpose(0, 1)
    for frame, place in zip(frames.split(1), fitted.split(1), strict=True):
        place.copy_(resize(frame.contiguous()))
    return fitted


def _memory(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return an empty tensor. In a data worker its memory is shared with the run's process: no copy takes it there."""
    if get_worker_info() is None:
        return torch.empty(*shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)  # as torch's collation makes it
    return torch.empty(0, dtype=dtype).set_(storage, 0, tuple(shape))  # type: ignore[arg-type]


def _interpolate(frames: torch.Tensor, size: Sequence[int], mode: str) -> torch.Tensor:
    return F.interpolate(frames, size=tuple(size), mode=mode, align_corners=False, antialias=True)


def _pad(frames: torch.Tensor, size: tuple[int, int], offset: tuple[int, int]) -> torch.Tensor:
    height, width = frames.shape[-2:]
    top, left = offset
    bottom, right = size[0] - height - top, size[1] - width - left
    if not any((left, right, top, bottom)):
        return frames
    # A reflection cannot be wider than the picture less its edge; then the edge is repeated.
    fits = max(left, right) < width and max(top, bottom) < height
    padded = F.pad(frames.float(), (left, right, top, bottom), mode="reflect" if fits else "replicate")
    return padded.to(torch.uint8)

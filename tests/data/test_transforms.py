"""Fit policies on synthetic frames; the published numbers themselves are golden cases."""

from __future__ import annotations

import pytest
import torch

from cosmos_predict.data import transforms
from cosmos_predict.errors import DataError


def frames(height: int, width: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("fit", transforms.FIT_POLICIES)
@pytest.mark.parametrize("source", [(20, 32), (32, 20), (7, 64), (64, 7)])
@pytest.mark.parametrize("target", [(24, 40), (40, 24), (16, 16)])
def test_every_policy_gives_the_target_size(fit: str, source: tuple[int, int], target: tuple[int, int]) -> None:
    fitted = transforms.fit_frames(frames(*source), target, fit)
    assert fitted.frames.shape == (2, 3, *target) and fitted.frames.dtype == torch.uint8
    assert fitted.padding_mask.shape == (1, *target)
    padded_h, padded_w, resized_h, resized_w = fitted.image_size.tolist()
    assert (padded_h, padded_w) == target
    assert int((fitted.padding_mask == 0).sum()) == resized_h * resized_w


@pytest.mark.parametrize("fit", transforms.FIT_POLICIES)
def test_same_size_is_the_identity(fit: str) -> None:
    source = frames(18, 30)
    assert torch.equal(transforms.fit_frames(source, (18, 30), fit).frames, source)


def test_crop_keeps_the_aspect_ratio_and_stretch_does_not() -> None:
    source = torch.zeros(1, 3, 40, 120, dtype=torch.uint8)
    source[..., 40:80] = 200  # a square in the middle
    assert (transforms.fit_frames(source, (20, 20), "crop").frames >= 199).float().mean() > 0.85
    assert (transforms.fit_frames(source, (20, 20), "stretch").frames >= 199).float().mean() < 0.4


def test_frames_are_resized_independently_and_in_any_memory_layout() -> None:
    source = frames(30, 44, count=3)
    whole = transforms.fit_frames(source, (16, 24), "crop").frames
    assert torch.equal(whole[1:2], transforms.fit_frames(source[1:2], (16, 24), "crop").frames)
    channels_last = source.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(whole, transforms.fit_frames(channels_last, (16, 24), "crop").frames)


def test_normalized_range() -> None:
    video = transforms.normalize_video(torch.tensor([0, 255], dtype=torch.uint8))
    assert video.tolist() == [-1, 1]


def test_nearest_size() -> None:
    def nearest(resolution: str, height: int, width: int) -> tuple[int, int]:
        sizes = [(h, w) for w, h in transforms.RESOLUTION_BUCKETS[resolution].values()]
        return transforms.nearest_size(sizes, height, width)

    assert nearest("720", 1080, 1920) == (704, 1280) and nearest("480", 1568, 882) == (768, 432)
    assert nearest("480", 500, 510) == (480, 480) and nearest("480", 100, 10) == (768, 432)


def test_bad_input() -> None:
    with pytest.raises(DataError, match="unknown fit policy 'squeeze'; known: stretch, crop, pad"):
        transforms.fit_frames(frames(8, 8), (4, 4), "squeeze")
    with pytest.raises(DataError, match=r"frames must be uint8 \(T, 3, H, W\), got torch.float32"):
        transforms.fit_frames(frames(8, 8).float(), (4, 4))
    with pytest.raises(DataError, match="target size"):
        transforms.fit_frames(frames(8, 8), (0, 4))
    with pytest.raises(DataError, match="cannot cut 9x8 out of 8x8"):
        transforms.center_crop(frames(8, 8), (9, 8))

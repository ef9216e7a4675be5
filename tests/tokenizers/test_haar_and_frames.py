"""The Haar patcher against its formula, and the causal convolution against torch's 3D convolution."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from cosmos_predict.errors import ConfigError
from cosmos_predict.tokenizers import frames
from cosmos_predict.tokenizers.haar import haar_patch_2d, haar_patch_3d, haar_unpatch_2d, haar_unpatch_3d


@pytest.mark.parametrize("size", [1, 2, 4])
def test_round_trips(size: int) -> None:
    video = torch.randn(2, 3, 1 + 2 * size, 2 * size, 3 * size)
    patches = haar_patch_3d(video, size)
    assert patches.shape == (2, 3 * size**3, 3, 2, 3)
    torch.testing.assert_close(haar_unpatch_3d(patches, size), video, rtol=0, atol=2e-6)
    image = video[:, :, 0]
    torch.testing.assert_close(haar_unpatch_2d(haar_patch_2d(image, size), size), image, rtol=0, atol=2e-6)


def test_one_step_by_its_formula() -> None:
    video = torch.randn(1, 2, 3, 2, 2, dtype=torch.float64)
    doubled = torch.cat([video[:, :, :1], video], 2)  # frames 0, 0, 1, 2
    patches = haar_patch_3d(video, 2)
    for band, (a, b, c) in enumerate(itertools.product((0, 1), repeat=3)):
        expected = sum(
            (-1) ** (a * i + b * j + c * k) * doubled[0, :, 2 + i, j, k] / 8
            for i, j, k in itertools.product((0, 1), repeat=3)
        )
        torch.testing.assert_close(patches[0, 2 * band : 2 * band + 2, 1, 0, 0], expected)


def test_the_first_frame_alone() -> None:
    video = torch.randn(1, 3, 9, 8, 8)
    torch.testing.assert_close(haar_patch_3d(video[:, :, :1], 4), haar_patch_3d(video, 4)[:, :, :1])


def test_patch_size_must_be_a_power_of_two() -> None:
    with pytest.raises(ConfigError, match="patch_size 3: expected a power of two"):
        haar_patch_3d(torch.zeros(1, 3, 1, 6, 6), 3)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels", [5, 64])  # sums, pairs
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 3, 3)])
def test_causal_conv(batch: int, channels: int, kernel: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    weight, bias = frames.tap_major(torch.randn(7, channels, *kernel) / 20), torch.randn(7)
    for length, known in itertools.product((1, 2, 3, 4, 7), range(kernel[0])):
        video = torch.randn(batch, channels, length + known, 4, 6)
        padded = F.pad(video, (0, 0, 0, 0, kernel[0] - 1 - known, 0))
        expected = F.conv3d(padded, weight, bias, padding=(0, kernel[1] // 2, kernel[2] // 2))
        given = frames.to_frames(video)
        history, x = given[: known * batch], given[known * batch :]
        got = frames.causal_conv(x, weight, bias, batch, history if known else None)
        torch.testing.assert_close(frames.from_frames(got, batch), expected, rtol=1e-5, atol=1e-5)
        # The path of accelerators computes the same.
        zeros = kernel[0] - 1 - known
        if kernel[0] > 1:
            got = frames._conv3d(given, weight, bias, batch, zeros, 1)
            torch.testing.assert_close(frames.from_frames(got, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_causal_conv_with_stride(batch: int) -> None:
    weight, bias = torch.randn(6, 4, 3, 1, 1), torch.randn(6)
    video = torch.randn(batch, 4, 9, 3, 2)
    expected = F.conv3d(video, weight, bias, stride=(2, 1, 1))
    x = frames.to_frames(video)
    for known in (0, 1, 2):
        got = frames.causal_conv(
            x[known * batch :], weight, bias, batch, x[: known * batch] if known else None, stride=2
        )
        torch.testing.assert_close(frames.from_frames(got, batch), expected, rtol=1e-5, atol=1e-5)
    got = frames._conv3d(x, weight, bias, batch, 0, 2)
    torch.testing.assert_close(frames.from_frames(got, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_upsample_conv(residual: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, 4, 5).to(dtype)
    weight, bias = torch.randn(6, 6, 3, 3) / 7, torch.randn(6)
    large = F.interpolate(x.float(), scale_factor=2.0)
    expected = F.conv2d(large, weight, bias, padding=1) + (large if residual else 0)
    got = frames.upsample_conv(x, weight.to(dtype), bias.to(dtype), residual=residual)
    limit = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(got.float(), expected, rtol=limit, atol=limit)


def test_attention_never_sees_the_future() -> None:
    q, k, v = (torch.randn(4 * 2, 8, 3, 2) for _ in range(3))
    whole = frames.time_attention(q, k, v, 2)
    torch.testing.assert_close(frames.time_attention(q[:4], k[:4], v[:4], 2), whole[:4])
    torch.testing.assert_close(frames.time_attention(q[:2], k[:2], v[:2], 2), v[:2])

"""The numbers that low-memory AdamW is made of: random bits, stochastic rounding, 8-bit moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cosmos_predict.randomness import derive_seed
from cosmos_predict.training.low_memory import (
    dequantise,
    quantise,
    random_bits,
    stochastic_round,
)


def bits_like(x: Tensor, key: int) -> Tensor:
    return random_bits(0, x.numel(), derive_seed(0, key, "test")).view_as(x)


def test_random_bits_follow_their_definition() -> None:
    key = 0x7F3A_91C4_DEAD_BEEF
    x = (np.arange(500, dtype=np.uint64) + (key & 0xFFFFFFFF)).astype(np.uint32)
    for turn in range(2):
        x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
        x ^= x >> 16
        if turn == 0:
            x ^= np.uint32(key >> 32)
    assert random_bits(0, 1000, key).tolist() == x.view(np.int16).tolist()


def test_random_bits_belong_to_the_element() -> None:
    whole = random_bits(0, 101, key=5)
    parts = [random_bits(start, count, key=5) for start, count in ((0, 33), (33, 1), (34, 0), (34, 67))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, random_bits(0, 101, key=6))


def test_random_bits_are_uniform_and_independent() -> None:
    n = 1 << 18
    drawn = {key: random_bits(0, n, key).float().div(1 << 15) for key in (3, 4, 3 + (1 << 40))}
    for values in drawn.values():
        histogram = torch.histc(values, 64, -1, 1)
        assert ((histogram - n / 64) ** 2 / (n / 64)).sum() < 63 + 5 * (2 * 63) ** 0.5
        for lag in (1, 2, 3, 256):
            assert abs(3 * (values[lag:] * values[:-lag]).mean()) < 5 / n**0.5
    a, b, c = drawn.values()
    assert max(abs(3 * (a * b).mean()), abs(3 * (a * c).mean()), abs(3 * (a[1:] * b[:-1]).mean())) < 5 / n**0.5


def test_stochastic_rounding_is_unbiased() -> None:
    value = torch.tensor([1.0 + 2**-10, -1.0 - 2**-10, 3e-5, -123.4, 1e-39]).repeat_interleave(1 << 16)
    rounded = stochastic_round(value, bits_like(value, 1)).float().view(5, -1)
    exact = value.view(5, -1)[:, 0]
    for row, wanted in zip(rounded, exact, strict=True):
        neighbours = row.unique()
        assert len(neighbours) == 2 and neighbours[0] < wanted < neighbours[1]
        gap = float(neighbours[1] - neighbours[0])
        assert abs(float(row.double().mean() - wanted)) < gap * 0.5 * 5 / 256, "five standard errors"


def test_stochastic_rounding_keeps_what_bfloat16_has() -> None:
    value = torch.tensor([0.0, -0.0, 1.5, -(2.0**100), torch.inf, -torch.inf, torch.finfo(torch.bfloat16).max])
    for bit in (-(1 << 15), 0, (1 << 15) - 1):
        bits = torch.full(value.shape, bit, dtype=torch.int16)
        assert torch.equal(stochastic_round(value, bits).float(), value)
        not_numbers = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000], dtype=torch.int32).view(torch.float32)
        assert stochastic_round(not_numbers, bits[:3]).isnan().all()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("columns", [64, 256, 300, 1024])
def test_quantisation_error_is_bounded(signed: bool, columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(40, columns, generator=generator) * torch.logspace(-20, 15, 40)[:, None]
    x *= 2.0 ** (-8 * torch.rand(x.shape, generator=generator))
    x = x if signed else x.abs()
    codes, scales = quantise(x, bits_like(x, 9), signed)
    assert codes.dtype == torch.uint8 and codes.shape == x.shape
    assert scales.dtype == torch.float32 and scales.shape == (40, -(-columns // 256))
    back = dequantise(codes, scales, signed)
    scale = scales.repeat_interleave(256, dim=1)[:, :columns]
    floor = 2.0**-18 if signed else 2.0**-32
    assert torch.all((back - x).abs() <= x.abs() / 8 + floor * scale)
    again, same_scales = quantise(back, bits_like(x, 10), signed)
    assert torch.equal(dequantise(again, same_scales, signed), back) or not torch.equal(same_scales, scales)


@pytest.mark.parametrize("signed", [True, False])
def test_quantisation_is_unbiased(signed: bool) -> None:
    x = torch.linspace(0.01, 0.96, 256).repeat(20_000, 1)
    codes, scales = quantise(x, bits_like(x, 2), signed)
    back = dequantise(codes, scales, signed).double()
    error = (back.mean(dim=0) - x[0]) / (x[0] / 8)
    assert error.abs().max() < 0.5 * 5.5 / 20_000**0.5
    assert abs(float(error.mean())) < 0.5 * 5 / (256 * 20_000) ** 0.5


def test_quantisation_of_zeros_and_extremes() -> None:
    x = torch.zeros(4, 512)
    x[1, 0], x[2, 0], x[3, :] = 1.0, 1e-30, 5e37
    for signed in (True, False):
        back = dequantise(*quantise(x, bits_like(x, 4), signed), signed)
        assert not back[0].any() and not back[1:3, 256:].any()
        torch.testing.assert_close(back, x, rtol=0.125, atol=2.0**-30)
        if signed:
            assert torch.equal(back[x == 0], x[x == 0])
    tiny = torch.tensor([[1.0] + [1e-12] * 255])
    assert dequantise(*quantise(tiny, bits_like(tiny, 5), False), False).min() > 0


def test_a_slowly_decaying_moment_decays() -> None:
    """With rounding to nearest, 1 % of a level would never be enough to leave it."""
    value = torch.full((64, 256), 0.9)
    value[:, 0] = 1.9  # keeps the scale where it is
    for step in range(200):
        value[:, 1:] *= 0.99
        value = dequantise(*quantise(value, bits_like(value, 100 + step), False), False)
        value[:, 0] = 1.9
    assert abs(float(value[:, 1:].mean()) / (0.9 * 0.99**200) - 1) < 0.05

"""Noise schedules and the SDEdit start."""

from __future__ import annotations

import pytest
import torch

from cosmos_predict.diffusion.parameterization import flow_time
from cosmos_predict.diffusion.schedules import (
    append_zero,
    distilled_sigmas,
    euler_sigmas,
    flow_sigmas,
    karras_sigmas,
    sdedit_start,
)
from cosmos_predict.errors import ConfigError


def test_karras_is_even_in_the_seventh_root() -> None:
    sigmas = karras_sigmas(12, 0.002, 80.0)
    assert sigmas.shape == (13,) and sigmas.dtype == torch.float64
    torch.testing.assert_close(sigmas[[0, -1]], torch.tensor([80.0, 0.002], dtype=torch.float64))
    steps = (sigmas ** (1 / 7)).diff()
    torch.testing.assert_close(steps, steps.mean().expand(12))
    torch.testing.assert_close(karras_sigmas(2, 1.0, 3.0, rho=1.0).tolist(), [3.0, 2.0, 1.0])


def test_euler_schedule_ends_in_sigma_min_then_zero() -> None:
    sigmas = euler_sigmas(35, 0.0002, 80.0)
    assert len(sigmas) == 36 and sigmas[-1] == 0
    torch.testing.assert_close(sigmas[:-1], karras_sigmas(34, 0.0002, 80.0))
    assert euler_sigmas(1, 0.0002, 80.0).tolist() == pytest.approx([80.0, 0.0])


def test_flow_sigmas_are_the_published_timesteps() -> None:
    # Integer timesteps of Predict2.5's scheduler for 8 steps and shift 5.
    sigmas = flow_sigmas(8)
    assert (1000 * flow_time(sigmas)).floor().tolist() == [999, 972, 937, 892, 833, 749, 624, 416, 0]
    assert sigmas[0].item() == pytest.approx(5 * 999)  # the shift is a factor on sigma
    torch.testing.assert_close(flow_sigmas(8, shift=1.0) * 5, sigmas)


def test_distilled_and_append_zero() -> None:
    assert distilled_sigmas(4).tolist() == [80.0, 3.6, 1.5574, 0.684, 0.0]
    assert distilled_sigmas(1).tolist() == [80.0, 0.0]
    assert append_zero(torch.tensor([2.0])).tolist() == [2.0, 0.0]


def test_sdedit_start() -> None:
    assert sdedit_start(10, 0.8) == 1  # 10 * (1 - 0.8) is a little below 2 in double precision
    assert [sdedit_start(12, strength) for strength in (1.0, 0.4, 0.0)] == [0, 7, 12]
    # Whatever the strength, at least one sigma is left to start from.
    assert all(len(karras_sigmas(35, 0.002, 80.0)[sdedit_start(35, k / 100) :]) >= 1 for k in range(101))


def test_bad_values_name_themselves() -> None:
    for make in (lambda: karras_sigmas(0, 0.1, 1.0), lambda: euler_sigmas(0, 0.1, 1.0), lambda: flow_sigmas(0)):
        with pytest.raises(ConfigError, match="number of sampling steps is 0; expected at least 1"):
            make()
    for low, high, rho in ((1.0, 0.5, 7.0), (0.0, 1.0, 7.0), (0.1, 1.0, 0.0)):
        with pytest.raises(ConfigError, match=rf"sigma_min {low}, sigma_max {high}, rho {rho}; expected 0 < sigma_min"):
            karras_sigmas(5, low, high, rho)
    with pytest.raises(ConfigError, match="shift -1"):
        flow_sigmas(5, shift=-1)
    with pytest.raises(ConfigError, match="1 to 4 steps, not 5"):
        distilled_sigmas(5)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match=f"strength is {strength}; expected 0"):
            sdedit_start(10, strength)

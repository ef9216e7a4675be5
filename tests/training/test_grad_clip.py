"""Clipping by the global norm; what happens to gradients that are not finite; sharded gradients on real ranks."""

from __future__ import annotations

import math

import pytest
import torch

from cosmos_predict.errors import ConfigError
from cosmos_predict.training.grad_clip import clip_gradients
from tests.parallel.ranks import check, run_ranks


def parameters(*gradients: torch.Tensor) -> list[torch.Tensor]:
    result = [torch.zeros_like(gradient).requires_grad_() for gradient in gradients]
    for parameter, gradient in zip(result, gradients, strict=True):
        parameter.grad = gradient.clone()
    return [*result, torch.zeros(3, requires_grad=True)]  # one without gradient


def test_clips_to_the_norm_and_leaves_small_gradients() -> None:
    params = parameters(torch.tensor([3.0]), torch.tensor([[4.0]]))
    assert clip_gradients(params, 1.0) == (5.0, False)
    assert params[0].grad.item() == pytest.approx(0.6, rel=1e-5)
    params = parameters(torch.tensor([0.3]), torch.tensor([[0.4]]))
    assert clip_gradients(params, 1.0).total_norm == pytest.approx(0.5)
    assert params[0].grad.item() == pytest.approx(0.3)
    assert clip_gradients([torch.zeros(2, requires_grad=True)]) == (0.0, False)


def test_infinite_limit_measures_alone() -> None:
    params = parameters(torch.tensor([3e30]), torch.tensor([4e30]))
    assert clip_gradients(params, math.inf).total_norm == pytest.approx(5e30), "squares would overflow float32"
    assert params[0].grad.item() == pytest.approx(3e30)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_gradient_skips_the_step_and_is_left_alone(bad: float) -> None:
    params = parameters(torch.tensor([3.0, bad]), torch.tensor([4.0]))
    result = clip_gradients(params, 1.0)
    assert result.skip_step and not math.isfinite(result.total_norm)
    assert params[1].grad.item() == 4.0


def test_force_finite_zeroes_bad_entries_first() -> None:
    params = parameters(torch.tensor([3.0, math.nan, math.inf]), torch.tensor([4.0, -math.inf]).bfloat16())
    assert clip_gradients(params, 1.0, force_finite=True) == (5.0, False)
    torch.testing.assert_close(params[0].grad, torch.tensor([0.6, 0.0, 0.0]))
    torch.testing.assert_close(params[1].grad.float(), torch.tensor([0.8, 0.0]), rtol=4e-3, atol=0)


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="clip_norm=0.0 and norm_type=2.0 must be positive"):
        clip_gradients([], 0.0)


def test_sharded_gradients_on_two_ranks() -> None:
    processes = run_ranks("tests.training.clip_program", ranks=2)
    check(processes)
    assert all("equal" in process.stdout for process in processes)

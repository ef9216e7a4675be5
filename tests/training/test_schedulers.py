"""Schedules at the points that matter: warm-up, cycle ends, past the last cycle, other published kinds, and resume."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cosmos_predict.config.lazy import LazyCall, instantiate
from cosmos_predict.errors import ConfigError
from cosmos_predict.training.schedulers import (
    ConstantScheduler,
    LambdaLinearScheduler,
    LambdaWarmUpCosineScheduler,
    lr_scheduler,
)

TWO_CYCLES = {
    "warm_up_steps": [10, 5],
    "cycle_lengths": [40, 30],
    "f_start": [0.0, 0.1],
    "f_max": [1.0, 0.5],
    "f_min": [0.2, 0.05],
}


@pytest.mark.parametrize("kind", [LambdaLinearScheduler, LambdaWarmUpCosineScheduler])
def test_cycles_at_their_ends(kind: type[LambdaLinearScheduler]) -> None:
    f = kind(**TWO_CYCLES)
    assert [f(0), f(5), f(10)] == [0.0, 0.5, 1.0]
    assert f(25) == pytest.approx(0.6), "half way down"
    assert f(40) == pytest.approx(0.2), "the end point belongs to the ending cycle"
    assert f(41) == pytest.approx(0.1 + 0.4 / 5)
    assert f(45) == 0.5 and f(70) == pytest.approx(0.05)


@pytest.mark.parametrize("kind", [LambdaLinearScheduler, LambdaWarmUpCosineScheduler])
def test_past_the_last_cycle_f_min_holds(kind: type[LambdaLinearScheduler]) -> None:
    f = kind(**TWO_CYCLES)
    assert [f(n) for n in (71, 100, 10**9)] == [0.05] * 3


def test_cycle_no_longer_than_its_warm_up() -> None:
    same = LambdaLinearScheduler(warm_up_steps=[4], cycle_lengths=[4], f_start=[0.0], f_max=[1.0], f_min=[0.5])
    assert [same(n) for n in (0, 2, 4, 5)] == [0.0, 0.5, 1.0, 0.5]
    shorter = LambdaLinearScheduler(warm_up_steps=[8], cycle_lengths=[4], f_start=[0.0], f_max=[1.0], f_min=[0.5])
    assert [shorter(n) for n in (0, 4, 5)] == [0.0, 0.5, 0.5]


def test_bad_cycles_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"one entry per cycle in each list, got lengths .*'f_max': 1"):
        LambdaLinearScheduler(**{**TWO_CYCLES, "f_max": [1.0]})
    with pytest.raises(ConfigError, match="cycle_lengths must be >= 1"):
        LambdaLinearScheduler(**{**TWO_CYCLES, "cycle_lengths": [40, 0]})


def one_cycle(warm_up: int, length: int, f_start: float, f_min: float) -> dict[str, list[float]]:
    cycle = {"warm_up_steps": warm_up, "cycle_lengths": length, "f_start": f_start, "f_max": 1.0, "f_min": f_min}
    return {name: [value] for name, value in cycle.items()}


def test_schedules_of_predict1_are_single_cycles() -> None:
    assert ConstantScheduler()(12345) == 1.0
    warmup_lambda = LambdaLinearScheduler(**one_cycle(3, 10**13, 1 / 4, 1.0))  # (n + 1) / 4 up to 1
    assert [warmup_lambda(n) for n in (0, 2, 3, 9)] == [0.25, 0.75, 1.0, 1.0]
    cosine = LambdaWarmUpCosineScheduler(**one_cycle(10, 110, 0.0, 1e-5 / 1e-4))
    assert [cosine(0), cosine(5), cosine(10)] == [0.0, 0.5, 1.0]
    assert cosine(60) == pytest.approx(0.55) and cosine(110) == pytest.approx(0.1) and cosine(500) == 1e-5 / 1e-4


def test_schedules_of_nemo_are_single_cycles() -> None:
    lr, f = 1e-6, LambdaLinearScheduler(**one_cycle(2600, 10000, 1 / 2601, 4e-10 / 1e-6))
    for n in (0, 1, 1299, 2599, 2600):
        assert f(n) == pytest.approx((n + 1) / 2601)
    assert lr * f(6300) == pytest.approx(4e-10 + 0.5 * (1e-6 - 4e-10))
    assert lr * f(10000) == pytest.approx(4e-10) and lr * f(10001) == pytest.approx(4e-10)
    hold = LambdaLinearScheduler(**one_cycle(1000, 10**13, 1 / 1001, 1.0))
    assert [hold(n) for n in (0, 1000, 5000)] == [1 / 1001, 1.0, 1.0]


def test_schedules_come_from_config() -> None:
    config = LazyCall(LambdaLinearScheduler)(**TWO_CYCLES)
    assert instantiate(config)(40) == pytest.approx(0.2)
    assert instantiate(LazyCall(ConstantScheduler)())(3) == 1.0


def test_optimizer_follows_the_schedule_and_resumes_with_its_own_config() -> None:
    def run(schedule: LambdaLinearScheduler) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        return optimizer, lr_scheduler(optimizer, schedule)

    optimizer, driver = run(LambdaLinearScheduler(**TWO_CYCLES))
    for _ in range(5):
        optimizer.step()
        driver.step()
    assert optimizer.param_groups[0]["lr"] == 0.25
    state = driver.state_dict()
    optimizer, driver = run(LambdaLinearScheduler(**{**TWO_CYCLES, "f_max": [2.0, 0.5]}))
    driver.load_state_dict(state)
    optimizer.step()
    driver.step()
    assert math.isclose(optimizer.param_groups[0]["lr"], 0.5 * 2.0 * 6 / 10)

"""Solvers against exact solutions, a public scheduler, and their own bookkeeping."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cosmos_predict.diffusion.parameterization import add_noise, flow_time
from cosmos_predict.diffusion.samplers import (
    RES_SOLVERS,
    SOLVERS,
    Churn,
    initial_scale,
    sample_distilled,
    sample_euler,
    sample_res,
    sample_unipc,
    solver_intervals,
)
from cosmos_predict.diffusion.schedules import (
    append_zero,
    distilled_sigmas,
    euler_sigmas,
    flow_sigmas,
    karras_sigmas,
    sdedit_start,
)
from cosmos_predict.errors import ConfigError
from tests.diffusion.evaluations import num_evaluations

MEAN, SD = 0.3, 0.7


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The ideal denoiser of data N(MEAN, SD^2)."""
    return (x * SD**2 + MEAN * sigma**2) / (SD**2 + sigma**2)


def curved(x: Tensor, sigma: Tensor) -> Tensor:
    return gaussian(x, sigma) + 0.1 * torch.sin(x) / (1 + sigma)


def exact(x: Tensor, start: float, end: float) -> Tensor:
    """The probability-flow solution for `gaussian`: (x - MEAN) / sqrt(SD^2 + sigma^2) is constant."""
    return MEAN + (x - MEAN) * math.sqrt((SD**2 + end**2) / (SD**2 + start**2))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(solver: str, denoise: Callable, x: Tensor, steps: int, low: float, high: float, **options) -> Tensor:
    """Run any solver from `high` to the state at `low` (RES), or beyond it to 0."""
    if solver in RES_SOLVERS:
        return sample_res(
            denoise, x, karras_sigmas(solver_intervals(solver, steps), low, high), solver=solver, **options
        )
    if solver == "euler":
        return sample_euler(denoise, x, karras_sigmas(steps, low, high), **options)
    return sample_unipc(denoise, x, karras_sigmas(steps, low, high), **options)


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("1euler", 1), ("2ab", 2), ("2mid", 2), ("2heun_edm", 2), ("unipc", 2)]
)
def test_order_of_convergence(solver: str, order: int) -> None:
    low, high = 0.05, 10.0
    x = high * noise(64)
    options = {"final_denoise": False} if solver in RES_SOLVERS else {}
    errors = []
    for steps in (64, 1024):
        result = run(solver, gaussian, x, steps, low, high, **options)
        errors.append((result - exact(x, high, low)).abs().max().item())
    observed = math.log2(errors[0] / errors[1]) / 4
    assert order - 0.15 < observed < order + 0.3, f"errors {errors}, order {observed}"


@pytest.mark.parametrize("solver", [*RES_SOLVERS, "euler", "unipc"])
def test_one_data_point_is_reached_exactly(solver: str) -> None:
    point = noise(3, seed=1)
    result = run(solver, lambda x, sigma: point.expand_as(x), 80 * noise(2, 3), 4, 0.002, 80.0)
    atol = 1e-12 if solver in RES_SOLVERS else 0.01  # the others stop at sigma_min here, without the final evaluation
    torch.testing.assert_close(result, point.expand(2, 3), rtol=0, atol=atol)


@pytest.mark.parametrize("solver", RES_SOLVERS)
@pytest.mark.parametrize("steps", [2, 3, 7, 35])
def test_number_of_evaluations(solver: str, steps: int) -> None:
    calls = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma.item())
        return gaussian(x, sigma)

    run(solver, denoise, 80 * noise(2), steps, 0.002, 80.0)
    assert len(calls) == num_evaluations(solver, steps)
    assert calls[0] == pytest.approx(80) and calls[-1] == pytest.approx(0.002)


def test_number_of_evaluations_without_a_final_one() -> None:
    calls = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma.item())
        return gaussian(x, sigma)

    sample_euler(denoise, 80 * noise(2), euler_sigmas(5, 0.0002, 80.0))
    assert len(calls) == num_evaluations("euler", 5) == 5
    calls.clear()
    sample_unipc(denoise, 80 * noise(2), flow_sigmas(6))
    assert len(calls) == num_evaluations("unipc", 6) == 6
    calls.clear()
    sample_distilled(denoise, 80 * noise(2), distilled_sigmas(3), noise(2, 2))
    assert len(calls) == num_evaluations("distilled", 3) == 3 and calls == [80.0, 3.6, 1.5574]
    assert set(SOLVERS) == {*RES_SOLVERS, "euler", "unipc", "distilled"}


@pytest.mark.parametrize("solver", [*RES_SOLVERS, "euler", "unipc"])
def test_a_step_to_zero_lands_on_the_prediction(solver: str) -> None:
    sigmas, seen = append_zero(karras_sigmas(4, 0.01, 80.0)), []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma > 0
        seen.append(curved(x, sigma))
        return seen[-1]

    x = 80 * noise(5)
    if solver in RES_SOLVERS:
        result = sample_res(denoise, x, sigmas, solver=solver)
    else:
        result = (sample_euler if solver == "euler" else sample_unipc)(denoise, x, sigmas)
    torch.testing.assert_close(result, seen[-1], rtol=0, atol=0)


def test_euler_is_the_edm_step_and_projects_before_it() -> None:
    sigmas = euler_sigmas(4, 0.01, 80.0)
    x = expected = 80 * noise(2, 3)
    given = torch.zeros(2, 3, dtype=torch.float64)
    given[:, 0] = 1

    def project(state: Tensor, sigma: Tensor) -> Tensor:
        return given * (5 + sigma) + (1 - given) * state

    for s, t in pairwise(sigmas):
        projected = project(expected, s)
        expected = projected + (projected - curved(projected, s)) / s * (t - s)
    torch.testing.assert_close(sample_euler(curved, x, sigmas, project=project), expected)


def test_on_step_sees_every_step() -> None:
    sigmas = karras_sigmas(4, 0.01, 80.0)
    x = 80 * noise(3)
    steps: list[tuple[int, Tensor, Tensor]] = []
    final = sample_res(curved, x, sigmas, on_step=lambda i, state, x0: steps.append((i, state, x0)))
    assert [i for i, _, _ in steps] == [0, 1, 2, 3]
    _, x_1, x0_0 = steps[0]
    torch.testing.assert_close(x0_0, curved(x, sigmas[0]))
    torch.testing.assert_close(x_1, sigmas[1] / sigmas[0] * x + (1 - sigmas[1] / sigmas[0]) * x0_0)
    torch.testing.assert_close(steps[1][2], curved(x_1, sigmas[1]))
    torch.testing.assert_close(final, curved(steps[-1][1], sigmas[-1]))
    counts = {"euler": 0, "unipc": 0, "distilled": 0}

    def count(name: str) -> Callable[[int, Tensor, Tensor], None]:
        def on_step(i: int, state: Tensor, x0: Tensor) -> None:
            assert i == counts[name] and state.shape == x0.shape
            counts[name] += 1

        return on_step

    sample_euler(curved, x, sigmas, on_step=count("euler"))
    sample_unipc(curved, x, sigmas, on_step=count("unipc"))
    sample_distilled(curved, x, distilled_sigmas(2), [noise(3)], on_step=count("distilled"))
    assert counts == {"euler": 4, "unipc": 4, "distilled": 2}


@pytest.mark.parametrize("solver", [*RES_SOLVERS, "euler", "unipc"])
def test_float32_stays_close_to_float64(solver: str) -> None:
    x = (80 * noise(64)).float()

    def denoise(state: Tensor, sigma: Tensor) -> Tensor:
        assert state.dtype == sigma.dtype == x.dtype and sigma.ndim == 0
        return curved(state, sigma)

    single = run(solver, denoise, x, 12, 0.002, 80.0)
    assert single.dtype == torch.float32
    x = x.double()
    torch.testing.assert_close(single.double(), run(solver, denoise, x, 12, 0.002, 80.0), rtol=1e-4, atol=1e-4)


def test_float64_state_behind_a_float32_denoiser() -> None:
    x = (80 * noise(64)).float()
    seen = []

    def denoise(state: Tensor, sigma: Tensor) -> Tensor:
        seen.append(state.dtype)
        return curved(state, sigma)

    sigmas = karras_sigmas(35, 0.002, 80.0)
    kept = sample_res(denoise, x, sigmas, state_dtype=torch.float64, on_step=lambda i, s, x0: seen.append(s.dtype))
    assert set(seen) == {torch.float32} and kept.dtype == torch.float32
    rounded = sample_res(denoise, x, sigmas)
    assert not torch.equal(kept, rounded)  # otherwise the option does nothing
    torch.testing.assert_close(kept, rounded, rtol=1e-4, atol=1e-4)


def diffusers_unipc(x_flow: Tensor, denoise: Callable, steps: int, karras: bool) -> tuple[Tensor, Tensor]:
    """The public scheduler's result in flow coordinates, and the flow times it stepped through."""
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    options: dict[str, Any] = {"flow_shift": 5.0}
    if karras:
        options = {"use_karras_sigmas": True, "sigma_min": 0.01, "sigma_max": 200.0}
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, solver_type="bh2", **options
    )
    if karras:
        scheduler.set_timesteps(steps)
        times = flow_time(append_zero(karras_sigmas(steps - 1, 0.01, 200.0)))
    else:
        base: Any = np.linspace(0.999, 0, steps + 1)[:-1]
        scheduler.set_timesteps(sigmas=base)
        times = flow_time(flow_sigmas(steps))
    torch.testing.assert_close(scheduler.sigmas.double(), times, rtol=1e-6, atol=0)
    scheduler.sigmas = times  # in float64, so that the comparison can be tight
    scheduler.set_begin_index(0)
    x = x_flow
    for t, timestep in zip(times[:-1], scheduler.timesteps, strict=True):
        x0 = denoise(x / (1 - t), t / (1 - t))
        x = scheduler.step((x - x0) / t, timestep, x, return_dict=False)[0]
    return x, times


@pytest.mark.parametrize(("steps", "karras"), [(n, False) for n in (1, 2, 3, 8, 35)] + [(n, True) for n in (2, 3, 36)])
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_unipc_is_the_public_scheduler_in_other_coordinates(steps: int, karras: bool) -> None:
    start = noise(2, 3, 4)
    expected, times = diffusers_unipc(start, curved, steps, karras)
    sigmas = times / (1 - times)
    result = sample_unipc(curved, start * initial_scale("unipc", sigmas[0].item()), sigmas)
    torch.testing.assert_close(result, expected, rtol=1e-7, atol=1e-7)


def test_distilled_sampler() -> None:
    x, fresh = 80 * noise(4), noise(2, 4, seed=1)
    first = curved(x, torch.tensor(80.0))
    second = curved(first + 3.6 * fresh[0], torch.tensor(3.6))
    third = curved(second + 1.5574 * fresh[1], torch.tensor(1.5574))
    torch.testing.assert_close(sample_distilled(curved, x, distilled_sigmas(3), fresh), third, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="over 3 steps needs 2 noises; got 1"):
        sample_distilled(curved, x, distilled_sigmas(3), fresh[:1])


def test_sdedit_follows_the_strength() -> None:
    sigmas, latents, fresh = karras_sigmas(20, 0.002, 80.0), MEAN + SD * noise(500), noise(500, seed=1)
    distances = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        first = sdedit_start(20, strength)
        result = sample_res(gaussian, add_noise(latents, fresh, sigmas[first]), sigmas[first:])
        distances.append((result - latents).abs().mean().item())
    assert distances[0] < 0.002 and distances == sorted(distances) and distances[-1] > 0.3


def test_churn_keeps_the_distribution_and_is_off_by_default() -> None:
    x = 80 * noise(20000)
    sigmas = karras_sigmas(40, 0.002, 80.0)
    plain = sample_res(gaussian, x, sigmas)
    torch.testing.assert_close(sample_res(gaussian, x, sigmas, churn=Churn(0.0)), plain, rtol=0, atol=0)
    outside = Churn(40.0, s_t_min=100.0)
    torch.testing.assert_close(sample_res(gaussian, x, sigmas, churn=outside), plain, rtol=0, atol=0)
    for sample, tolerance in (
        (lambda churn: sample_res(gaussian, x, sigmas, solver="2mid", churn=churn), 0.02),
        (lambda churn: sample_res(gaussian, x, sigmas, solver="2heun_edm", churn=churn), 0.08),
        (lambda churn: sample_euler(gaussian, x, append_zero(sigmas), churn=churn), 0.17),  # first order narrows
    ):
        results = [sample(Churn(20.0, generator=torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)]
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
        assert (results[0] - plain).abs().mean() > 0.3  # samples move ...
        for result in (results[0], results[2]):  # ... their distribution does not
            assert result.mean().item() == pytest.approx(MEAN, abs=0.03)
            assert result.std().item() == pytest.approx(SD, rel=tolerance)


def test_churn_raises_sigma_and_adds_the_missing_variance() -> None:
    churn = Churn(1e9, s_noise=1.0, generator=torch.Generator().manual_seed(0))
    x, sigma = churn.apply(torch.zeros(40000, dtype=torch.float64), 3.0, steps=10)
    assert sigma == pytest.approx(3 * math.sqrt(2))  # the factor is bounded
    assert x.std().item() == pytest.approx(3.0, rel=0.02)
    assert Churn(2.0).apply(x, 3.0, steps=10)[1] == pytest.approx(3.6)


def test_churn_that_lifts_a_level_onto_the_last_one_takes_an_euler_step() -> None:
    sigmas = [1.1, 1.0, 0.5]
    churn = Churn(0.2, s_t_max=1.05, generator=torch.Generator().manual_seed(0))  # 1.0 becomes 1.1 again
    states = []
    sample_res(gaussian, noise(4), sigmas, churn=churn, on_step=lambda i, x, x0: states.append((x, x0)))
    assert torch.isfinite(states[1][0]).all()
    lifted, _ = Churn(0.2, generator=torch.Generator().manual_seed(0)).apply(states[0][0], 1.0, 2)
    ratio = 0.5 / 1.1
    torch.testing.assert_close(states[1][0], ratio * lifted + (1 - ratio) * states[1][1])


def test_initial_scale() -> None:
    assert initial_scale("2ab", 80.0) == initial_scale("distilled", 80.0) == 80.0
    assert initial_scale("euler", 80.0) == math.sqrt(6401)
    assert initial_scale("unipc", 200.0) == 201.0


def test_bad_values_name_themselves() -> None:
    x, sigmas = torch.zeros(2), [2.0, 1.0]
    with pytest.raises(ConfigError, match="unknown RES solver '3rk'; expected one of 2ab, 1euler, 2mid, 2heun_edm"):
        sample_res(gaussian, x, sigmas, solver="3rk")
    for call in (lambda: solver_intervals("heun", 3), lambda: initial_scale("heun", 1.0)):
        with pytest.raises(ConfigError, match="unknown solver 'heun'; expected one of 2ab, .*distilled"):
            call()
    with pytest.raises(ConfigError, match="1 steps are too few for solver '2mid'; it needs at least 2"):
        solver_intervals("2mid", 1)
    for bad in ([1.0, 2.0], [1.0, 1.0], [1.0, -1.0], [2.0, 0.0, 0.0], [math.inf, 1.0], [math.nan, 1.0], []):
        with pytest.raises(ConfigError, match="expected at least 1 finite values, strictly descending"):
            sample_res(gaussian, x, bad)
    for sample in (sample_euler, sample_unipc):
        with pytest.raises(ConfigError, match=r"sigmas are \[1.0\]; expected at least 2"):
            sample(gaussian, x, [1.0])
        with pytest.raises(ValueError, match="state is torch.bfloat16; expected float32 or float64"):
            sample(gaussian, x.bfloat16(), sigmas)

"""Samplers: plain functions that walk a state down a list of noise levels, seeing the model only as `denoise`.

    denoise(x, sigma) -> x0     x (B, C, T, H, W) = x0 + sigma * noise; sigma a 0-dim tensor of x's dtype and device;
                                guidance, given frames and preconditioning are inside
    sigmas                      1-D and descending, see `schedules`; one step per neighbouring pair
    on_step(i, x, x0)           after step i: the new state, and the prediction that the step began with

The initial state is `initial_scale(solver, sigmas[0])` times unit noise. With u = -ln(sigma) every deterministic
solver here discretises the same exact solution of the probability-flow ODE from level s to level t, h = ln(s / t):

    x_t = exp(-h) * x_s + integral over v from 0 to h of exp(v - h) * x0(u_s + v) dv

Euler holds x0 constant; the second-order solvers draw a line through two predictions. Updates are computed in float64
and rounded to the state's dtype. A step to sigma = 0 lands on x0, whatever the solver. Letters in the code: s the
current sigma, t the next one, p the previous one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from cosmos_predict.errors import ConfigError

Denoise = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]

# Evaluations of `denoise` per step. The RES solvers end in one more, at sigma_min.
SOLVERS = {"2ab": 1, "1euler": 1, "2mid": 2, "2heun_edm": 2, "euler": 1, "unipc": 1, "distilled": 1}
RES_SOLVERS = ("2ab", "1euler", "2mid", "2heun_edm")


def solver_intervals(solver: str, num_steps: int) -> int:
    """Return how many intervals the schedule of `solver` needs when the user asks for `num_steps` steps.

    A solver with two evaluations per step takes num_steps // 2 intervals, so that the cost stays the same.
    """
    per_step = _per_step(solver)
    if num_steps < per_step:
        raise ConfigError(f"{num_steps} steps are too few for solver {solver!r}; it needs at least {per_step}")
    return num_steps // per_step


def initial_scale(solver: str, sigma_max: float) -> float:
    """Return the factor that turns unit noise into the published initial state of `solver` at `sigma_max`.

    euler (Predict1): sqrt(sigma_max^2 + 1). unipc (Predict2.5) starts from unit noise in flow coordinates, where
    x_flow = x / (1 + sigma): 1 + sigma_max. The others: sigma_max.
    """
    _per_step(solver)
    return {"euler": math.hypot(sigma_max, 1.0), "unipc": 1.0 + sigma_max}.get(solver, sigma_max)


@dataclass(frozen=True)
class Churn:
    """Noise put back before each step (Karras et al. 2022, algorithm 2); s_churn = 0 is none.

    A step at sigma in [s_t_min, s_t_max] first raises it to sigma * (1 + min(s_churn / steps, sqrt(2) - 1)), with fresh
    noise of standard deviation s_noise from `generator`. For one-step solvers: "2ab" extrapolates through predictions
    that then differ by the fresh noise, which widens the distribution (by half at s_churn 20 in 40 steps).
    """

    s_churn: float
    s_t_min: float = 0.0
    s_t_max: float = math.inf
    s_noise: float = 1.0
    generator: torch.Generator | None = None

    def apply(self, x: Tensor, sigma: float, steps: int) -> tuple[Tensor, float]:
        """Return the noisier state and its sigma."""
        if self.s_churn <= 0 or not self.s_t_min <= sigma <= self.s_t_max:
            return x, sigma
        raised = sigma * (1 + min(self.s_churn / steps, math.sqrt(2) - 1))
        device = self.generator.device if self.generator is not None else x.device
        noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype, device=device).to(x.device)
        return x + math.sqrt(raised**2 - sigma**2) * self.s_noise * noise, raised


def sample_euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Iterable[float] | Tensor,
    *,
    project: Callable[[Tensor, Tensor], Tensor] | None = None,
    churn: Churn | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return the state after Euler steps over `sigmas`: x <- x + (x - x0) / s * (t - s). Predict1's sampler.

    project(x, sigma) replaces the state before each step, and the step starts from what it returns: Predict1 writes its
    lightly noised given frames there. Needs `euler_sigmas`, which end in 0, so that the result is clean.
    """
    levels = _levels(sigmas, fewest=2)
    evaluate = _evaluator(denoise, x)
    dtype = x.dtype
    for i, (s, t) in enumerate(pairwise(levels)):
        if churn is not None:
            x, s = churn.apply(x, s, len(levels) - 1)
        if project is not None:
            x = project(x, _scalar(s, x))
        x0 = evaluate(x, s)
        x = _euler(x, x0, s, t).to(dtype)
        if on_step is not None:
            on_step(i, x, x0.to(dtype))
    return x


def sample_res(
    denoise: Denoise,
    x: Tensor,
    sigmas: Iterable[float] | Tensor,
    *,
    solver: str = "2ab",
    final_denoise: bool = True,
    churn: Churn | None = None,
    state_dtype: torch.dtype | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return a sample by the RES family of solvers. Predict2's sampler ("2ab") and Cosmos-1.0's.

    2ab        two-step Adams-Bashforth: a line through this prediction and the last one; first step Euler
    1euler     Euler
    2mid       a second prediction at the geometric middle sqrt(s t)
    2heun_edm  Euler to t, then again with the mean of the predictions at s and t

    sigmas: `karras_sigmas(solver_intervals(solver, steps), ...)`; a single value runs no step. final_denoise: the
    result is one more prediction at the last sigma (as published), else the state there. state_dtype: what the state
    keeps between steps (Cosmos-1.0: float64), x's dtype when None; `denoise` and `on_step` always see x's dtype.
    Raises ConfigError for an unknown solver or a schedule that does not descend.
    """
    if solver not in RES_SOLVERS:
        raise ConfigError(f"unknown RES solver {solver!r}; expected one of {', '.join(RES_SOLVERS)}")
    levels = _levels(sigmas, fewest=1)
    evaluate = _evaluator(denoise, x)
    dtype, state_dtype = x.dtype, state_dtype or x.dtype
    previous: tuple[float, Tensor] | None = None
    x = x.to(state_dtype)
    for i, (s, t) in enumerate(pairwise(levels)):
        if churn is not None:
            x, s = churn.apply(x, s, len(levels) - 1)
        x0 = evaluate(x, s)
        if solver == "1euler" or t == 0:
            new = _euler(x, x0, s, t)
        elif solver == "2ab":
            new = _euler(x, x0, s, t) if previous is None else _two_term(x, x0, s, t, *previous)
            previous = (s, x0)
        elif solver == "2mid":
            middle = math.sqrt(s * t)
            new = _two_term(x, x0, s, t, middle, evaluate(_euler(x, x0, s, middle), middle))
        else:  # 2heun_edm
            new = _euler(x, (x0 + evaluate(_euler(x, x0, s, t), t)) / 2, s, t)
        x = new.to(state_dtype)
        if on_step is not None:
            on_step(i, x.to(dtype), x0.to(dtype))
    if final_denoise and levels[-1] > 0:
        x = evaluate(x, levels[-1])
    return x.to(dtype)


def sample_unipc(
    denoise: Denoise, x: Tensor, sigmas: Iterable[float] | Tensor, *, on_step: OnStep | None = None
) -> Tensor:
    """Return a sample by UniPC of order 2, B(h) = e^h - 1 ("bh2"), on predicted x0 (Zhao et al. 2023). Predict2.5's.

    Published in flow coordinates x_flow = (1 - t) x0 + t noise. As x_flow = (1 - t) * x with t = sigma / (1 + sigma),
    dividing its update by 1 - t leaves one that knows sigma only, so it runs behind the same `denoise` as the others.
    Each step first corrects the state it stands on with the prediction made there, then predicts the next one. The
    first and the last step are of order 1. sigmas: `flow_sigmas`, ending in 0.
    """
    levels = _levels(sigmas, fewest=2)
    evaluate = _evaluator(denoise, x)
    dtype, steps = x.dtype, len(levels) - 1
    base = x  # the corrected state that the last step started from
    s, x0 = levels[0], evaluate(x, levels[0])
    older: tuple[float, Tensor] | None = None
    for i, t in enumerate(levels[1:]):
        history = older if i < steps - 1 else None
        x = _unipc(base, x0, s, t, history).to(dtype)
        if on_step is not None:
            on_step(i, x, x0.to(dtype))
        if i < steps - 1:
            newer = evaluate(x, t)
            base = _unipc(base, x0, s, t, history, newer).to(dtype)
            older, s, x0 = (s, x0), t, newer
    return x


def sample_distilled(
    denoise: Denoise,
    x: Tensor,
    sigmas: Iterable[float] | Tensor,
    noise: Sequence[Tensor] | Tensor,
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return the last x0 of x <- x0(x, s) + t * noise[i]: the sampler of models distilled to a few steps.

    noise: unit noise for every step but the last, n - 1 tensors of x's shape for `distilled_sigmas(n)`.
    """
    levels = _levels(sigmas, fewest=2)
    needed = sum(t > 0 for t in levels[1:])
    if len(noise) < needed:
        raise ValueError(f"distilled sampling over {len(levels) - 1} steps needs {needed} noises; got {len(noise)}")
    evaluate = _evaluator(denoise, x)
    dtype = x.dtype
    x0 = x
    for i, (s, t) in enumerate(pairwise(levels)):
        x0 = evaluate(x, s)
        x = (x0 + t * noise[i] if t > 0 else x0).to(dtype)
        if on_step is not None:
            on_step(i, x, x0.to(dtype))
    return x0.to(dtype)


def _euler(x: Tensor, x0: Tensor, s: float, t: float) -> Tensor:
    ratio = t / s
    return ratio * x.double() + (1 - ratio) * x0


def _two_term(x: Tensor, x0: Tensor, s: float, t: float, p: float, x0_p: Tensor) -> Tensor:
    """Step from s to t with x0(u) linear through x0 at s and x0_p at p (exponential integrator of order 2).

    exp(-h) x + h (b1 x0 + b2 x0_p), with b2 = phi2 / c, b1 = phi1 - b2, c = (u_p - u_s) / h, and at z = -h
    phi1(z) = (e^z - 1) / z, phi2(z) = (phi1(z) - 1) / z.
    """
    h = math.log(s / t)
    c = math.log(s / p) / h
    if abs(c * h) < 1e-6:  # churn may lift s onto p: no line through one point
        return _euler(x, x0, s, t)
    phi1 = -math.expm1(-h) / h
    phi2 = (1 - phi1) / h
    b2 = phi2 / c
    return math.exp(-h) * x.double() + h * ((phi1 - b2) * x0 + b2 * x0_p)


def _unipc(
    x: Tensor, x0: Tensor, s: float, t: float, older: tuple[float, Tensor] | None, newer: Tensor | None = None
) -> Tensor:
    """UniPC step from s to t: the predictor, or with `newer` (x0 at t) the corrector; order 2 if `older` is given.

    exp(-h) x + (1 - exp(-h)) (x0 + a1 D1 + a2 (newer - x0)), D1 = (x0_p - x0) / r the slope to the older prediction at
    p, r = (u_p - u_s) / h. Predictor: a1 = 1/2. Corrector: a1 + a2 = b1 and r a1 + a2 = b2; a2 = 1/2 without `older`.
    """
    if t == 0:
        return x0
    h = math.log(s / t)
    gain = -math.expm1(-h)
    target = x0
    ratio, slope = 0.0, None
    if older is not None:
        ratio = math.log(s / older[0]) / h
        slope = (older[1] - x0) / ratio
    if newer is None:
        if slope is not None:
            target = target + slope / 2
    elif slope is None:
        target = target + (newer - x0) / 2
    else:
        rest = 1 - gain / h
        b1, b2 = rest / gain, (1 - 2 * rest / h) / gain
        a1 = (b1 - b2) / (1 - ratio)
        target = target + a1 * slope + (b1 - a1) * (newer - x0)
    return math.exp(-h) * x.double() + gain * target


def _evaluator(denoise: Denoise, x: Tensor) -> Callable[[Tensor, float], Tensor]:
    """Return denoise as a function of (state of any float dtype, float) with float64 result, called in x's dtype."""
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the sampler's state is {x.dtype}; expected float32 or float64 (denoise may compute in less)")
    dtype = x.dtype

    def evaluate(state: Tensor, sigma: float) -> Tensor:
        state = state.to(dtype)
        return denoise(state, _scalar(sigma, state)).double()

    return evaluate


def _scalar(sigma: float, x: Tensor) -> Tensor:
    return torch.tensor(sigma, dtype=x.dtype, device=x.device)


def _levels(sigmas: Iterable[float] | Tensor, fewest: int) -> list[float]:
    levels = [float(sigma) for sigma in sigmas]
    usable = len(levels) >= fewest and all(s > t for s, t in pairwise(levels))
    if not usable or not 0 < levels[0] < math.inf or not levels[-1] >= 0:
        expected = f"expected at least {fewest} finite values, strictly descending, of which only the last may be 0"
        raise ConfigError(f"sigmas are {levels}; {expected}")
    return levels


def _per_step(solver: str) -> int:
    if solver not in SOLVERS:
        raise ConfigError(f"unknown solver {solver!r}; expected one of {', '.join(SOLVERS)}")
    return SOLVERS[solver]

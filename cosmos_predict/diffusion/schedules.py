"""The noise levels that a sampler steps through: descending sigmas, float64, one more than there are steps.

Predict2, Cosmos-1.0 RES   karras_sigmas(N, 0.002, 80)     (multi-view: 0.01, 200)
Predict1 EDM Euler         euler_sigmas(N, 0.0002, 80)
Predict2.5 UniPC           flow_sigmas(N, shift=5), or append_zero(karras_sigmas(N, 0.01, 200)): N + 1 steps
distilled text2image       distilled_sigmas(n)
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_predict.errors import ConfigError

DISTILLED_SIGMAS = (80.0, 3.6, 1.5574, 0.684)


def karras_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Return num_steps + 1 sigmas from sigma_max down to sigma_min, evenly spaced in sigma^(1/rho).

    Karras et al. 2022, equation 5, without the zero at the end. Raises ConfigError for impossible values.
    """
    _require_steps(num_steps)
    return _karras(num_steps + 1, sigma_min, sigma_max, rho)


def euler_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Return Predict1's EDM Euler schedule: num_steps Karras values from sigma_max to sigma_min, then 0."""
    _require_steps(num_steps)
    return append_zero(_karras(num_steps, sigma_min, sigma_max, rho))


def flow_sigmas(num_steps: int, shift: float = 5.0, num_timesteps: int = 1000) -> Tensor:
    """Return Predict2.5's schedule: num_steps values, then 0.

    s falls linearly from 1 - 1 / num_timesteps towards 0; flow time is shift * s / (1 + (shift - 1) * s), which in
    sigma = t / (1 - t) is shift * s / (1 - s).
    """
    _require_steps(num_steps)
    if not (shift > 0 and num_timesteps >= 2):
        raise ConfigError(f"flow_sigmas got shift {shift}, num_timesteps {num_timesteps}; expected shift > 0 and >= 2")
    s = torch.linspace(1 - 1 / num_timesteps, 0, num_steps + 1, dtype=torch.float64)[:-1]
    return append_zero(shift * s / (1 - s))


def distilled_sigmas(num_steps: int) -> Tensor:
    """Return the first `num_steps` (1 to 4) noise levels of the distilled text2image model, then 0."""
    if not 1 <= num_steps <= len(DISTILLED_SIGMAS):
        raise ConfigError(f"a distilled model takes 1 to {len(DISTILLED_SIGMAS)} steps, not {num_steps}")
    return append_zero(torch.tensor(DISTILLED_SIGMAS[:num_steps], dtype=torch.float64))


def append_zero(sigmas: Tensor) -> Tensor:
    """Return sigmas (n,) with a 0 behind them: a sampler's last step then lands on its last x0 prediction."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def sdedit_start(num_steps: int, strength: float) -> int:
    """Return the index of the first step of SDEdit (Meng et al. 2021): int(num_steps * (1 - strength)), cut towards 0.

    The sampler then starts at x0 + sigmas[index] * noise and runs over sigmas[index:]. strength 1 runs every step.
    strength 0 gives num_steps: one sigma and no step remain, and a RES sampler only cleans the input at sigma_min.
    Raises ConfigError for a strength outside [0, 1].
    """
    _require_steps(num_steps)
    if not 0 <= strength <= 1:
        raise ConfigError(f"SDEdit strength is {strength}; expected 0 (keep the input) to 1 (all noise)")
    return int(num_steps * (1 - strength))


def _karras(count: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    if not (0 < sigma_min < sigma_max and rho > 0):
        given = f"sigma_min {sigma_min}, sigma_max {sigma_max}, rho {rho}"
        raise ConfigError(f"Karras schedule has {given}; expected 0 < sigma_min < sigma_max and rho > 0")
    fraction = torch.arange(count, dtype=torch.float64) / max(count - 1, 1)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (top + fraction * (bottom - top)) ** rho


def _require_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ConfigError(f"number of sampling steps is {num_steps}; expected at least 1")

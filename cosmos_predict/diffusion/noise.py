"""Noise levels for training, as functions of given uniform numbers.

A distribution draws nothing itself: `sample(u, mask_u, high_u)` turns uniform numbers into sigmas, and `draw_uniforms`
makes those numbers from (seed, global sample number). So the noise level of a sample is the same on whatever rank,
worker or accumulation step it lands.

    u       becomes the level: a normal quantile (inverse normal CDF), then the distribution's own map
    mask_u  a sample is replaced by a high noise level where mask_u < high_sigma_ratio
    high_u  becomes that high level
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cosmos_predict.diffusion.parameterization import sigma_of_flow_time
from cosmos_predict.errors import ConfigError
from cosmos_predict.randomness import numpy_generator


@dataclass(frozen=True)
class LogNormal:
    """sigma = multiplier * exp(p_mean + p_std * normal), with a share of log-uniform high levels (Predict1, Predict2).

    multiplier: for video sqrt(number of latent frames) in both generations, 1 for images: more frames carry the same
    content more often, so the same difficulty needs more noise. high_sigma_ratio: share of samples whose level is drawn
    log-uniformly from [high_sigma_min, high_sigma_max] instead, after the multiplier (Predict2 video: 0.05).
    """

    p_mean: float = 0.0
    p_std: float = 1.0
    multiplier: float = 1.0
    high_sigma_ratio: float = 0.0
    high_sigma_min: float = 200.0
    high_sigma_max: float = 1e5

    def __post_init__(self) -> None:
        _require_ratio(self.high_sigma_ratio)
        if not (self.p_std >= 0 and self.multiplier > 0):
            what = f"p_std {self.p_std} and multiplier {self.multiplier}"
            raise ConfigError(f"LogNormal has {what}; expected p_std >= 0 and multiplier > 0")
        low, high = self.high_sigma_min, self.high_sigma_max
        if not 0 < low <= high:
            raise ConfigError(f"high sigma range is [{low}, {high}]; expected 0 < high_sigma_min <= high_sigma_max")

    def sample(self, u: Tensor, mask_u: Tensor | None = None, high_u: Tensor | None = None) -> Tensor:
        """Return sigmas, float32 of u's shape, from uniforms in (0, 1); see the module's text for the three."""
        sigma = torch.exp(self.p_mean + self.p_std * normal_quantile(u)) * self.multiplier
        low, high = math.log(self.high_sigma_min), math.log(self.high_sigma_max)
        return _mixed(sigma, lambda u: torch.exp(u.float() * (high - low) + low), self.high_sigma_ratio, mask_u, high_u)

    def for_images(self) -> LogNormal:
        """Return the distribution of image batches: no multiplier, no high levels."""
        return replace(self, multiplier=1.0, high_sigma_ratio=0.0)


@dataclass(frozen=True)
class ShiftedLogitNormal:
    """Predict2.5: flow time from a table of `num_timesteps` values, at an index drawn logit-normally.

    The table descends: t_i = shift * s_i / (1 + (shift - 1) * s_i) with s_i = 1 - i / num_timesteps, and the index is
    floor(num_timesteps * sigmoid(normal)). As sigma = t / (1 - t) the shift is a plain factor: sigma = shift * s /
    (1 - s). high_sigma_ratio: share of samples that take, with equal chances, one of the table's entries with timestep
    1000 t in [high_timestep_min, high_timestep_max] instead.
    """

    shift: float = 5.0
    num_timesteps: int = 1000
    high_sigma_ratio: float = 0.0
    high_timestep_min: float = 980.0
    high_timestep_max: float = 1000.0

    def __post_init__(self) -> None:
        _require_ratio(self.high_sigma_ratio)
        if not (self.shift > 0 and self.num_timesteps >= 1):
            what = f"shift {self.shift} and num_timesteps {self.num_timesteps}"
            raise ConfigError(f"ShiftedLogitNormal has {what}; expected shift > 0 and num_timesteps >= 1")
        if self.high_sigma_ratio > 0 and not self._high_entries().any():
            given = f"[{self.high_timestep_min}, {self.high_timestep_max}]"
            raise ConfigError(f"no timestep of ShiftedLogitNormal lies in {given}; expected a range within (0, 1000]")

    def flow_times(self) -> Tensor:
        """Return the table of flow times, float64 (num_timesteps,), descending from 1."""
        s = 1 - torch.arange(self.num_timesteps, dtype=torch.float64) / self.num_timesteps
        return self.shift * s / (1 + (self.shift - 1) * s)

    def sample(self, u: Tensor, mask_u: Tensor | None = None, high_u: Tensor | None = None) -> Tensor:
        """Return sigmas, float32 of u's shape, from uniforms in (0, 1); see the module's text for the three."""
        table = self.flow_times().to(u.device)
        t = table[_index(torch.sigmoid(normal_quantile(u)), self.num_timesteps)]
        high = table[self._high_entries().to(u.device)]
        t = _mixed(t, lambda u: high[_index(u, len(high))], self.high_sigma_ratio, mask_u, high_u)
        return sigma_of_flow_time(t).float()

    def _high_entries(self) -> Tensor:
        timesteps = 1000 * self.flow_times()
        return (timesteps >= self.high_timestep_min) & (timesteps <= self.high_timestep_max)


def normal_quantile(u: Tensor) -> Tensor:
    """Return the standard normal's inverse CDF of u in (0, 1), taken in float64 and rounded to float32."""
    if not bool(((u > 0) & (u < 1)).all()):
        raise ValueError(f"uniform numbers must lie strictly between 0 and 1; got [{float(u.min())}, {float(u.max())}]")
    return torch.special.ndtri(u.double()).float()


def draw_uniforms(seed: int, sample_numbers: Iterable[int] | Tensor, purpose: str = "sigma", count: int = 3) -> Tensor:
    """Return `count` uniform numbers in (0, 1) per sample, float64 (count, B), as functions of (seed, sample number).

    sample_numbers: the batch's global sample numbers, B of them. So `dist.sample(*draw_uniforms(seed, numbers))` is the
    noise level of each sample, shape (B,). `purpose` separates independent draws of one sample.
    """
    numbers = sample_numbers.tolist() if isinstance(sample_numbers, Tensor) else list(sample_numbers)
    columns = [numpy_generator(seed, number, purpose).random(count) for number in numbers]
    uniforms = np.stack(columns, axis=1) if columns else np.empty((count, 0))
    return torch.from_numpy(np.maximum(uniforms, 2.0**-54))  # numpy's draws include 0, whose quantile is infinite


def _index(fraction: Tensor, count: int) -> Tensor:
    return (fraction * count).long().clamp(max=count - 1)


def _require_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:
        raise ConfigError(f"high_sigma_ratio is {ratio}; expected a share between 0 and 1")


def _mixed(
    usual: Tensor, high: Callable[[Tensor], Tensor], ratio: float, mask_u: Tensor | None, high_u: Tensor | None
) -> Tensor:
    """Return the usual levels, of which a share `ratio` is replaced by high(high_u)."""
    if ratio == 0:
        return usual
    if mask_u is None or high_u is None:
        raise ValueError(f"high_sigma_ratio is {ratio}, so sample() needs mask_u and high_u besides u; one is missing")
    return torch.where(mask_u < ratio, high(high_u), usual)

"""How a noisy latent becomes the network's input, and the network's output a clean latent.

The state of every model here is x = x0 + sigma * noise, with noise ~ N(0, 1). Around the raw network F stands the
preconditioning of Karras et al. 2022 ("EDM"), equation 7:

    x0_hat(x, sigma) = c_skip * x + c_out * F(c_in * x, c_noise)

`EDM` (Predict1) and `RectifiedFlow` (Predict2, Predict2.5) are two choices of the four coefficients and of the loss
weight. The coefficients have the shape of `sigma`; `expand_like` makes them broadcast over a latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cosmos_predict.errors import ConfigError

# sigma that stands for flow time 1 (pure noise, sigma infinite). With 2^20 - 1 the float32 values of t = 1 - 2^-20 and
# of 1 - t are exact, so the network input (1 - t) * x is the noise to one part in a million.
MAX_SIGMA = float(2**20 - 1)


class Scaling(NamedTuple):
    """The preconditioning coefficients, each of sigma's shape and dtype."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Parameterization:
    """What `EDM` and `RectifiedFlow` have in common."""

    def scaling(self, sigma: Tensor) -> Scaling:
        """Return the coefficients at `sigma`."""
        raise NotImplementedError

    def x0(self, x: Tensor, network_output: Tensor, sigma: Tensor) -> Tensor:
        """Return the clean latent: x, network_output (B, C, T, H, W); sigma (), (B,), (B, 1) or (B, T).

        In float32 at least, whatever dtype the network computes in: at large sigma the two terms nearly cancel.
        """
        scaling = self.scaling(expand_like(sigma, x))
        dtype = torch.promote_types(torch.promote_types(x.dtype, network_output.dtype), torch.float32)
        return scaling.c_skip * x.to(dtype) + scaling.c_out * network_output.to(dtype)


@dataclass(frozen=True)
class EDM(Parameterization):
    """Preconditioning of Predict1 (Karras et al. 2022, table 1, column "Ours").

    sigma_data: standard deviation of the latents, which are tokenizer latents times this number.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _require_positive("EDM sigma_data", self.sigma_data)

    def scaling(self, sigma: Tensor) -> Scaling:
        """Return the coefficients at `sigma` (any shape, > 0); c_noise = ln(sigma) / 4 is the network's timestep."""
        data, total = self.sigma_data, sigma**2 + self.sigma_data**2
        root = total.sqrt()
        return Scaling(c_skip=data**2 / total, c_out=sigma * data / root, c_in=1 / root, c_noise=sigma.log() / 4)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Return 1 / c_out^2, which makes the weighted loss a plain mean square in the network's output."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True)
class RectifiedFlow(Parameterization):
    """Preconditioning of Predict2 and Predict2.5: a velocity network in the variance-exploding state.

    With flow time t = sigma / (1 + sigma) the network input c_in * x is the straight line (1 - t) * x0 + t * noise,
    its output F the velocity noise - x0, and x0_hat = (1 - t) * x - t * F (Liu et al. 2022, "Flow Straight and Fast").

    sigma_data: tokenizer latents times this number are the latents. t_scaling_factor: the network's timestep is t times
    this number (Predict2.5's timestep of 0 to 1000 is scaled by 0.001 inside the network: again t, factor 1).
    """

    sigma_data: float = 1.0
    t_scaling_factor: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("RectifiedFlow sigma_data", self.sigma_data)
        _require_positive("RectifiedFlow t_scaling_factor", self.t_scaling_factor)

    def scaling(self, sigma: Tensor) -> Scaling:
        """Return the coefficients at `sigma` (any shape, >= 0)."""
        t = flow_time(sigma)
        return Scaling(c_skip=1 - t, c_out=-t, c_in=1 - t, c_noise=t * self.t_scaling_factor)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Return (1 + sigma)^2 / sigma^2 = 1 / t^2: the weighted loss is the mean square of the velocity error."""
        return (1 + sigma) ** 2 / sigma**2


def flow_time(sigma: Tensor) -> Tensor:
    """Return the rectified-flow time t = sigma / (1 + sigma), in [0, 1)."""
    return sigma / (1 + sigma)


def sigma_of_flow_time(t: Tensor) -> Tensor:
    """Return sigma = t / (1 - t), at most `MAX_SIGMA`, which stands for t = 1."""
    return (t / (1 - t)).clamp(max=MAX_SIGMA)


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return the state x0 + sigma * noise: x0, noise (B, C, T, H, W); sigma (), (B,), (B, 1) or (B, T)."""
    return x0 + expand_like(sigma, x0) * noise


def predicted_noise(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Return the noise (x - x0) / sigma that a prediction x0 implies; shapes as in `add_noise`."""
    return (x - x0) / expand_like(sigma, x)


def expand_like(sigma: Tensor, x: Tensor) -> Tensor:
    """Reshape per-sample or per-frame numbers so that they broadcast over a latent.

    x: (B, C, T, H, W), or for () and (B,) any shape. sigma: () stays; (B,) becomes (B, 1, 1, 1, 1); (B, 1) and (B, T)
    become (B, 1, 1 or T, 1, 1); a sigma with as many axes as x stays. Raises ValueError for anything else.
    """
    if sigma.ndim in (0, x.ndim):
        return sigma
    batch_fits = sigma.shape[0] in (1, x.shape[0])
    if sigma.ndim == 1 and batch_fits:
        return sigma.reshape(-1, *(1,) * (x.ndim - 1))
    if sigma.ndim == 2 and batch_fits and x.ndim == 5 and sigma.shape[1] in (1, x.shape[2]):
        return sigma[:, None, :, None, None]
    raise ValueError(
        f"sigma of shape {tuple(sigma.shape)} does not fit a latent of shape {tuple(x.shape)}: expected (), (B,), "
        "(B, 1) or (B, T) for a latent (B, C, T, H, W)"
    )


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} is {value}; expected a number above 0")

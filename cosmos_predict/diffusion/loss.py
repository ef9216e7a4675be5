"""The training loss: a weighted mean square between clean latent and prediction, and Predict1's log-variance head."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cosmos_predict.diffusion.parameterization import expand_like
from cosmos_predict.errors import ConfigError


class Loss(NamedTuple):
    """What one evaluation of the loss gives; only `loss` carries a gradient, the rest is for the log."""

    loss: Tensor  # (): what is back-propagated
    edm_loss: Tensor  # (): mean of weight * (x0 - prediction)^2 over all elements
    edm_loss_per_frame: Tensor  # (B, T): the same over channel and space
    mse_loss: Tensor  # (): mean of (x0 - prediction)^2 over all elements


def weighted_mse(
    x0: Tensor,
    prediction: Tensor,
    weight: Tensor,
    *,
    logvar: Tensor | None = None,
    reduce: Literal["mean", "sum", "sum_channels"] = "mean",
    scale: float = 1.0,
) -> Loss:
    """Return the diffusion loss of `prediction` for the clean latent `x0`, in float32 at least.

    x0, prediction: (B, C, T, H, W). weight: the parameterization's `loss_weight(sigma)`, (), (B,), (B, 1) or (B, T).
    logvar: u = LogVariance(c_noise), shapes as weight. Per element, with e = weight * (x0 - prediction)^2,

        l = e                    without logvar
        l = e * exp(-u) + u      with it: a Gaussian likelihood whose variance is learnt per noise level
                                 (Kendall & Gal 2017; Karras et al. 2023, equation 21)

    reduce: "mean" over all elements; "sum" over a sample's elements, then mean over the batch (Predict1); or
    "sum_channels" over channels, then mean over the rest (Predict2's "sum"). Given frames that the caller put back into
    `prediction` contribute nothing but stay in the mean's denominator, as published. scale: factor on `loss` (Predict2:
    10). Raises ValueError for shapes that differ, ConfigError for an unknown `reduce`.
    """
    if x0.shape != prediction.shape or x0.ndim != 5:
        shapes = f"a latent of shape {tuple(x0.shape)} and a prediction of shape {tuple(prediction.shape)}"
        raise ValueError(f"loss got {shapes}; expected the same (B, C, T, H, W)")
    dtype = torch.promote_types(torch.promote_types(x0.dtype, prediction.dtype), torch.float32)
    square = (x0.to(dtype) - prediction.to(dtype)) ** 2
    weighted = expand_like(weight, x0) * square
    elements = weighted
    if logvar is not None:
        u = expand_like(logvar, x0)
        elements = weighted * torch.exp(-u) + u
    if reduce == "mean":
        loss = elements.mean()
    elif reduce == "sum":
        loss = elements.flatten(1).sum(1).mean()
    elif reduce == "sum_channels":
        loss = elements.sum(1).mean()
    else:
        raise ConfigError(f"loss_reduce is {reduce!r}; expected 'mean', 'sum' or 'sum_channels'")
    weighted = weighted.detach()
    return Loss(loss * scale, weighted.mean(), weighted.mean(dim=(1, 3, 4)), square.detach().mean())


class FourierFeatures(nn.Module):
    """Random Fourier features sqrt(2) * cos(value * freqs + phases): (...) to (..., num_channels), float32.

    freqs = 2 pi N(0, 1) and phases = 2 pi U(0, 1) are drawn once and kept in the checkpoint.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, num_channels: int = 128) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(num_channels))
        self.register_buffer("phases", torch.empty(num_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw frequencies and phases anew from torch's global generator."""
        nn.init.normal_(self.freqs, std=2 * math.pi)
        nn.init.uniform_(self.phases, 0, 2 * math.pi)

    def forward(self, value: Tensor) -> Tensor:
        angle = value.float().unsqueeze(-1) * self.freqs.float() + self.phases.float()
        return math.sqrt(2) * torch.cos(angle)


class LogVariance(nn.Sequential):
    """Predict1's head u(c_noise), the log-variance of the loss at a noise level: Fourier features, then a linear layer.

    As attribute `logvar` of a model its keys are the published `logvar.0.freqs`, `logvar.0.phases`, `logvar.1.weight`.
    Computes in float32 whatever dtype the model was cast to.
    """

    def __init__(self, num_channels: int = 128) -> None:
        super().__init__(FourierFeatures(num_channels), nn.Linear(num_channels, 1, bias=False))

    def forward(self, input: Tensor) -> Tensor:
        """Return u, float32: c_noise (B,) gives (B, 1); (B, 1) or (B, T) gives the same shape."""
        with torch.autocast(input.device.type, enabled=False):
            u = functional.linear(self[0](input), self.get_parameter("1.weight").float())
        return u if input.ndim == 1 else u.squeeze(-1)

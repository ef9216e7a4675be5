"""Preconditioning identities, broadcasting of noise levels, precision."""

from __future__ import annotations

import pytest
import torch

from cosmos_predict.diffusion.parameterization import (
    EDM,
    MAX_SIGMA,
    RectifiedFlow,
    add_noise,
    expand_like,
    flow_time,
    predicted_noise,
    sigma_of_flow_time,
)
from cosmos_predict.errors import ConfigError

SIGMAS = torch.tensor([0.002, 0.3, 1.0, 7.0, 80.0], dtype=torch.float64)


def latent(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_edm_keeps_network_input_and_target_at_unit_variance() -> None:
    edm = EDM(0.5)
    x0, noise = 0.5 * latent(5, 4000), latent(5, 4000, seed=1)
    sigma = SIGMAS[:, None]
    x = add_noise(x0, noise, sigma)
    c_skip, c_out, c_in, c_noise = edm.scaling(sigma)
    assert ((c_in * x).var(1) - 1).abs().max() < 0.1
    assert (((x0 - c_skip * x) / c_out).var(1) - 1).abs().max() < 0.1
    torch.testing.assert_close(c_noise, sigma.log() / 4)
    torch.testing.assert_close(edm.loss_weight(sigma) * c_out**2, torch.ones_like(sigma))


def test_rectified_flow_input_is_the_straight_line_and_output_the_velocity() -> None:
    flow = RectifiedFlow(t_scaling_factor=3.0)
    x0, noise = latent(5, 2, 3, 4, 4), latent(5, 2, 3, 4, 4, seed=1)
    x, t = add_noise(x0, noise, SIGMAS), expand_like(flow_time(SIGMAS), x0)
    scaling = flow.scaling(SIGMAS)
    torch.testing.assert_close(expand_like(scaling.c_in, x) * x, (1 - t) * x0 + t * noise)
    torch.testing.assert_close(scaling.c_noise, 3 * flow_time(SIGMAS))
    torch.testing.assert_close(flow.x0(x, noise - x0, SIGMAS), x0)
    # The weighted error of x0 is the error of the velocity.
    velocity = noise - x0 + 0.1
    error = expand_like(flow.loss_weight(SIGMAS), x) * (flow.x0(x, velocity, SIGMAS) - x0) ** 2
    torch.testing.assert_close(error, torch.full_like(error, 0.01))


@pytest.mark.parametrize("parameterization", [EDM(), RectifiedFlow()], ids=["edm", "flow"])
def test_x0_inverts_the_ideal_network_for_every_shape_of_sigma(parameterization: EDM | RectifiedFlow) -> None:
    x0, noise = latent(2, 3, 4, 2, 2), latent(2, 3, 4, 2, 2, seed=1)
    for shape in ((), (2,), (2, 1), (2, 4)):
        sigma = 0.1 + latent(*shape, seed=2).abs()
        x = add_noise(x0, noise, sigma)
        c_skip, c_out, _, _ = parameterization.scaling(expand_like(sigma, x))
        prediction = parameterization.x0(x, (x0 - c_skip * x) / c_out, sigma)
        torch.testing.assert_close(prediction, x0)
        torch.testing.assert_close(predicted_noise(x, prediction, sigma), noise)


def test_expand_like_shapes() -> None:
    x = torch.zeros(2, 16, 3, 8, 10)
    assert expand_like(torch.zeros(()), x).shape == ()
    assert expand_like(torch.zeros(2), x).shape == (2, 1, 1, 1, 1)
    assert expand_like(torch.zeros(2, 1), x).shape == (2, 1, 1, 1, 1)
    assert expand_like(torch.zeros(2, 3), x).shape == (2, 1, 3, 1, 1)
    assert expand_like(torch.zeros(2, 1, 3, 1, 1), x).shape == (2, 1, 3, 1, 1)
    assert expand_like(torch.zeros(4), torch.zeros(4, 7)).shape == (4, 1)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 1)])
def test_expand_like_refuses_a_sigma_that_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"does not fit a latent of shape \(2, 16, 3, 8, 10\).*\(B, T\)"):
        expand_like(torch.zeros(shape), torch.zeros(2, 16, 3, 8, 10))


def test_low_precision_network_output_is_combined_in_float32() -> None:
    x, output = latent(1, 2, 1, 4, 4, dtype=torch.float32) * 80, latent(1, 2, 1, 4, 4, seed=1).bfloat16()
    for parameterization in (EDM(), RectifiedFlow()):
        for sigma in (torch.tensor(80.0), torch.tensor([80.0])):
            prediction = parameterization.x0(x, output, sigma)
            assert prediction.dtype == torch.float32
            torch.testing.assert_close(prediction, parameterization.x0(x, output.float(), sigma), rtol=0, atol=0)
    assert EDM().x0(x.bfloat16(), output, torch.tensor(2.0)).dtype == torch.float32


def test_pure_noise_has_a_finite_sigma_that_float32_holds_exactly() -> None:
    sigma = sigma_of_flow_time(torch.tensor([0.5, 1.0], dtype=torch.float64)).float()
    assert sigma.tolist() == [1.0, MAX_SIGMA]
    assert RectifiedFlow().scaling(sigma).c_in[1] * (1 + MAX_SIGMA) == 1
    x0, noise = latent(1, 1, 1, 2, 2, dtype=torch.float32), latent(1, 1, 1, 2, 2, seed=1, dtype=torch.float32)
    x = add_noise(x0, noise, sigma[1:])
    torch.testing.assert_close(RectifiedFlow().scaling(sigma[1]).c_in * x, noise, rtol=1e-5, atol=1e-5)


def test_bad_values_name_themselves() -> None:
    with pytest.raises(ConfigError, match="EDM sigma_data is 0.*above 0"):
        EDM(0)
    with pytest.raises(ConfigError, match="RectifiedFlow sigma_data is -1"):
        RectifiedFlow(-1)
    with pytest.raises(ConfigError, match="t_scaling_factor is nan"):
        RectifiedFlow(1.0, float("nan"))

"""Training noise levels from given uniforms."""

from __future__ import annotations

import math

import pytest
import torch

from cosmos_predict.diffusion.noise import LogNormal, ShiftedLogitNormal, draw_uniforms
from cosmos_predict.diffusion.parameterization import MAX_SIGMA, flow_time
from cosmos_predict.errors import ConfigError

GRID = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000  # stratified uniforms


def test_log_normal_has_the_stated_moments() -> None:
    log_sigma = LogNormal(p_mean=-0.4, p_std=1.2, multiplier=4.0).sample(GRID).log()
    assert log_sigma.dtype == torch.float32
    assert abs(log_sigma.mean().item() - (-0.4 + math.log(4))) < 1e-3
    assert abs(log_sigma.std().item() - 1.2) < 1e-2


def test_high_sigma_replaces_the_given_share_log_uniformly() -> None:
    distribution = LogNormal(multiplier=24**0.5, high_sigma_ratio=0.05)
    mask_u, high_u = torch.rand(2, len(GRID), generator=torch.Generator().manual_seed(0))
    sigma = distribution.sample(GRID, mask_u, high_u)
    chosen = mask_u < 0.05
    torch.testing.assert_close(sigma[~chosen], LogNormal(multiplier=24**0.5).sample(GRID)[~chosen], rtol=0, atol=0)
    position = (sigma[chosen].log() - math.log(200)) / math.log(1e5 / 200)
    torch.testing.assert_close(position, high_u[chosen], rtol=0, atol=1e-5)
    assert distribution.for_images() == LogNormal()


def test_shifted_logit_normal_reads_the_table_at_the_drawn_index() -> None:
    distribution = ShiftedLogitNormal(shift=5.0)
    table = distribution.flow_times()
    assert table[0] == 1 and table.diff().max() < 0
    u = torch.tensor([0.5, 0.1, 0.9, 1e-15, 1 - 1e-15], dtype=torch.float64)
    sigma = distribution.sample(u)
    index = (1000 / (1 + torch.exp(-torch.special.ndtri(u)))).long()
    torch.testing.assert_close(flow_time(sigma.double())[:3], table[index[:3]], rtol=1e-6, atol=0)
    assert index.tolist() == [500, 217, 782, 0, 999]
    assert sigma[0] == 5.0  # the middle of the table: the shift itself
    assert sigma[3] == MAX_SIGMA  # pure noise
    torch.testing.assert_close(sigma[4].item(), 5 * 0.001 / 0.999, rtol=1e-5, atol=0)


def test_shifted_logit_normal_high_share_stays_in_its_timesteps() -> None:
    distribution = ShiftedLogitNormal(high_sigma_ratio=1.0)
    sigma = distribution.sample(GRID, torch.zeros_like(GRID), GRID).double()
    timestep = 1000 * flow_time(sigma)
    assert timestep.min() >= 980 - 1e-3 and timestep.max() > 999.9
    assert torch.isfinite(sigma).all()
    table = distribution.flow_times() * 1000
    assert len(sigma.unique()) == int((table >= 980).sum())


def test_draws_depend_on_seed_and_sample_number_only() -> None:
    together = draw_uniforms(7, [3, 4, 5])
    apart = torch.cat([draw_uniforms(7, [3]), draw_uniforms(7, torch.tensor([4, 5]))], dim=1)
    torch.testing.assert_close(together, apart, rtol=0, atol=0)
    assert together.shape == (3, 3) and together.dtype == torch.float64
    assert not torch.equal(together, draw_uniforms(8, [3, 4, 5]))
    assert not torch.equal(together, draw_uniforms(7, [3, 4, 5], purpose="augment_sigma"))
    many = draw_uniforms(0, range(2000))
    assert many.min() > 0 and many.max() < 1
    assert (many.mean(1) - 0.5).abs().max() < 0.03
    assert LogNormal().sample(*together).shape == (3,)
    assert draw_uniforms(0, []).shape == (3, 0)


def test_bad_values_name_themselves() -> None:
    with pytest.raises(ConfigError, match="high_sigma_ratio is 1.5.*between 0 and 1"):
        LogNormal(high_sigma_ratio=1.5)
    with pytest.raises(ConfigError, match=r"range is \[300, 200.*expected 0 < high_sigma_min"):
        LogNormal(high_sigma_min=300, high_sigma_max=200)
    with pytest.raises(ConfigError, match="multiplier -1; expected p_std >= 0 and multiplier > 0"):
        LogNormal(multiplier=-1)
    with pytest.raises(ConfigError, match="shift 0.*expected shift > 0"):
        ShiftedLogitNormal(shift=0)
    with pytest.raises(ConfigError, match=r"no timestep .* lies in \[1001, 1002\]"):
        ShiftedLogitNormal(high_sigma_ratio=0.1, high_timestep_min=1001, high_timestep_max=1002)
    with pytest.raises(ValueError, match=r"strictly between 0 and 1; got \[0.0, 0.5\]"):
        LogNormal().sample(torch.tensor([0.0, 0.5]))
    for distribution in (LogNormal(high_sigma_ratio=0.1), ShiftedLogitNormal(high_sigma_ratio=0.1)):
        with pytest.raises(ValueError, match="needs mask_u and high_u"):
            distribution.sample(GRID)

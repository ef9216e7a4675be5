"""Sampling: guidance branches, evaluation counts, given frames, and every family's solvers on every variant."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_predict.conditions.frames import GivenFrames, first_frames_mask
from cosmos_predict.diffusion.guidance import Branch, trajectory_branches
from cosmos_predict.errors import ConfigError
from cosmos_predict.models.sampling import SamplerSettings, guided_denoiser, sample, seeded_noise
from cosmos_predict.models.world_model import WorldModel
from tests.diffusion.evaluations import num_evaluations
from tests.models.small import small_condition
from tests.networks.variants import VARIANTS

FEW = SamplerSettings(num_steps=4, cfg_batch="off")


class Calls:
    """Counts the evaluations of a network and their batch sizes."""

    def __init__(self, model: WorldModel) -> None:
        self.sizes: list[int] = []
        model.net.register_forward_hook(lambda _m, inputs, _o: self.sizes.append(len(inputs[0])))


def settings_of(name: str, **changes: Any) -> SamplerSettings:
    family = VARIANTS[name].family
    return dataclasses.replace(SamplerSettings.for_family(family), num_steps=4, **changes)


# ---- every variant ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_samples(name: str) -> None:
    """Its family's solver: shape, determinism, no gradient, and the second sample of a batch on its own."""
    model, noise, condition = small_condition(name, batch=2)
    steps: list[int] = []
    out = model.sample(noise, condition, settings_of(name), on_step=lambda i, x, x0: steps.append(i))
    assert out.shape == noise.shape and out.dtype == torch.float32 and not out.requires_grad
    assert steps == [0, 1, 2, 3] and bool(out.isfinite().all())
    assert torch.equal(out, model.sample(noise, condition, settings_of(name)))
    other = small_condition(name, batch=2, seed=1)
    mixed_noise = torch.stack([other[1][0], noise[1]])
    mixed = _mix(condition, other[2])
    again = model.sample(mixed_noise, mixed, settings_of(name))
    torch.testing.assert_close(again[1], out[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(again[0], out[0], atol=1e-2)


def _mix(condition: Any, other: Any) -> Any:
    """Return `condition` with everything of sample 0 from `other`."""

    def mix(first: Any, second: Any) -> Any:
        if isinstance(first, Tensor):
            return torch.cat([second[:1], first[1:]])
        if isinstance(first, dict):
            return {key: mix(first[key], second[key]) for key in first}
        if dataclasses.is_dataclass(first):
            return type(first)(**{key: mix(value, getattr(second, key)) for key, value in vars(first).items()})
        return first

    return mix(condition, other)


@pytest.mark.parametrize("solver", ["2ab", "1euler", "2mid", "2heun_edm", "euler", "unipc", "distilled"])
@pytest.mark.parametrize("name", ["predict1_video2world", "predict2_video2world"])
def test_every_solver_keeps_given_frames_exactly(name: str, solver: str) -> None:
    """Predict1's own Euler included, where the schedule stays above the given frames' noise."""
    model, noise, condition = small_condition(name, batch=2)
    assert condition.frames is not None
    calls = Calls(model)
    out = model.sample(noise, condition, SamplerSettings(solver, num_steps=4, guidance=7.3, cfg_batch="off"))
    assert len(calls.sizes) == 2 * num_evaluations(solver, 4)
    assert torch.equal(out[:, :, :1], condition.frames.latent[:, :, :1])
    assert not torch.allclose(out[:, :, 1:], condition.frames.latent[:, :, 1:], atol=1e-2)


def test_predict1_euler_lets_go_at_the_end() -> None:
    """Below the given frames' noise level 0.001 the state is free, as published: it ends close to them."""
    name = "predict1_video2world"
    model, noise, condition = small_condition(name)
    assert condition.frames is not None
    out = model.sample(noise, condition, dataclasses.replace(SamplerSettings.for_family("predict1"), num_steps=8))
    given = condition.frames.latent[:, :, :1]
    assert not torch.equal(out[:, :, :1], given)
    torch.testing.assert_close(out[:, :, :1], given, rtol=0, atol=0.02)


def test_given_frames_of_every_view_and_of_each_sample() -> None:
    model, noise, condition = small_condition("predict2_multiview", batch=2, given=0)
    latent = torch.randn_like(noise)
    mask = first_frames_mask([1, 0], 2, views=2)
    condition = dataclasses.replace(condition, frames=GivenFrames(latent, mask))
    out = model.sample(noise, condition, FEW)
    assert torch.equal((out * mask), latent * mask)
    assert not torch.equal(out[1], latent[1])


def test_what_is_not_given_does_not_matter() -> None:
    model, noise, condition = small_condition()
    assert condition.frames is not None
    out = model.sample(noise, condition, FEW)
    hidden = condition.frames.latent * condition.frames.mask
    frames = dataclasses.replace(condition.frames, latent=hidden)
    assert torch.equal(out, model.sample(noise, dataclasses.replace(condition, frames=frames), FEW))


# ---- guidance --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_guidance_is_the_published_sum() -> None:
    model, noise, condition = small_condition(batch=2)
    x, sigma = 3 * noise, torch.tensor(3.0)
    cond = model.denoise(x, sigma, condition)
    uncond = model.denoise(x, sigma, dataclasses.replace(condition, text=torch.zeros_like(condition.text)))
    denoise = guided_denoiser(model, condition, dataclasses.replace(FEW, guidance=7.0))
    torch.testing.assert_close(denoise(x, sigma), cond + 7 * (cond - uncond), rtol=1e-5, atol=1e-5)
    for guidance, expected in {0.0: cond, -1.0: uncond}.items():
        denoise = guided_denoiser(model, condition, dataclasses.replace(FEW, guidance=guidance))
        assert torch.equal(denoise(x, sigma), expected)


@torch.no_grad()
def test_negative_text_takes_the_place_of_zeros() -> None:
    model, noise, condition = small_condition()
    negative = torch.randn_like(condition.text)
    x, sigma = 3 * noise, torch.tensor(3.0)
    cond = model.denoise(x, sigma, condition)
    against = model.denoise(x, sigma, dataclasses.replace(condition, text=negative))
    denoise = guided_denoiser(model, dataclasses.replace(condition, negative_text=negative), FEW)
    torch.testing.assert_close(denoise(x, sigma), cond + 7 * (cond - against), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(denoise(x, sigma), guided_denoiser(model, condition, FEW)(x, sigma), atol=1e-3)


@pytest.mark.parametrize(
    "name", ["predict1_trajectory", "predict2_video2world", "predict2_multiview", "predict2.5_camera"]
)
def test_branches_in_one_batch_or_in_turn(name: str) -> None:
    model, noise, condition = small_condition(name, batch=2)
    condition = dataclasses.replace(condition, negative_text=torch.randn_like(condition.text))
    calls = Calls(model)
    results = {}
    for mode in ("off", "on", "auto"):
        results[mode] = model.sample(noise, condition, settings_of(name, guidance=3.0, cfg_batch=mode))
    evaluations = num_evaluations(settings_of(name).solver, 4)
    assert calls.sizes == [2] * 2 * evaluations + [4] * 2 * evaluations  # short sequences share a batch
    assert torch.equal(results["on"], results["auto"])
    torch.testing.assert_close(results["on"], results["off"], rtol=1e-3, atol=1e-3)


def test_long_sequences_run_in_turn() -> None:
    from cosmos_predict.models import sampling

    model, noise, condition = small_condition()
    tokens = noise[0, 0].numel() // 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "BATCHED_GUIDANCE_TOKENS", tokens - 1)
        calls = Calls(model)
        model.sample(noise, condition, dataclasses.replace(FEW, cfg_batch="auto"))
    assert set(calls.sizes) == {1}


def test_one_mask_for_all_samples_in_one_batch() -> None:
    """Conditions may have a batch axis of one, whichever way the branches are evaluated."""
    model, noise, condition = small_condition(batch=2)
    assert condition.padding_mask is not None and condition.frames is not None
    frames = dataclasses.replace(condition.frames, mask=condition.frames.mask[:1])
    condition = dataclasses.replace(condition, padding_mask=condition.padding_mask[:1], frames=frames)
    results = [model.sample(noise, condition, dataclasses.replace(FEW, cfg_batch=mode)) for mode in ("on", "off")]
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("zero_text", "guidance", "branches"), [(False, 7.0, 2), (True, 7.0, 1), (False, 0.0, 1), (False, -1.0, 1)]
)
def test_branches_that_cannot_matter_are_not_evaluated(zero_text: bool, guidance: float, branches: int) -> None:
    """Action models are trained and sampled with zero text: one evaluation a step, and guidance has no effect."""
    name = "predict2_action"
    model, noise, condition = small_condition(name)
    if zero_text:
        condition = dataclasses.replace(condition, text=torch.zeros_like(condition.text))
    calls = Calls(model)
    out = model.sample(noise, condition, dataclasses.replace(FEW, guidance=guidance))
    assert len(calls.sizes) == branches * num_evaluations("2ab", 4) == branches * 5
    if zero_text:
        assert torch.equal(out, model.sample(noise, condition, dataclasses.replace(FEW, guidance=0.0)))


def test_equal_negative_text_is_one_branch() -> None:
    model, noise, condition = small_condition()
    calls = Calls(model)
    model.sample(noise, dataclasses.replace(condition, negative_text=condition.text.clone()), FEW)
    assert len(calls.sizes) == 5


@torch.no_grad()
def test_trajectory_guidance_has_three_branches() -> None:
    name = "predict1_trajectory"
    model, noise, condition = small_condition(name)
    x, sigma = 3 * noise, torch.tensor(3.0)
    zero_text = dataclasses.replace(condition, text=torch.zeros_like(condition.text))
    still = {**condition.signals, "trajectory": torch.zeros_like(condition.signals["trajectory"])}
    full, only = model.denoise(x, sigma, condition), model.denoise(x, sigma, zero_text)
    none = model.denoise(x, sigma, dataclasses.replace(zero_text, signals=still))
    settings = dataclasses.replace(FEW, branches=tuple(trajectory_branches(7.0, 2.0)))
    expected = full + 7 * (full - none) + 2 * (only - none)
    torch.testing.assert_close(guided_denoiser(model, condition, settings)(x, sigma), expected, rtol=1e-4, atol=1e-4)
    calls = Calls(model)
    model.sample(noise, condition, settings)
    assert len(calls.sizes) == 3 * 5
    calls.sizes.clear()
    model.sample(
        noise, dataclasses.replace(condition, signals=still), settings
    )  # no trajectory: its branch is the last one
    assert len(calls.sizes) == 2 * 5
    calls.sizes.clear()
    model.sample(noise, dataclasses.replace(zero_text, signals=still), settings)
    assert len(calls.sizes) == 5
    calls.sizes.clear()
    model.sample(noise, condition, dataclasses.replace(settings, cfg_batch="on"))
    assert calls.sizes == [3] * 5


def test_other_controls_stay_in_every_branch() -> None:
    """Dropping text keeps views, frame repeats, actions and cameras."""
    model, _noise, condition = small_condition("predict1_trajectory")
    dropped = condition.drop({"text"})
    assert not dropped.text.any()
    assert all(torch.equal(dropped.signals[key], value) for key, value in condition.signals.items())
    assert condition.drop(set()) is condition
    assert model.takes_frames and dropped.frames is condition.frames


# ---- settings and noise ----------------------------------------------------------------------------------------------


def test_published_settings() -> None:
    first, second, third = (SamplerSettings.for_family(family) for family in ("predict1", "predict2", "predict2.5"))
    assert (first.solver, second.solver, third.solver) == ("euler", "2ab", "unipc")
    assert all((s.num_steps, s.guidance) == (35, 7.0) for s in (first, second, third))
    sigmas = first.sigmas()
    assert len(sigmas) == 36 and float(sigmas[-1]) == 0
    assert float(sigmas[-2]) == pytest.approx(0.0002) and float(sigmas[0]) == pytest.approx(80)
    assert len(second.sigmas()) == 36 and float(second.sigmas()[-1]) == pytest.approx(0.002)
    assert len(dataclasses.replace(second, solver="2mid", num_steps=8).sigmas()) == 5
    flow = third.sigmas()
    assert len(flow) == 36 and float(flow[-1]) == 0
    karras = dataclasses.replace(third, shift=None, sigma_min=0.01, sigma_max=200.0).sigmas()
    assert len(karras) == 37 and float(karras[0]) == pytest.approx(200) and float(karras[-2]) == pytest.approx(0.01)
    assert dataclasses.replace(second, solver="distilled", num_steps=3).sigmas().tolist() == [80, 3.6, 1.5574, 0]


def test_noise_is_the_published_one() -> None:
    noise = seeded_noise((1, 2, 3), 5)
    assert noise.dtype == torch.float32 and noise.shape == (1, 2, 3)
    # numpy's legacy generator is frozen: these numbers hold on every machine.
    torch.testing.assert_close(noise.flatten()[:3], torch.tensor([0.44122748, -0.33087015, 2.43077119]))
    assert torch.equal(noise, seeded_noise((1, 2, 3), 5)) and not torch.equal(noise, seeded_noise((1, 2, 3), 6))


def test_the_default_settings_are_the_family_s() -> None:
    name = "predict1_text2world"
    model, noise, condition = small_condition(name)
    calls = Calls(model)
    model.sample(noise, condition)
    assert calls.sizes == [2] * 35


def test_distilled_noise() -> None:
    name = "predict2_text2image"
    model, noise, condition = small_condition(name)
    settings = SamplerSettings("distilled", num_steps=3, guidance=0.0)
    fresh = torch.randn(2, *noise.shape)
    with torch.no_grad():
        outputs = [sample(model, noise, condition, settings, fresh_noise=x) for x in (fresh, fresh, fresh + 1)]
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    assert torch.equal(model.sample(noise, condition, settings), model.sample(noise, condition, settings))


def test_refusals() -> None:
    model, noise, condition = small_condition()
    with pytest.raises(ConfigError, match="unknown solver 'rk4'; expected one of 2ab"):
        model.sample(noise, condition, SamplerSettings("rk4"))
    with pytest.raises(ConfigError, match="cfg_batch='always' is not 'auto', 'on' or 'off'"):
        model.sample(noise, condition, SamplerSettings(cfg_batch="always"))
    with pytest.raises(ConfigError, match="0 steps are too few for solver '2ab'"):
        model.sample(noise, condition, SamplerSettings(num_steps=0))


def test_branches_are_the_user_s_to_choose() -> None:
    model, noise, condition = small_condition()
    own = dataclasses.replace(FEW, branches=(Branch(1.0, frozenset({"text"})),))
    expected = model.sample(noise, condition, dataclasses.replace(FEW, guidance=-1.0))
    assert torch.equal(model.sample(noise, condition, own), expected)

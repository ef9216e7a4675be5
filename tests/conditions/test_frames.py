"""Given frames: masks, and what the two published strategies hand to the network."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_predict.conditions.frames import FrameAugment, FrameReplace, GivenFrames, first_frames_mask, view_mask
from cosmos_predict.diffusion.parameterization import EDM, RectifiedFlow
from cosmos_predict.errors import ConfigError

FLOW, EDM05 = RectifiedFlow(), EDM(0.5)


def frames_of(counts: list[int], **changes: Any) -> GivenFrames:
    torch.manual_seed(7)
    batch = len(counts)
    given = {"latent": torch.randn(batch, 4, 3, 2, 2), "mask": first_frames_mask(counts, 3), **changes}
    return GivenFrames(**given)


def wide(value: Tensor) -> Tensor:
    return value.reshape(-1, 1, 1, 1, 1)


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_first_frames() -> None:
    mask = first_frames_mask([0, 2, 5], 3)
    assert mask.shape == (3, 1, 3, 1, 1) and mask.dtype == torch.float32
    assert mask.flatten(1).tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert torch.equal(first_frames_mask(torch.tensor([0, 2, 5]), 3), mask)


def test_first_frames_of_every_view() -> None:
    mask = first_frames_mask([1, 0], 2, views=3)
    assert mask.flatten(1).tolist() == [[1, 0, 1, 0, 1, 0], [0] * 6]


def test_an_image_has_no_given_frame() -> None:
    assert not first_frames_mask([1, 1], 1).any()


def test_view_masks() -> None:
    def rows(locations: list[str], **options: Any) -> list[list[float]]:
        return view_mask(2, 2, 3, locations, **options)[:, 0, :, 0, 0].tolist()

    assert rows(["no_cam"], ref_view=1, num_frames_per_view=1) == [[0] * 6] * 2
    assert rows(["ref_cam"], ref_view=1) == [[0, 0, 1, 1, 0, 0]] * 2
    assert rows(["any_cam"], any_view=2) == [[0, 0, 0, 0, 1, 1]] * 2
    assert rows(["first_random_n"], num_frames_per_view=1) == [[1, 0] * 3] * 2
    assert rows(["ref_cam", "first_random_n"], ref_view=0, num_frames_per_view=1) == [[1, 1, 1, 0, 1, 0]] * 2


def test_view_masks_refuse() -> None:
    with pytest.raises(ConfigError, match="condition location 'first_n' is not one of no_cam, ref_cam"):
        view_mask(1, 2, 3, ["first_n"])
    with pytest.raises(ConfigError, match=r"'ref_cam' needs a view position in 0\.\.2, got -1"):
        view_mask(1, 2, 3, ["ref_cam"])
    with pytest.raises(ConfigError, match=r"'any_cam' needs a view position in 0\.\.2, got None"):
        view_mask(1, 2, 3, ["any_cam"])


# ---- Predict2: replace -----------------------------------------------------------------------------------------------


def test_replace_puts_clean_frames_in_and_gives_them_their_own_time() -> None:
    frames = frames_of([1, 2])
    x, sigma = torch.randn(2, 4, 3, 2, 2), torch.tensor([[3.0], [0.5]])
    seen = FrameReplace(1e-4).compose(x, sigma, frames, FLOW)
    assert torch.equal(seen.network_input[0, :, :1], frames.latent[0, :, :1])
    assert torch.equal(seen.network_input[1, :, :2], frames.latent[1, :, :2])
    torch.testing.assert_close(seen.network_input[0, :, 1:], x[0, :, 1:] / 4)
    torch.testing.assert_close(seen.network_input[1, :, 2:], x[1, :, 2:] / 1.5)
    own = 1e-4 / 1.0001
    torch.testing.assert_close(seen.c_noise, torch.tensor([[own, 0.75, 0.75], [own, own, 1 / 3]]))
    assert torch.equal(seen.state, x) and torch.equal(seen.region, frames.mask)
    assert torch.equal(seen.mask_channel, frames.mask)


def test_replace_reads_nothing_outside_the_mask() -> None:
    frames = frames_of([1, 2])
    x, sigma = torch.randn(2, 4, 3, 2, 2), torch.tensor([[3.0], [0.5]])
    expected = FrameReplace().compose(x, sigma, frames, FLOW).network_input
    frames.latent = frames.latent * frames.mask + 100 * (1 - frames.mask)
    assert torch.equal(FrameReplace().compose(x, sigma, frames, FLOW).network_input, expected)


def test_replace_takes_one_sigma_per_frame() -> None:
    frames = frames_of([1, 0])
    x, sigma = torch.randn(2, 4, 3, 2, 2), torch.rand(2, 3) + 0.1
    seen = FrameReplace().compose(x, sigma, frames, FLOW)
    t = sigma / (1 + sigma)
    torch.testing.assert_close(seen.c_noise[:, 1:], t[:, 1:])
    torch.testing.assert_close(seen.network_input[1], (x * (1 - t)[:, None, :, None, None])[1])


def test_replace_without_a_level_of_its_own() -> None:
    """Predict2.5's base models: given frames keep the clip's time."""
    frames = frames_of([1, 2])
    x, sigma = torch.randn(2, 4, 3, 2, 2), torch.tensor([[3.0], [0.5]])
    seen = FrameReplace(None).compose(x, sigma, frames, FLOW)
    torch.testing.assert_close(seen.c_noise, torch.tensor([[0.75] * 3, [1 / 3] * 3]))
    assert torch.equal(seen.network_input, FrameReplace().compose(x, sigma, frames, FLOW).network_input)


def test_replace_of_a_dropped_sample() -> None:
    """Its given frames are zero in the input; the mask channel, the time and the overwritten region stay."""
    keep = torch.tensor([1.0, 0.0])
    x, sigma = torch.randn(2, 4, 3, 2, 2), torch.tensor([[3.0], [0.5]])
    kept = FrameReplace().compose(x, sigma, frames_of([1, 2]), FLOW)
    seen = FrameReplace().compose(x, sigma, frames_of([1, 2], keep=keep), FLOW)
    assert torch.equal(seen.network_input[0], kept.network_input[0])
    assert not seen.network_input[1, :, :2].any()
    assert torch.equal(seen.network_input[1, :, 2:], kept.network_input[1, :, 2:])
    for name in ("c_noise", "mask_channel", "region"):
        assert torch.equal(getattr(seen, name), getattr(kept, name)), name


# ---- Predict1: augment -----------------------------------------------------------------------------------------------


def augmented(counts: list[int], level: list[float], **changes: Any) -> GivenFrames:
    frames = frames_of(counts, **changes)
    frames.augment_sigma = torch.tensor(level)
    frames.augment_noise = torch.randn_like(frames.latent)
    return frames


def test_augment_shows_given_frames_at_their_own_level() -> None:
    """After the network's own c_in, the region holds (x0 + sigma_a n) c_in(sigma_a)."""
    frames = augmented([1, 2], [0.1, 0.3])
    x, sigma = torch.randn(2, 4, 3, 2, 2), torch.tensor([[3.0], [0.7]])
    seen = FrameAugment().compose(x, sigma, frames, EDM05)
    assert frames.augment_noise is not None and frames.augment_sigma is not None
    noisy = frames.latent + wide(frames.augment_sigma) * frames.augment_noise
    own = noisy * wide(EDM05.scaling(frames.augment_sigma).c_in)
    torch.testing.assert_close(seen.network_input * frames.mask, own * frames.mask)
    outside = 1 - frames.mask
    torch.testing.assert_close(seen.network_input * outside, x * wide(EDM05.scaling(sigma).c_in) * outside)
    torch.testing.assert_close(seen.state * outside, x * outside)
    torch.testing.assert_close(seen.c_noise, sigma.log() / 4)
    assert torch.equal(seen.mask_channel, frames.mask) and torch.equal(seen.region, frames.mask)


def test_augment_at_the_state_s_own_level_is_plain_noising() -> None:
    frames = augmented([3, 3], [0.7, 0.7])
    sigma = torch.full((2, 1), 0.7)
    seen = FrameAugment().compose(torch.zeros(2, 4, 3, 2, 2), sigma, frames, EDM05)
    assert frames.augment_noise is not None
    torch.testing.assert_close(seen.state, frames.latent + 0.7 * frames.augment_noise)


def test_augment_without_noise_is_clean() -> None:
    frames, sigma = frames_of([2, 2]), torch.full((2, 1), 0.5)
    seen = FrameAugment().compose(torch.randn(2, 4, 3, 2, 2), sigma, frames, EDM05)
    torch.testing.assert_close(seen.network_input * frames.mask, 2 * frames.latent * frames.mask)  # c_in(0) = 1 / 0.5


@pytest.mark.parametrize("on_drop", ["zero", "noise"])
def test_augment_of_a_dropped_sample(on_drop: str) -> None:
    keep = torch.tensor([1.0, 0.0])
    x, sigma = torch.randn(2, 4, 3, 2, 2), torch.tensor([[3.0], [0.7]])
    kept = FrameAugment(on_drop).compose(x, sigma, augmented([1, 2], [0.1, 0.3]), EDM05)
    seen = FrameAugment(on_drop).compose(x, sigma, augmented([1, 2], [0.1, 0.3], keep=keep), EDM05)
    assert torch.equal(seen.state[0], kept.state[0])
    expected = torch.zeros_like(x[1, :, :2]) if on_drop == "zero" else x[1, :, :2]
    assert torch.equal(seen.state[1, :, :2], expected)
    assert not seen.mask_channel[1].any() and torch.equal(seen.mask_channel[0], kept.mask_channel[0])
    assert torch.equal(seen.region, kept.region)


def test_release_lets_go_below_the_augmentation_level() -> None:
    """Sampling: where the state is cleaner than the given frames, they are no longer imposed; the mask channel stays."""
    x, sigma = torch.randn(2, 4, 3, 2, 2), torch.tensor([[0.2], [0.05]])
    frames = augmented([1, 1], [0.1, 0.1], release=True)
    seen = FrameAugment().compose(x, sigma, frames, EDM05)
    assert torch.equal(seen.region[0], frames.mask[0]) and not seen.region[1].any()
    assert torch.equal(seen.state[1], x[1]) and not torch.equal(seen.state[0], x[0])
    assert torch.equal(seen.mask_channel, frames.mask)
    equal = FrameAugment().compose(x, torch.full((2, 1), 0.1), frames, EDM05)
    assert not equal.region.any()
    held = FrameAugment().compose(x, sigma, augmented([1, 1], [0.1, 0.1]), EDM05)
    assert torch.equal(held.region, frames.mask)


def test_normalized_latents() -> None:
    """Each given frame and channel gets mean 0 and (unbiased) standard deviation 1 over space."""
    frames, sigma = frames_of([3, 3]), torch.full((2, 1), 0.5)
    frames.latent = 3 * frames.latent + 5
    seen = FrameAugment(normalize_latent=True).compose(torch.zeros(2, 4, 3, 2, 2), sigma, frames, EDM05)
    latent = seen.network_input / 2
    torch.testing.assert_close(latent.mean((-2, -1)), torch.zeros(2, 4, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(latent.std((-2, -1)), torch.ones(2, 4, 3), atol=1e-5, rtol=0)


def test_the_network_learns_the_level_of_given_frames() -> None:
    frames = augmented([1, 0], [0.1, 0.3])
    assert FrameAugment().signals(frames, EDM05) == {}
    assert FrameAugment(condition_on_augment_sigma=True).signals(frames_of([1, 0]), EDM05) == {}
    told = FrameAugment(condition_on_augment_sigma=True).signals(frames, EDM05)["augment_sigma"]
    torch.testing.assert_close(told, torch.tensor([0.1, 1.0]).log() / 4)  # nothing given: 0


@pytest.mark.parametrize("strategy", [FrameReplace(), FrameAugment(), FrameAugment("noise", True)], ids=str)
def test_samples_are_independent(strategy: Any) -> None:
    parameterization = FLOW if isinstance(strategy, FrameReplace) else EDM05
    x, sigma = torch.randn(2, 4, 3, 2, 2), torch.tensor([[3.0], [0.7]])
    frames = augmented([1, 2], [0.1, 0.3], keep=torch.tensor([1.0, 0.0]))
    together = strategy.compose(x, sigma, frames, parameterization)
    for i in range(2):
        one = GivenFrames(**{k: v[i : i + 1] if isinstance(v, Tensor) else v for k, v in vars(frames).items()})
        alone = strategy.compose(x[i : i + 1], sigma[i : i + 1], one, parameterization)
        for name, value in vars(alone).items():
            assert torch.equal(value[0], getattr(together, name)[i]), name


def test_unknown_drop() -> None:
    with pytest.raises(ConfigError, match="on_condition_drop='zeros' is not 'zero' or 'noise'"):
        FrameAugment("zeros")

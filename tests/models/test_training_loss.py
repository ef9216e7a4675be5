"""The training loss: a function of the weights, the samples, the seed and their sample numbers, and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_predict.errors import DataError
from cosmos_predict.models.world_model import WorldModel
from tests.models.small import cut, small_batch, small_model
from tests.networks.variants import VARIANTS, replace_sample

NUMBERS = list(range(4000))


def gradients(model: WorldModel, batch: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    model.zero_grad()
    model.training_loss(batch, seed).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- independence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_a_sample_ignores_its_neighbour(name: str) -> None:
    """Its draws, its noisy state, its prediction and its loss, bit for bit, while everything of the neighbour changes."""
    model = small_model(name)
    batch, other = small_batch(name, seed=1), small_batch(name, seed=2)
    with torch.no_grad():
        one, mixed = model.training_loss(batch), model.training_loss(replace_sample(batch, other, 0))
    for key in ("sigma", "weight", "xt", "x0_pred", "edm_loss_per_frame"):
        first, second = getattr(one, key), getattr(mixed, key)
        assert torch.equal(first[1], second[1]), key
        assert not torch.equal(first[0], second[0]), key


@pytest.mark.parametrize("name", VARIANTS)
def test_order_and_split_of_a_batch_do_not_matter(name: str) -> None:
    """Loss and gradient of a batch of two are the means of two batches of one: accumulation changes nothing."""
    model = small_model(name, video_condition_dropout=0.3)
    batch = small_batch(name)
    together = model.training_loss(batch)
    swapped = model.training_loss(cut(batch, 1, 0))
    parts = [model.training_loss(cut(batch, i)) for i in range(2)]
    torch.testing.assert_close(swapped.loss, together.loss, rtol=1e-6, atol=0)
    assert torch.equal(swapped.xt, together.xt[[1, 0]])
    torch.testing.assert_close((parts[0].loss + parts[1].loss) / 2, together.loss, rtol=1e-6, atol=0)
    for i, part in enumerate(parts):
        assert torch.equal(part.xt[0], together.xt[i])
        torch.testing.assert_close(part.edm_loss_per_frame[0], together.edm_loss_per_frame[i], rtol=1e-5, atol=1e-6)
    whole, halves = gradients(model, batch), [gradients(model, cut(batch, i)) for i in range(2)]
    for key, value in whole.items():
        mean = (halves[0][key] + halves[1][key]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-3, atol=1e-4 * float(value.abs().max()) + 1e-12, msg=key)


@pytest.mark.parametrize("name", ["predict1_video2world", "predict2_video2world", "predict2.5_base"])
def test_draws_follow_seed_and_sample_number_only(name: str) -> None:
    model, batch = small_model(name), small_batch(name)
    with torch.no_grad():
        first = model.training_loss(batch, seed=3)
        torch.manual_seed(1234)
        torch.rand(7)
        assert torch.equal(model.training_loss(batch, seed=3).loss, first.loss)
        for changed in (
            model.training_loss(batch, seed=4),
            model.training_loss({**batch, "sample_number": batch["sample_number"] + 1}, seed=3),
        ):
            assert not torch.equal(changed.xt, first.xt) and not torch.equal(changed.sigma, first.sigma)
        listed = model.training_loss({**batch, "sample_number": batch["sample_number"].tolist()}, seed=3)
        assert torch.equal(listed.loss, first.loss)
        # The draws belong to the number, not to the place: number 1 has the same noise and level in another batch.
        moved = model.training_loss({**batch, "sample_number": torch.tensor([1, 0])}, seed=3)
    assert torch.equal(moved.sigma, first.sigma[[1, 0]])
    noise = (first.xt - _clean(model, batch)) / _wide(first.sigma)
    moved_noise = (moved.xt - _clean(model, batch)) / _wide(moved.sigma)
    torch.testing.assert_close(moved_noise, noise[[1, 0]], rtol=1e-3, atol=1e-3)


def _clean(model: WorldModel, batch: dict[str, Any]) -> Tensor:
    return batch["latent"] * model.parameterization.sigma_data


def _wide(sigma: Tensor) -> Tensor:
    return sigma.reshape(-1, 1, 1, 1, 1)


# ---- draws -----------------------------------------------------------------------------------------------------------


def drawn(name: str, numbers: list[int] = NUMBERS, **options: Any) -> tuple[WorldModel, Any]:
    """Return a model and the conditions it draws for many samples of 4 one-pixel latent frames."""
    model = small_model(name, **options)
    frames = 4 * VARIANTS[name].views
    x0 = torch.zeros(len(numbers), 1, frames, 1, 1)
    batch = {"latent": x0, "t5_text_embeddings": torch.ones(len(numbers), 1, 1)}
    latent, condition = model.prepare(batch)
    return model, model.draw_conditions(0, numbers, latent, condition)


def test_text_dropout_frequency() -> None:
    for probability in (0.0, 0.2, 1.0):
        kept = drawn("predict2_video2world", text_dropout=probability)[1].text[:, 0, 0]
        assert set(kept.tolist()) <= {0.0, 1.0}
        assert abs(float(kept.mean()) - (1 - probability)) < 0.025
    text = drawn("predict2_video2world", text_dropout=0.5)[1].text
    assert torch.equal(drawn("predict2_video2world", [5, 17], text_dropout=0.5)[1].text, text[[5, 17]])


def test_condition_dropout_is_its_own_draw() -> None:
    condition = drawn("predict2_video2world", text_dropout=0.5, video_condition_dropout=0.5)[1]
    text, keep = condition.text[:, 0, 0], condition.frames.keep
    assert abs(float(keep.mean()) - 0.5) < 0.03
    assert abs(float((text == keep).float().mean()) - 0.5) < 0.03


def test_number_of_given_frames() -> None:
    def shares(**options: Any) -> list[float]:
        counts = drawn("predict2_video2world", **options)[1].frames.mask.flatten(1).sum(1)
        return [float((counts == n).float().mean()) for n in range(5)]

    assert shares() == pytest.approx([0, 0.5, 0.5, 0, 0], abs=0.03)  # one or two, as published
    assert shares(min_num_conditional_frames=0) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0], abs=0.03)
    assert shares(min_num_conditional_frames=3, max_num_conditional_frames=9) == [
        0,
        0,
        0,
        1,
        0,
    ]  # one is left to predict
    assert shares(conditional_frames_probs=(0.5, 0.25, 0.25)) == pytest.approx([0.5, 0.25, 0.25, 0, 0], abs=0.03)
    assert shares(conditional_frames_probs=(0, 0, 0, 0, 0, 1.0)) == [0, 0, 0, 1, 0]


def test_given_frames_of_every_view() -> None:
    mask = drawn("predict2_multiview", [0, 1, 2, 3])[1].frames.mask.unflatten(2, (2, 4))
    assert torch.equal(mask[:, :, 0], mask[:, :, 1])


def test_the_batch_may_say_how_many_frames_are_given() -> None:
    model, batch = small_model(), small_batch()
    batch["num_conditional_frames"] = torch.tensor([2, 0])
    out = model.training_loss(batch)
    assert out.denoised.mask_channel is not None
    assert out.denoised.mask_channel[:, 0, :, 0, 0].tolist() == [[1, 1, 0], [0, 0, 0]]
    assert out.edm_loss_per_frame[0, :2].tolist() == [0, 0] and bool((out.edm_loss_per_frame[1] > 0).all())


def test_networks_without_a_mask_channel_draw_none() -> None:
    assert drawn("predict1_text2world", [0, 1])[1].frames is None


def levels(name: str, frames: int = 4, **options: Any) -> Tensor:
    model = small_model(name, **options)
    batch = {"latent": torch.zeros(1, 1, frames, 1, 1), "t5_text_embeddings": torch.ones(1, 1, 1)}
    return model.draw_sigma(0, NUMBERS, *model.prepare(batch))[:, 0]


def test_noise_levels_of_rectified_flow() -> None:
    plain = levels("predict2_video2world", adjust_video_noise=False)
    assert abs(float(plain.log().mean())) < 0.05 and abs(float(plain.log().std()) - 1) < 0.05
    torch.testing.assert_close(levels("predict2_video2world"), 2 * plain)  # sqrt of 4 latent frames
    torch.testing.assert_close(levels("predict2_video2world", frames=1), plain)  # an image
    torch.testing.assert_close(levels("predict2_multiview", frames=8), 2 * plain)  # frames of one view
    shifted = levels("predict2_video2world", adjust_video_noise=False, p_mean=1.0, p_std=0.5)
    torch.testing.assert_close(shifted, torch.exp(1 + 0.5 * plain.log()), rtol=1e-4, atol=1e-4)


def test_high_noise_levels_of_videos_only() -> None:
    high = levels("predict2_video2world", high_sigma_ratio=0.05)
    share = float((high >= 200).float().mean())
    assert abs(share - 0.05) < 0.015 and float(high.max()) <= 1e5
    assert torch.equal(
        levels("predict2_video2world", frames=1, high_sigma_ratio=0.05), levels("predict2_video2world", frames=1)
    )


def test_noise_levels_of_predict25() -> None:
    """sigma = shift * s / (1 - s) at a logit-normal place s: the median is the shift, 5."""
    sigma = levels("predict2.5_base")
    assert abs(float(sigma.median()) / 5 - 1) < 0.1
    assert (
        float(
            (
                levels("predict2.5_base", high_sigma_ratio=1.0) / (1 + levels("predict2.5_base", high_sigma_ratio=1.0))
            ).min()
        )
        >= 0.98
    )


# ---- the value -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["predict2_video2world", "predict2.5_base", "predict2_multiview"])
def test_rectified_flow_loss_is_the_velocity_error(name: str) -> None:
    """Mean over all elements of (F - (noise - x0))^2, given frames counting as zero, times the scale."""
    model, batch = small_model(name, loss_scale=10.0), small_batch(name)
    seen: list[Tensor] = []
    model.net.register_forward_hook(lambda _m, _i, out: seen.append(out))
    out = model.training_loss(batch)
    x0 = batch["latent"]
    noise = (out.xt.double() - x0) / _wide(out.sigma).double()
    assert out.denoised.mask_channel is not None
    error = ((seen[0] - (noise - x0)) ** 2) * (1 - out.denoised.mask_channel)
    torch.testing.assert_close(out.loss.double(), 10 * error.mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(out.edm_loss * 10, out.loss.detach())
    torch.testing.assert_close(out.edm_loss_per_frame.mean(), out.edm_loss)


def test_sums_and_scales() -> None:
    batch = small_batch()
    mean = small_model(loss_scale=1.0).training_loss(batch).loss
    torch.testing.assert_close(small_model(loss_scale=3.0).training_loss(batch).loss, 3 * mean)
    torch.testing.assert_close(small_model(loss_scale=1.0, loss_reduce="sum").training_loss(batch).loss, 16 * mean)
    name = "predict1_video2world"
    batch = small_batch(name)
    mean = small_model(name, loss_scale=1.0).training_loss(batch).loss
    total = small_model(name, loss_scale=1.0, loss_reduce="sum").training_loss(batch).loss
    torch.testing.assert_close(total, mean * batch["latent"][0].numel())


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_log_variance_learns(reduce: str) -> None:
    name = "predict1_video2world"
    model = small_model(name, loss_add_logvar=True, loss_reduce=reduce, loss_scale=1.0)
    batch = small_batch(name)
    out = model.training_loss(batch)
    out.loss.backward()
    assert model.logvar is not None and out.logvar is not None and out.logvar.shape == (2, 1)
    weight = model.logvar.get_parameter("1.weight")
    assert weight.grad is not None and bool(weight.grad.any())
    assert {key for key in model.state_dict() if key.startswith("logvar")} == {
        "logvar.0.freqs",
        "logvar.0.phases",
        "logvar.1.weight",
    }
    plain = out.edm_loss_per_frame.mean(1)
    count = batch["latent"][0].numel() if reduce == "sum" else 1
    expected = (plain * torch.exp(-out.logvar[:, 0]) + out.logvar[:, 0]).mean() * count
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-5)
    assert small_model(name).logvar is None


def test_loss_of_the_condition_region() -> None:
    """Predict1's option: given frames are scored too, as long as the network sees them noisy."""
    name = "predict1_video2world"
    batch = {**small_batch(name), "num_conditional_frames": torch.tensor([1, 2])}
    without = small_model(name).training_loss(batch)
    scored = small_model(name, compute_loss_for_condition_region=True).training_loss(batch)
    given = without.denoised.mask_channel
    assert given is not None
    rows = given[:, 0, :, 0, 0] > 0
    assert not without.edm_loss_per_frame[rows].any() and bool((scored.edm_loss_per_frame[rows] > 0).all())
    assert torch.equal(without.edm_loss_per_frame[~rows], scored.edm_loss_per_frame[~rows])


def test_dropped_conditioning_still_costs_nothing_in_its_region() -> None:
    name = "predict1_video2world"
    batch = {**small_batch(name), "num_conditional_frames": torch.tensor([1, 2])}
    out = small_model(name, video_condition_dropout=1.0).training_loss(batch)
    assert out.denoised.mask_channel is not None and not out.denoised.mask_channel.any()
    assert out.edm_loss_per_frame[0, 0] == 0 and not out.edm_loss_per_frame[1, :2].any()
    assert not out.denoised.state[0, :, 0].any()


def test_images() -> None:
    """One latent frame: no given frames, no multiplier, and the same loss from networks with and without the mask channel."""
    batch = small_batch()
    batch["latent"] = batch["latent"][:, :, :1]
    out = small_model().training_loss(batch)
    assert out.denoised.mask_channel is None and bool(out.loss.isfinite())
    assert bool((out.edm_loss_per_frame > 0).all())


def test_refusals() -> None:
    model, batch = small_model(), small_batch()
    for key, message in {
        "sample_number": r"a training batch needs 'sample_number' \(B,\)",
        "t5_text_embeddings": "a batch needs 't5_text_embeddings'; it has fps, latent, padding_mask, sample_number",
        "latent": "a batch needs 'video' or 'latent'; it has fps, padding_mask",
    }.items():
        with pytest.raises(DataError, match=message):
            model.training_loss({name: value for name, value in batch.items() if name != key})

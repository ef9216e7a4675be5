"""What one sample gets never depends on its neighbours in the batch, in every kind of network; and every input matters."""

import pytest
import torch
from torch import Tensor

from cosmos_predict.conditions.action import ActionControl
from tests.networks.variants import VARIANTS, build_variant, replace_sample, take_sample


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_sample_ignores_its_neighbour_bit_for_bit(name: str) -> None:
    variant = VARIANTS[name]
    net = build_variant(variant)
    inputs, other = variant.inputs(seed=1), variant.inputs(seed=2)
    out = net(**inputs)
    mixed = net(**replace_sample(inputs, other, 0))
    assert out.isfinite().all() and out.std() > 0.05
    assert torch.equal(out[1], mixed[1])
    assert not torch.allclose(out[0], mixed[0], atol=1e-2)
    torch.testing.assert_close(net(**take_sample(inputs, 1))[0], out[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_every_input_of_a_sample_reaches_its_output(name: str) -> None:
    variant = VARIANTS[name]
    net = build_variant(variant)
    inputs, other = variant.inputs(seed=1), variant.inputs(seed=2)
    out = net(**inputs)
    for key in inputs:
        if not isinstance(inputs[key], Tensor) or key == "fps":
            continue
        one = replace_sample({**inputs}, {**inputs, key: other[key]}, 1)
        changed = net(**one)
        assert torch.equal(changed[0], out[0]), key
        assert not torch.equal(changed[1], out[1]), key


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_every_weight_that_has_an_effect(name: str) -> None:
    """The published networks hold a few weights without effect (named here); all others learn."""
    variant = VARIANTS[name]
    net = build_variant(variant)
    net(**variant.inputs()).square().mean().backward()
    silent = {key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    expected = set()
    if name == "predict1_action":  # Predict1's D-wide action embedding is never used
        expected = {key for key, _ in net.named_parameters() if key.startswith("action_embedder_B_D")}
    if name == "predict1_augment_sigma":  # only the sinusoid of its embedder is used
        expected = {key for key, _ in net.named_parameters() if key.startswith("augment_sigma_embedder")}
    assert silent == expected


@torch.no_grad()
def test_given_frames_get_no_action() -> None:
    """Predict2.5: an action acts on the latent frames it leads to, unless they are given; frame 0 never has one."""
    variant = VARIANTS["predict2.5_action"]
    net = build_variant(variant)
    control = variant.config.controls[0]
    assert isinstance(control, ActionControl)
    inputs = variant.inputs()
    inputs["condition_mask"] = torch.zeros(2, 1, 3, 1, 1)
    inputs["condition_mask"][0, :, :2] = 1  # sample 0: frames 0 and 1 are given
    out = net(**inputs)
    changed = inputs["action"].clone()
    changed[:, : control.chunk] += 1  # the actions that lead to latent frame 1
    other = net(**{**inputs, "action": changed})
    assert torch.equal(out[0], other[0])
    assert not torch.equal(out[1], other[1])

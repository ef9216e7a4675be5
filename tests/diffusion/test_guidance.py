"""The algebra of guidance branches."""

from __future__ import annotations

import pytest
import torch

from cosmos_predict.diffusion.guidance import Branch, cfg_branches, combine, merge_branches, trajectory_branches

TEXT, BOTH = frozenset({"text"}), frozenset({"text", "trajectory"})


def test_text_guidance_is_the_published_formula() -> None:
    cond, uncond = torch.randn(2, 1, 4, 2, 3, 3)
    branches = cfg_branches(7.0)
    assert branches == [Branch(8.0), Branch(-7.0, TEXT)]
    torch.testing.assert_close(combine([cond, uncond], branches), cond + 7 * (cond - uncond), rtol=1e-5, atol=1e-5)


def test_trajectory_guidance_is_the_published_formula() -> None:
    cond, uncond, trajectory_only = torch.randn(3, 1, 4, 2, 3, 3)
    branches = trajectory_branches(7.0, 2.0)
    assert [branch.drop for branch in branches] == [frozenset(), BOTH, TEXT]
    expected = cond + 7 * (cond - uncond) + 2 * (trajectory_only - uncond)
    torch.testing.assert_close(combine([cond, uncond, trajectory_only], branches), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 7.0])
def test_weights_sum_to_one(guidance: float) -> None:
    for branches in (cfg_branches(guidance), trajectory_branches(guidance, 3.0)):
        assert sum(branch.weight for branch in branches) == pytest.approx(1)


def test_branches_that_cannot_matter_are_left_out() -> None:
    assert cfg_branches(0.0) == [Branch(1.0)]
    assert cfg_branches(-1.0) == [Branch(1.0, TEXT)]  # unconditional generation
    assert [branch.drop for branch in trajectory_branches(7.0, 0.0)] == [frozenset(), BOTH]
    # A model without text input: dropping text changes nothing, one evaluation is enough.
    assert merge_branches(cfg_branches(7.0), droppable=()) == [Branch(1.0)]
    assert merge_branches(trajectory_branches(7.0, 2.0), droppable={"text"}) == [Branch(8.0), Branch(-7.0, TEXT)]
    output = torch.randn(2, 3)
    assert combine([output], cfg_branches(0.0)) is output


def test_low_precision_outputs_are_combined_in_float32() -> None:
    cond, uncond = torch.randn(2, 1, 4, 2, 3, 3).bfloat16()
    guided = combine([cond, uncond], cfg_branches(7.0))
    assert guided.dtype == torch.float32
    torch.testing.assert_close(guided, 8 * cond.float() - 7 * uncond.float())
    assert combine([cond.double(), uncond.double()], cfg_branches(7.0)).dtype == torch.float64


def test_one_output_per_branch() -> None:
    with pytest.raises(ValueError, match="got 1 outputs for 2 branches; expected one per branch"):
        combine([torch.zeros(1)], cfg_branches(7.0))
    with pytest.raises(ValueError, match="got 0 outputs for 0 branches"):
        combine([], [])

"""Classifier-free guidance (Ho & Salimans 2022) as a weighted sum of branches.

A branch is one evaluation of the network with some conditions dropped. Published guidance g means

    x0 = cond + g * (cond - uncond) = (1 + g) * cond - g * uncond

so g = 0 is no guidance and g = 7 is 8 in the other usual convention. What dropping a condition means (zeros, a negative
prompt) is decided where the branches are evaluated. The weights of a set of branches sum to 1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """One evaluation: its weight in the sum and the names of the conditions that it drops."""

    weight: float
    drop: frozenset[str] = frozenset()


def cfg_branches(guidance: float) -> list[Branch]:
    """Return the branches of text guidance; with guidance 0 the conditional one alone."""
    return merge_branches([Branch(1 + guidance), Branch(-guidance, frozenset({"text"}))])


def trajectory_branches(guidance: float, trajectory_guidance: float) -> list[Branch]:
    """Return the branches of cond + g (cond - uncond) + g2 (trajectory only - uncond), `uncond` dropping both."""
    text, both = frozenset({"text"}), frozenset({"text", "trajectory"})
    uncond, trajectory_only = Branch(-guidance - trajectory_guidance, both), Branch(trajectory_guidance, text)
    return merge_branches([Branch(1 + guidance), uncond, trajectory_only])


def merge_branches(branches: Sequence[Branch], droppable: Collection[str] | None = None) -> list[Branch]:
    """Return as few branches as give the same sum: equal ones added up, those of weight 0 left out.

    droppable: the conditions whose dropping changes the network's input at all; None means every condition. A model
    whose text is always zeros has no "text" in it, so its text guidance is one branch of weight 1.
    """
    weights: dict[frozenset[str], float] = {}
    for branch in branches:
        drop = branch.drop if droppable is None else branch.drop & frozenset(droppable)
        weights[drop] = weights.get(drop, 0.0) + branch.weight
    return [Branch(weight, drop) for drop, weight in weights.items() if weight != 0]


def combine(outputs: Sequence[Tensor], branches: Sequence[Branch]) -> Tensor:
    """Return the guided output: sum over branches of weight * output, outputs (B, C, T, H, W) in the branches' order.

    In float32 at least: large weights of opposite sign cancel. Computed as the first output plus weighted differences from
    it, so that where all branches agree (given frames) their value comes out exactly. Raises ValueError when the counts
    differ or are zero.
    """
    if len(outputs) != len(branches) or not outputs:
        raise ValueError(f"guidance got {len(outputs)} outputs for {len(branches)} branches; expected one per branch")
    if len(branches) == 1 and branches[0].weight == 1:
        return outputs[0]
    dtype = torch.promote_types(outputs[0].dtype, torch.float32)
    first = total = outputs[0].to(dtype)
    for output, branch in zip(outputs[1:], branches[1:], strict=True):
        total = total.add(output.to(dtype) - first, alpha=branch.weight)
    excess = sum(branch.weight for branch in branches) - 1
    return total.add(first, alpha=excess) if abs(excess) > 1e-9 else total

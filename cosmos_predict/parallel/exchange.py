"""Collectives that autograd goes through: an exchange, and the one that its gradient takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Exchange = Callable[[Tensor, dist.ProcessGroup], Tensor]


def adjoint(there: Exchange, back: Exchange) -> Exchange:
    """Return `there` with `back` as its backward."""

    class Pair(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
            ctx.group = group
            return there(x, group)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
            return back(gradients[0], ctx.group), None

    return Pair.apply  # type: ignore[return-value]


def stacked(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return x of all ranks: `(ranks, *x.shape)`."""
    out = x.new_empty(group.size(), *x.shape)
    dist.all_gather_into_tensor(out.view(-1), x.contiguous().view(-1), group=group)
    return out

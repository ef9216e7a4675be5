"""Clipping of gradients by their global norm, for plain tensors and DTensors together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_predict.errors import ConfigError
from cosmos_predict.parallel.shards import divided_over, lay_like, own


class ClipResult(NamedTuple):
    """`total_norm`: norm of all gradients before clipping. `skip_step`: it is not finite, and the optimizer must not
    step.
    """

    total_norm: float
    skip_step: bool


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[Tensor], max_norm: float = 1.0, norm_type: float = 2.0, force_finite: bool = False
) -> ClipResult:
    """Multiply all gradients in place by min(1, max_norm / (norm + 1e-6)), norm being that of all of them as one
    vector.

    A norm that is not finite leaves the gradients alone and asks to skip the step; every rank of the tensors' meshes
    gets the same answer. The norm is computed in float32 per tensor and combined in float64.

    Args:
        parameters: tensors whose `.grad` is clipped; those without one are passed over.
        max_norm: the largest norm that passes unchanged; inf only measures.
        norm_type: p of the norm, inf for the largest absolute entry.
        force_finite: first set NaN and infinite entries to 0, as the published callback does. It hides a broken
            sample or a diverging run, so it is off by default.
    """
    if not max_norm > 0 or not norm_type > 0:
        raise ConfigError(f"clip_norm={max_norm} and norm_type={norm_type} must be positive")
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    if not trained:
        return ClipResult(0.0, False)
    local = [own(parameter.grad) for parameter in trained]  # type: ignore[arg-type]
    if force_finite:
        for tensor in local:
            torch.nan_to_num_(tensor, nan=0.0, posinf=0.0, neginf=0.0)
    # A gradient that is a sum of the ranks' parts is added up for its norm.
    total = _global_norm([lay_like(parameter.grad, parameter) for parameter in trained], norm_type)  # type: ignore[arg-type]
    if not math.isfinite(total):
        return ClipResult(total, True)
    coefficient = max_norm / (total + 1e-6)
    if coefficient < 1:
        torch._foreach_mul_(local, coefficient)
    return ClipResult(total, False)


def _global_norm(gradients: list[Tensor], norm_type: float) -> float:
    """Return the norm of all gradients as one vector; one reduction per kind of sharding, one read from the device."""
    kinds: dict[tuple, list[Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault((divided_over(gradient), gradient.device, gradient.dtype), []).append(own(gradient))

    largest = math.isinf(norm_type)
    parts: list[Tensor] = []
    for (groups, device, dtype), tensors in kinds.items():
        # An empty local shard has no largest entry.
        held = [tensor for tensor in tensors if tensor.numel()] or [torch.zeros(1, dtype=dtype, device=device)]
        # To name float32 costs a third, even where it is so.
        norms = torch.stack(torch._foreach_norm(held, norm_type, None if dtype == torch.float32 else torch.float32))
        part = norms.double().max() if largest else norms.double().pow(norm_type).sum()
        for group in groups:
            dist.all_reduce(part, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=group)
        parts.append(part.to(gradients[0].device))
    total = torch.stack(parts)
    return float(total.max() if largest else total.sum().pow(1 / norm_type))

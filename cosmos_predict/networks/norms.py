"""RMSNorm with rotation, and modulated LayerNorm: one autograd function each, which keeps its input and computes the rest again.

Autograd's own record of these formulas would hold the normalised tensor too, one `(B, N, D)` per norm and six per block.
Products and statistics are in float32, or in x's dtype where that is wider.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cosmos_predict.networks.rope import apply_rope

EPS = 1e-6
RopeTable = tuple[Tensor, Tensor]


def wide(x: Tensor) -> Tensor:
    """Return x in float32; float32 and float64 stay as they are, without a copy."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last axis (eps 1e-6), for queries and keys followed by the rotary embedding."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, rope: RopeTable | None = None) -> Tensor:
        """Return x `(..., dim)` normalised; with rope, x `(B, N, heads, dim)` normalised and rotated. Dtype of x."""
        return _NormRotate.apply(x, self.weight, *(rope or (None, None)))


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        rstd = norm.square_().div_(x.shape[-1]).add_(EPS).rsqrt_()
        ctx.save_for_backward(x, rstd, weight, cos, sin)
        out = (wide(x) * rstd).mul_(wide(weight))
        return (out if cos is None or sin is None else apply_rope(out, (cos, sin))).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, rstd, weight, cos, sin = ctx.saved_tensors
        grad = wide(grad) if cos is None else apply_rope(wide(grad), (cos, -sin))
        normed = wide(x) * rstd
        product = grad * normed
        weight_grad = product.flatten(0, -2).sum(0)
        # d/dx of x * rstd: the part of the gradient along x itself falls away.
        along = product.mul_(wide(weight)).mean(-1, keepdim=True)
        x_grad = torch.mul(grad, wide(weight), out=product).sub_(normed.mul_(along)).mul_(rstd)
        return x_grad.to(x.dtype), weight_grad.to(weight.dtype), None, None


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return `LayerNorm(x) * (1 + scale) + shift` for x `(B, N, D)` and per-frame shift, scale `(B, F, D)` (eps 1e-6)."""
    return _Modulate.apply(x, shift, scale)


class _Modulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        out = F.layer_norm(x, x.shape[-1:], eps=EPS)
        rows = out.unflatten(1, (scale.shape[1], -1))
        torch.addcmul(shift.unsqueeze(2), rows, 1 + scale.unsqueeze(2), out=rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, scale = ctx.saved_tensors
        frames = (scale.shape[1], -1)
        normed, mean, rstd = torch.native_layer_norm(wide(x), x.shape[-1:], None, None, EPS)
        grads, rows = wide(grad).unflatten(1, frames), normed.unflatten(1, frames)
        shift_grad = grads.sum(2)
        scale_grad = rows.mul_(grads).sum(2)
        torch.mul(grads, 1 + wide(scale).unsqueeze(2), out=rows)  # `normed` is now its own gradient
        x_grad, _, _ = torch.ops.aten.native_layer_norm_backward(
            normed, wide(x), x.shape[-1:], mean, rstd, None, None, [True, False, False]
        )
        return x_grad.to(x.dtype), shift_grad.to(scale.dtype), scale_grad.to(scale.dtype)

"""Context parallelism: each rank of a group holds a contiguous part of the latent frames of every view.

Everything in the network is local to a token except self-attention, which exchanges its inputs with an all-to-all: from
"some tokens, all heads" to "all tokens, some heads" and back (Ulysses). Attention does not depend on the order of its
tokens, so the gathered order (rank-major) needs no repair; each token brings its own rotary angles from the split
table.

Sources: Cosmos-Predict2 context_parallel.py and a2a_cp.py, re-derived from their description.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.dit import DiT
from cosmos_predict.parallel.exchange import adjoint, stacked
from cosmos_predict.parallel.mesh import divisors

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class ContextParallel:
    """The `sequence_split` of a DiT over the ranks of `group`: frames of every view, contiguous parts. Images stay whole.

    Every rank is given the whole input and gets the whole output, so every rank computes the same loss; averaging
    parameter gradients over the ranks (as FSDP does over all) then gives exactly the gradient of that loss.
    """

    def __init__(self, group: dist.ProcessGroup, num_heads: int, tensor: int = 1) -> None:
        self.group, self.num_heads, self.tensor = group, num_heads, tensor
        self.active, self.views = False, 1

    def begin(self, data_type: str, frames: int, views: int) -> bool:
        """Start a forward; return whether it is divided. Raises ConfigError for frames or heads that do not divide."""
        self.active, self.views = data_type == "video", views
        if self.active:
            check_context_parallel(self.group.size(), frames, self.num_heads, self.tensor)
        return self.active

    def split(self, x: Tensor, dim: int) -> Tensor:
        return split_sequence(x, self.group.rank(), self.group.size(), dim, self.views)

    def gather(self, x: Tensor, dim: int) -> Tensor:
        return gather_sequence(x, self.group, dim, self.views)

    def wrap(self, attention: Attention) -> Attention:
        """Return `attention` over the whole sequence for q, k, v of this rank's part of it."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return ulysses_attention(q, k, v, self.group if self.active else None, attention)

        return attend


def apply_context_parallel(net: DiT, group: dist.ProcessGroup | None, tensor: int = 1) -> None:
    """Make `net` divide videos over the ranks of `group`; nothing for None or a group of one. tensor: ranks that already
    share the heads.
    """
    if group is None or group.size() == 1:
        return
    split = ContextParallel(group, net.config.num_heads, tensor)
    net.sequence_split = split
    for block in net.blocks:
        attention = block.get_submodule("self_attn")
        attention.attention = split.wrap(attention.attention)  # type: ignore[assignment]


def check_context_parallel(cp_size: int, latent_frames: int, num_heads: int, tensor: int = 1) -> None:
    """Raise ConfigError, naming the sizes that fit, unless `cp_size` divides a view's latent frames and the heads, or what
    tensor parallelism over `tensor` ranks leaves of them to each.
    """
    heads = num_heads // tensor
    if cp_size >= 1 and latent_frames % cp_size == 0 and heads % cp_size == 0:
        return
    each = f", {heads} on each of {tensor} tensor parallel ranks" if tensor > 1 else ""
    raise ConfigError(
        f"context_parallel_size={cp_size} must divide the {latent_frames} latent frames (of each view) and the "
        f"{num_heads} attention heads{each}; sizes that fit: {divisors(math.gcd(latent_frames, heads))}"
    )


def split_sequence(x: Tensor, rank: int, cp_size: int, dim: int = 2, views: int = 1) -> Tensor:
    """Return part `rank` of `cp_size` contiguous parts of x along `dim`, which is view-major.

    Latents `(B, C, V*T, H, W)` are split along dim 2, view indices and per-frame values `(B, V*T)` along dim 1, rotary
    tables `(V*T*H*W, ...)` along dim 0 (whole frames, because T divides). Raises ConfigError when a view's length does
    not divide.
    """
    size = x.shape[dim]
    if size % (views * cp_size):
        fit = divisors(size // views if size % views == 0 else 0)
        raise ConfigError(
            f"axis {dim} of shape {tuple(x.shape)} does not divide into {views} view(s) of {cp_size} equal parts; "
            f"context parallel sizes that fit: {fit}"
        )
    if not 0 <= rank < cp_size:
        raise ConfigError(f"rank {rank} is not one of {cp_size} context parallel ranks")
    dim %= x.ndim
    part = size // views // cp_size
    return x.unflatten(dim, (views, cp_size, part)).select(dim + 1, rank).flatten(dim, dim + 1)


def gather_sequence(x: Tensor, group: dist.ProcessGroup | None, dim: int = 2, views: int = 1) -> Tensor:
    """Return, on every rank, the whole of which each rank of `group` holds the part that `split_sequence` gives.

    Differentiable. The gradient of a part is the sum of what all ranks send back for it, so that averaging parameter
    gradients over the group's ranks gives the gradient of the mean of the ranks' losses.
    """
    if group is None or group.size() == 1:
        return x
    dim %= x.ndim
    parts = _all_gather(x, group)  # (cp, *x.shape)
    return parts.movedim(0, dim).unflatten(dim + 1, (views, -1)).transpose(dim, dim + 1).flatten(dim, dim + 2)


def sequence_to_heads(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """All-to-all `(B, N/cp, heads, d)` -> `(B, N, heads/cp, d)`, differentiable: rank r gets the r-th block of heads."""
    if group is None or group.size() == 1:
        return x
    return _to_heads((x,), group)


def heads_to_sequence(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """All-to-all `(B, N, heads/cp, d)` -> `(B, N/cp, heads, d)`, the inverse of `sequence_to_heads`. Differentiable."""
    if group is None or group.size() == 1:
        return x
    received = _all_to_all(x.unflatten(1, (group.size(), -1)).movedim(1, 0), group)  # (cp = heads, B, N/cp, h, d)
    return received.movedim(0, 2).flatten(2, 3)


def ulysses_attention(q: Tensor, k: Tensor, v: Tensor, group: dist.ProcessGroup | None, attention: Attention) -> Tensor:
    """Return this rank's part of the attention over the whole sequence.

    q, k, v: local tokens of all heads, `(B, N/cp, heads, d)`, normalised and rotated; so is the result.
    `attention` maps `(B, N, h, d)` q, k, v to `(B, N, h, d)`. The exchange of q, k and v is one collective.
    """
    if group is None or group.size() == 1:
        return attention(q, k, v)
    q, k, v = _to_heads((q, k, v), group).chunk(3, dim=2)
    return heads_to_sequence(attention(q, k, v), group)


def _to_heads(parts: tuple[Tensor, ...], group: dist.ProcessGroup) -> Tensor:
    """`sequence_to_heads` of several tensors in one exchange, one after another along the heads axis."""
    size, heads = group.size(), parts[0].shape[2]
    if heads % size:
        raise ConfigError(
            f"{heads} attention heads do not divide over {size} context parallel ranks; sizes that fit: {divisors(heads)}"
        )
    sent = torch.cat([part.unflatten(2, (size, -1)).movedim(2, 0) for part in parts], dim=3)
    received = _all_to_all(sent, group)  # (cp = part of the sequence, B, N/cp, parts * heads/cp, d)
    return received.movedim(0, 1).flatten(1, 2)


def _exchanged(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Entry s of x `(cp, ...)` of rank r becomes entry r of rank s: its own inverse, and its own adjoint."""
    # The collective reads and writes memory as it lies there; transposed and expanded tensors (gradients often are)
    # must be copied.
    x = x.contiguous()
    received = torch.empty_like(x)
    dist.all_to_all_single(received, x, group=group)
    return received


def _own_sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the sum over ranks of what each has for this one: x `(cp, ...)` -> `(...)`."""
    # Exchanged, then added: a sum in bfloat16 is rounded once, and not once a rank as in a reduce-scatter.
    return _exchanged(x, group).sum(dim=0)


_all_to_all, _all_gather = adjoint(_exchanged, _exchanged), adjoint(stacked, _own_sum)

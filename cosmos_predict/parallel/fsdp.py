"""Weights sharded over ranks with FSDP2: each block a unit of its own, the rest of the network one more.

Parameters are float32 shards; a unit is gathered, in the compute dtype, when it is needed, and gradients come back
reduced in float32 and averaged over all ranks. Applied from outside; the network does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos_predict.networks.dit import DiT
from cosmos_predict.parallel.mesh import Mesh
from cosmos_predict.parallel.shards import is_sharded, own, part_of, whole


def shard_network(net: DiT, mesh: Mesh, compute_dtype: torch.dtype | None = None) -> None:
    """Shard the parameters of `net` (on the meta device, or filled alike on all ranks) over `mesh.weights`.

    compute_dtype: what gathered weights, and so activations, are in; None keeps that of the parameters.
    """
    for block in net.blocks:  # backward begins with the last
        _shard(block, mesh, compute_dtype, reshard_after_forward=block is not net.blocks[-1])
    _shard(net, mesh, compute_dtype, reshard_after_forward=True)


def shard_head(head: nn.Module, mesh: Mesh) -> None:
    """Shard a small module that computes in float32 as a unit of its own."""
    _shard(head, mesh, None, reshard_after_forward=True)


def _shard(module: nn.Module, mesh: Mesh, compute_dtype: torch.dtype | None, reshard_after_forward: bool) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Inputs are not cast: timesteps and rotary tables stay float32, and the network casts the rest itself.
    policy = MixedPrecisionPolicy(compute_dtype, torch.float32, cast_forward_inputs=False)
    fully_shard(module, mesh=mesh.weights, mp_policy=policy, reshard_after_forward=reshard_after_forward)


def average_gradients(units: Iterable[nn.Module], mesh: Mesh, last: bool) -> None:
    """Say whether the next backward is the `last` before an update; earlier ones leave out what can wait.

    Without shards nothing is exchanged before the last. With shards, gradients are reduced to shards every time, so that
    none is ever kept whole, and only the exchange between replicas waits.
    """
    for unit in units if mesh.weights is not None else ():
        if mesh.sizes.shard == 1:
            unit.set_requires_gradient_sync(last)  # type: ignore[operator]
        else:
            unit.set_requires_all_reduce(last)  # type: ignore[operator]


def reshard(module: nn.Module) -> None:
    """Drop gathered weights, so that the next forward gathers what is now in the shards."""
    for part in module.modules():
        if hasattr(part, "set_reshard_after_forward"):  # of FSDP; asked by attribute: importing the class takes long
            part.reshard()  # type: ignore[operator]


def initialise(net: nn.Module, init: Callable[[], object]) -> None:
    """Run `init`, which fills parameters of `net`, giving shards the values that whole parameters would get.

    Every rank draws each parameter whole, one at a time, from torch's global generator, seeded alike on all ranks, and
    keeps its part: weights do not depend on the number of ranks.
    """
    if any(is_sharded(parameter) for parameter in net.parameters()):
        with _WholeDraws():
            init()
    else:
        init()


class _WholeDraws(TorchDispatchMode):
    """Makes random fills of a sharded tensor draw for the whole of it, and numbers read from one be those of the whole
    (rejection sampling asks whether any entry is left to draw).
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        draws = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            return func(whole(args[0]))
        if func not in draws or not is_sharded(args[0]):
            return func(*args, **(kwargs or {}))
        target: Tensor = args[0]
        drawn = torch.empty(target.shape, dtype=target.dtype, device=target.device)
        func(drawn, *args[1:], **(kwargs or {}))
        own(target).copy_(drawn[part_of(target)])
        return target

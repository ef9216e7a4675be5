"""Tensor parallelism: every rank of a group computes a part of the heads and of the MLP's hidden layer of every block.

Queries, keys, values and the MLP's first layer are divided by output features (columns of x W^T), the layers behind them
by input features (rows), so that between the two nothing is exchanged. What the second returns is a summand: an
all-reduce before it is added to the stream makes it whole, and in backward another one the gradient of the first one's
input. Weights are DTensors of a mesh dimension `tensor`, on which FSDP2 builds; everything else is replicated.

With `sequence`, the stream itself is divided too, a part of every frame's tokens on every rank, from the patch embedding
to the final layer: the all-reduce becomes a reduce-scatter behind the second layer and an all-gather before the first.

Gradients of replicated weights are whole on every rank where they come from the whole stream. Where they come from a
part of it, or of the heads, they are summands: `TensorParallel.sum_gradients` adds them up once per update.

Sources: Shoeybi et al. 2019 (Megatron-LM), section 3; Korthikanti et al. 2022, section 4.2.2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import DiT
from cosmos_predict.parallel.exchange import adjoint, stacked
from cosmos_predict.parallel.mesh import divisors
from cosmos_predict.parallel.shards import lies_over, own

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

AXIS = "tensor"  # the name of the mesh dimension
COLUMN, ROW = 0, 1  # which axis of a weight (out, in) is divided
LAYERS = {"q_proj": COLUMN, "k_proj": COLUMN, "v_proj": COLUMN, "layer1": COLUMN, "output_proj": ROW, "layer2": ROW}


class TensorParallel:
    """The division of one network over the ranks of `group`; `apply_tensor_parallel` makes it."""

    def __init__(self, net: DiT, mesh: DeviceMesh, sequence: bool) -> None:
        self.net, self.group, self.sequence = net, mesh.get_group(), sequence
        self._summands: list[nn.Module] = [net] if sequence else []
        self._ready: tuple[Any, ...] | None = None  # what all blocks of a forward share, cut once
        for block in net.blocks:
            for name in ("self_attn", "cross_attn", "mlp"):
                module = block.get_submodule(name)
                for child, layer in module.named_children():
                    if child in LAYERS:
                        self._divide(layer, mesh, LAYERS[child])
                    else:  # gains of queries and keys, used on this rank's heads alone
                        self._summands.append(layer)
                module.forward = self._exchanging(module.forward)
            if sequence:
                block.register_forward_pre_hook(self._block_inputs)
        if net.config.projects_text:  # its output enters keys and values of this rank's heads alone
            self._summands.append(net.crossattn_proj)
        if sequence:
            net.x_embedder.register_forward_hook(self._begin)
            net.final_layer.register_forward_hook(self._end)

    def _divide(self, layer: nn.Module, mesh: DeviceMesh, axis: int) -> None:
        """Keep this rank's part of a linear layer, and of the adapters beside it: B (out, rank) of one divided by columns, A
        (rank, in) of one divided by rows; the other matrix of an adapter stays whole.
        """
        parts: list[Any] = [getattr(layer, "base_layer", layer)]
        for name, index in {"lora_B": COLUMN, "lora_A": ROW}.items():
            (parts if index == axis else self._summands).extend(getattr(layer, name, nn.ModuleDict()).values())
        for part in parts:
            part.weight = _own_part(part.weight, mesh, axis)
            part.forward = _local_linear(part)

    def _exchanging(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the forward of a module of divided layers, from this rank's stream to this rank's stream."""
        enter, leave = (_gather, _scatter) if self.sequence else (_sum_gradient, _sum)

        def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return leave(forward(enter(x, self.group), *args, **kwargs), self.group)

        return run

    # ---- a divided stream --------------------------------------------------------------------------------------

    def _begin(self, _module: nn.Module, args: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
        self._ready = None
        frames = args[0].shape[2] // self.net.config.patch_temporal
        check_sequence_parallel(self.group.size(), tokens.shape[1] // frames)
        return _split(tokens, self.group, frames)

    def _block_inputs(self, _block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give a block its part of what is added to its tokens, and the rotary table in the order of gathered ones."""
        x, text, embedding, lora, rope, extra, features, views = args
        if self._ready is None:
            frames, size = embedding.shape[1], self.group.size()
            ordered = tuple(t.unflatten(0, (frames, size, -1)).transpose(0, 1).flatten(0, 2) for t in rope)
            extra = None if extra is None else _split(extra, self.group, frames)
            features = {name: _split(value, self.group, frames) for name, value in features.items()}
            self._ready = (ordered, extra, features)
        return (x, text, embedding, lora, *self._ready, views)

    def _end(self, _module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        self._ready = None
        whole = _join(out, self.group).unflatten(1, (self.group.size(), args[1].shape[1], -1))
        return whole.transpose(1, 2).flatten(1, 3)

    # ---- gradients ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Add up the gradients of which every rank has a summand: once per update, after the last backward."""
        parameters = {id(p): p for module in self._summands for p in module.parameters() if not lies_over(p, AXIS)}
        grads = [own(p.grad) for p in parameters.values() if p.grad is not None]
        sums = [dist.all_reduce(grad, group=self.group, async_op=True) for grad in grads if grad.numel()]
        for handle in sums:
            handle.wait()  # type: ignore[union-attr]


def apply_tensor_parallel(net: DiT, mesh: DeviceMesh | None, sequence: bool = False) -> TensorParallel | None:
    """Divide the blocks of `net`, on the meta device or filled alike on all ranks, over the 1-D `mesh`; nothing for None.

    sequence: divide the tokens between the divided layers too. Before sharding, checkpointing and compilation. Raises
    ConfigError for a size that does not divide heads and MLP.
    """
    if mesh is None:
        return None
    check_tensor_parallel(mesh.size(), net.config)
    return TensorParallel(net, mesh, sequence)


def check_tensor_parallel(size: int, config: DiTConfig) -> None:
    """Raise ConfigError, naming the sizes that fit, unless `size` divides the heads and the MLP's hidden layer."""
    whole = math.gcd(config.num_heads, config.mlp_channels)
    if whole % size:
        raise ConfigError(
            f"model_parallel.tensor_model_parallel_size={size} must divide the {config.num_heads} attention heads (and the "
            f"MLP's {config.mlp_channels} channels); sizes that fit: {divisors(whole)}"
        )


def check_sequence_parallel(size: int, tokens: int) -> None:
    """Raise ConfigError, naming the sizes that fit, unless `size` divides the tokens of a frame."""
    if tokens % size:
        raise ConfigError(
            f"model_parallel.sequence_parallel divides the {tokens} tokens of a frame over "
            f"tensor_model_parallel_size={size}: choose another video_size, or one of these sizes: {divisors(tokens)}"
        )


def is_divided(name: str) -> bool:
    """Return whether tensor parallelism divides the parameter of a DiT called `name`, adapters included."""
    match = re.fullmatch(
        r"blocks\.\d+\.(?:self_attn|cross_attn|mlp)\.(\w+)(\.lora_[AB]\.\w+|\.base_layer)?\.weight", name
    )
    if match is None or match[1] not in LAYERS:
        return False
    return not (match[2] or "").startswith((".lora_A", ".lora_B")[LAYERS[match[1]]])


def _own_part(weight: Tensor, mesh: DeviceMesh, axis: int) -> nn.Parameter:
    from torch.distributed.tensor import DTensor, Shard  # slow to import

    part = weight.detach().chunk(mesh.size(), axis)[mesh.get_local_rank()].clone(memory_format=torch.contiguous_format)
    divided = DTensor.from_local(part, mesh, [Shard(axis)], run_check=False)
    return nn.Parameter(divided, requires_grad=weight.requires_grad)


def _local_linear(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, layer.weight.to_local())  # type: ignore[operator]


def _split(x: Tensor, group: dist.ProcessGroup, frames: int) -> Tensor:
    """Return this rank's part of every frame of x `(B, frames * n, ...)`."""
    return x.unflatten(1, (frames, group.size(), -1)).select(2, group.rank()).flatten(1, 2)


def _gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the tokens of x `(B, n, D)` of all ranks, one rank's after another's: `(B, ranks * n, D)`."""
    return stacked(x, group).transpose(0, 1).flatten(1, 2)


def _scattered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Add up the x `(B, ranks * n, D)` of all ranks and return this rank's tokens of the sum."""
    parts = x.unflatten(1, (group.size(), -1)).transpose(0, 1).contiguous()
    out = x.new_empty(parts.shape[1:])
    dist.reduce_scatter_tensor(out, parts.flatten(0, 1), group=group)
    return out


def _summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, group=group)
    return x


def _same(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return x.view_as(x)


def _own_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return x.unflatten(1, (group.size(), -1)).select(1, group.rank())


_sum, _sum_gradient = adjoint(_summed, _same), adjoint(_same, _summed)
_gather, _scatter = adjoint(_gathered, _scattered), adjoint(_scattered, _gathered)
_join = adjoint(_gathered, _own_tokens)  # every rank computes the same with the whole: nothing is to be added up

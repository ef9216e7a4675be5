"""The device mesh: how the ranks divide into replicas, shards of the weights, and parts of one sample.

Two views of the same ranks, both with neighbours innermost:

- weights: replicate x shard x tensor; a rank holds 1/shard of the weights, EMA and optimizer state, and of those of the
  blocks' large matrices 1/tensor of that;
- samples: data x context x tensor; the ranks of a context group share their samples and each computes a part of every clip,
  those of a tensor group share a part and each computes some heads of it.

The ranks of a context group are ordinary ranks of the first view. `Mesh()` is a single process without a group.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_predict.errors import ConfigError
from cosmos_predict.parallel.distributed import Ranks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class MeshSizes:
    """Sizes of a mesh: `replicas * shard * tensor == data * context * tensor == world`."""

    world: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1

    @property
    def parts(self) -> int:
        """Ranks that together hold the weights once."""
        return self.shard * self.tensor

    @property
    def replicas(self) -> int:
        return self.world // self.parts

    @property
    def data(self) -> int:
        return self.world // (self.context * self.tensor)

    def __str__(self) -> str:
        tensor = f" x {self.tensor} tensor" if self.tensor > 1 else ""
        return (
            f"{self.world} rank(s): weights {self.replicas} replicas x {self.shard} shards{tensor}, "
            f"samples {self.data} data x {self.context} context{tensor}"
        )


def mesh_sizes(world: int, shard: int = 1, context: int = 1, tensor: int = 1) -> MeshSizes:
    """Return the sizes for `world` ranks. shard: as `model.config.fsdp_shard_size`, at most world / tensor is used, which -1
    is too; 0 is 1 (no sharding). Raises ConfigError for sizes that do not divide the world, with those that do.
    """
    if shard < -1:
        raise ConfigError(
            f"model.config.fsdp_shard_size={shard}: expected -1 (all ranks), 0 (off) or a number of ranks"
        )
    if world % tensor:
        raise ConfigError(
            f"model_parallel.tensor_model_parallel_size={tensor} does not divide the {world} process(es): "
            f"set it to a divisor ({divisors(world)}), or start more processes"
        )
    rest = world // tensor
    among = f" (of {world}, with tensor_model_parallel_size={tensor})" if tensor > 1 else ""
    used = rest if shard == -1 else min(max(shard, 1), rest)
    if rest % context:
        raise ConfigError(
            f"model_parallel.context_parallel_size={context} does not divide the {rest} process(es){among}: "
            f"set it to a divisor ({divisors(rest)}), or start more processes"
        )
    if rest % used:
        raise ConfigError(
            f"model.config.fsdp_shard_size={shard} does not divide the {rest} processes{among}; sizes that fit: {divisors(rest)}"
        )
    return MeshSizes(world, used, context, tensor)


def divisors(number: int) -> str:
    """Return the sizes that divide `number`, for an error message."""
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0) or "none"


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Where this rank is, and the groups it talks in. weights: mesh ("replicate", "shard"), None without a group; tensor: 1-D
    mesh of the same root, None for one rank.
    """

    ranks: Ranks = dataclasses.field(default_factory=Ranks)
    sizes: MeshSizes = dataclasses.field(default_factory=MeshSizes)
    weights: DeviceMesh | None = None
    context: dist.ProcessGroup | None = None
    tensor: DeviceMesh | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes and logs."""
        return self.ranks.rank == 0

    @property
    def data_rank(self) -> int:
        return self.ranks.rank // (self.sizes.context * self.sizes.tensor)

    @property
    def part_rank(self) -> int:
        """This rank's number among those that together hold the weights once."""
        return self.ranks.rank % self.sizes.parts

    @property
    def holds_first_replica(self) -> bool:
        return self.ranks.rank < self.sizes.parts

    @property
    def leads_tensor_group(self) -> bool:
        """Whether this is the rank of its tensor group that acts for what all of them hold."""
        return self.ranks.rank % self.sizes.tensor == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all ranks."""
        if self.sizes.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Return the value of every rank, in rank order, on every rank; a barrier too. Small plain objects only."""
        if self.sizes.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.sizes.world
        dist.all_gather_object(gathered, value)
        return gathered

    def from_main(self, value: T) -> T:
        """Return the value that the main rank gave. Small plain objects only."""
        if self.sizes.world == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]


def make_mesh(ranks: Ranks, sizes: MeshSizes, device: torch.device, *, always: bool = False) -> Mesh:
    """Return the mesh of this rank; every rank must call this. always: shard weights over one process too, which gives it
    what sharded weights have (a compute dtype of their own).
    """
    if sizes.world == 1 and not always:
        return Mesh(ranks, sizes)
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized():  # one process without a launcher
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "nccl", store=dist.HashStore(), rank=0, world_size=1
        )
    axes = {"replicate": sizes.replicas, "shard": sizes.shard, **({"tensor": sizes.tensor} if sizes.tensor > 1 else {})}
    root = init_device_mesh(device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))
    weights, tensor, context = root, None, None
    if sizes.tensor > 1:
        weights, tensor = root["replicate", "shard"], root["tensor"]
    if sizes.context > 1:
        order = torch.arange(sizes.world).view(sizes.data, sizes.context, sizes.tensor)
        members = order.transpose(1, 2).reshape(-1, sizes.context).tolist()
        mine: Any = dist.new_subgroups_by_enumeration(members)[0]  # torch's annotation calls it a number
        context = mine
    return Mesh(ranks, sizes, weights, context, tensor)

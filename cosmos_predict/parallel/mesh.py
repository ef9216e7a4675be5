"""The device mesh: how the ranks divide into replicas, shards of the weights, and parts of one sample.

Two views of the same ranks, both with neighbours innermost:

- weights: replicate x shard; a rank holds 1/shard of the weights, EMA and optimizer state;
- samples: data x context; the ranks of a context group share their samples and each computes a part of every clip.

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
    """Sizes of a mesh: `replicas * shard == data * context == world`."""

    world: int = 1
    shard: int = 1
    context: int = 1

    @property
    def replicas(self) -> int:
        return self.world // self.shard

    @property
    def data(self) -> int:
        return self.world // self.context

    def __str__(self) -> str:
        return (
            f"{self.world} rank(s): weights {self.replicas} replicas x {self.shard} shards, "
            f"samples {self.data} data x {self.context} context"
        )


def mesh_sizes(world: int, shard: int = 1, context: int = 1) -> MeshSizes:
    """Return the sizes for `world` ranks. shard: as `model.config.fsdp_shard_size`, at most the world is used, -1 is the
    world, 0 is 1 (no sharding). Raises ConfigError for sizes that do not divide the world, with those that do.
    """
    if shard < -1:
        raise ConfigError(
            f"model.config.fsdp_shard_size={shard}: expected -1 (all ranks), 0 (off) or a number of ranks"
        )
    used = world if shard == -1 else min(max(shard, 1), world)
    fit = ", ".join(str(n) for n in range(1, world + 1) if world % n == 0)
    if world % context:
        raise ConfigError(
            f"model_parallel.context_parallel_size={context} does not divide the {world} process(es): "
            f"set it to a divisor ({fit}), or start more processes"
        )
    if world % used:
        raise ConfigError(
            f"model.config.fsdp_shard_size={shard} does not divide the {world} processes; sizes that fit: {fit}"
        )
    return MeshSizes(world, used, context)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Where this rank is, and the groups it talks in. weights: mesh ("replicate", "shard"), None without a group."""

    ranks: Ranks = dataclasses.field(default_factory=Ranks)
    sizes: MeshSizes = dataclasses.field(default_factory=MeshSizes)
    weights: DeviceMesh | None = None
    context: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes and logs."""
        return self.ranks.rank == 0

    @property
    def data_rank(self) -> int:
        return self.ranks.rank // self.sizes.context

    @property
    def shard_rank(self) -> int:
        """This rank's number among those that together hold the weights once."""
        return self.ranks.rank % self.sizes.shard

    @property
    def holds_first_replica(self) -> bool:
        return self.ranks.rank < self.sizes.shard

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
    weights = init_device_mesh(device.type, (sizes.replicas, sizes.shard), mesh_dim_names=("replicate", "shard"))
    context = None
    if sizes.context > 1:
        context = init_device_mesh(
            device.type, (sizes.data, sizes.context), mesh_dim_names=("data", "context")
        ).get_group("context")
    return Mesh(ranks, sizes, weights, context)

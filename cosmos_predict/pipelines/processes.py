"""Several processes on one clip: the guidance branches divided over them, or the frames of every evaluation, or both.

Every process holds the whole network, is given the whole input and gets the whole clip; the first one writes it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, distributed_c10d

from cosmos_predict.errors import ConfigError
from cosmos_predict.models.sampling import Spread
from cosmos_predict.parallel.context_parallel import check_context_parallel
from cosmos_predict.parallel.distributed import Ranks, init_distributed, read_ranks

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those that make one clip. context: the group that divides its frames (`apply_context_parallel`);
    spread: what divides guidance (`guided_denoiser`); None where there is nothing to divide.
    """

    ranks: Ranks = dataclasses.field(default_factory=Ranks)
    context: ProcessGroup | None = None
    spread: Spread | None = None

    @property
    def is_main(self) -> bool:
        return self.ranks.rank == 0

    def share(self, value: T) -> T:
        """Return what the first process gave: plain objects and tensors on the CPU."""
        held = [value]
        if self.ranks.world_size > 1:
            dist.broadcast_object_list(held, src=0)
        return held[0]


def evaluate_spread(group: ProcessGroup, evaluate: Callable[[int], Tensor], count: int) -> list[Tensor]:
    """Return `evaluate` of every branch number below `count`, each computed by one rank of `group`."""
    size = group.size()
    if count % size:
        return [evaluate(branch) for branch in range(count)]
    mine = torch.stack([evaluate(branch) for branch in range(group.rank(), count, size)])
    everyones = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(everyones, mine, group=group)
    return [everyones[branch % size][branch // size] for branch in range(count)]


def check_division(size: int, frames: int, heads: int, cfg_parallel: bool = False) -> None:
    """Raise ConfigError unless `size` processes can divide the latent frames and heads; says where --cfg_parallel would do."""
    try:
        check_context_parallel(size, frames, heads)
    except ConfigError as error:
        halves = not (cfg_parallel or size % 2 or frames % (size // 2) or heads % (size // 2))
        raise ConfigError(f"{error}{'; or divide guidance too: --cfg_parallel' if halves else ''}") from None


def fails_first() -> bool:
    """Return whether no other process has said so before: the first one that fails has the error to show, while what the
    others raise after it is often only that it is gone.
    """
    if not dist.is_initialized():  # what fails by then fails on all of a machine's alike
        return read_ranks().local_rank == 0
    try:
        return distributed_c10d._get_default_store().add("failed", 1) == 1
    except RuntimeError:  # the store went with the first one
        return False


def join_processes(num_gpus: int | None, cfg_parallel: bool, command: str, device: str | None = None) -> Processes:
    """Join the processes that torchrun started, `num_gpus` of them (None: as many as there are).

    cfg_parallel: two halves of them take one guidance branch each. command: what to run under torchrun, for the message.
    device: "cpu" keeps off the GPUs that are there.
    Raises ConfigError when their number is another one, or odd with cfg_parallel.
    """
    world = read_ranks().world_size
    if num_gpus not in (None, world):
        raise ConfigError(
            f"--num_gpus {num_gpus}, but {world} process(es) run; start them with:\n"
            f"  torchrun --nproc_per_node={num_gpus} {command}\nor give --num_gpus {world}"
        )
    if cfg_parallel and world % 2:
        raise ConfigError(f"--cfg_parallel takes an even number of processes, {world} run")
    if world == 1:
        return Processes()
    from torch.distributed.device_mesh import init_device_mesh

    kind = "cuda" if torch.cuda.is_available() and device != "cpu" else "cpu"
    ranks = init_distributed("auto" if kind == "cuda" else "gloo")
    shape = (2, world // 2) if cfg_parallel else (1, world)
    mesh = init_device_mesh(kind, shape, mesh_dim_names=("branches", "context"))
    branches, context = (mesh.get_group(axis) if shape[axis] > 1 else None for axis in (0, 1))
    return Processes(ranks, context, functools.partial(evaluate_spread, branches) if branches else None)

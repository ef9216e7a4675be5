"""One of two ranks: FSDP2 with every form of moments against the whole model, and state that moves between the two.

python -m tests.training.low_memory_program FOLDER
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.checkpoint.run_state import (
    SavedState,
    _read_like,
    load_optimizer_state,
    optimizer_state,
    save_run_state,
)
from cosmos_predict.parallel.distributed import distributed_program
from cosmos_predict.parallel.mesh import Mesh, make_mesh, mesh_sizes
from cosmos_predict.parallel.shards import own, part_of
from cosmos_predict.parallel.shards import whole as gathered
from cosmos_predict.training.low_memory import MOMENTS, LowMemoryAdamW


def network(dtype: torch.dtype) -> nn.Sequential:
    """Rows that two ranks share unevenly, a layer with one row (an empty shard), odd sizes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(301, 131), nn.Linear(131, 70), nn.Linear(70, 1)).to(dtype)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype, first: int, last: int) -> None:
    for step in range(first, last):
        # The same data on both ranks: their mean gradient is that of one process, bit for bit.
        x = torch.randn(4, 301, generator=torch.Generator().manual_seed(step)).to(dtype)
        net(x).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: gathered(v).clone() for name, v in tensors.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor], what: str) -> None:
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert a.keys() == b.keys() and not different, f"{what}: {different}"


def main(root: str) -> None:
    with distributed_program("gloo") as ranks:
        mesh = make_mesh(ranks, mesh_sizes(2, shard=2), torch.device("cpu"))
        for dtype in (torch.float32, torch.bfloat16):
            for moments in MOMENTS:
                what = f"{moments} moments, {dtype}"

                def make(sharded: bool, dtype=dtype, moments=moments):
                    net = network(dtype)
                    if sharded:
                        fully_shard(net, mesh=mesh.weights)
                    return net, LowMemoryAdamW(net.parameters(), lr=1e-2, moments=moments, seed=1)

                one, one_optimizer = make(False)
                two, two_optimizer = make(True)
                train(one, one_optimizer, dtype, 0, 3)
                train(two, two_optimizer, dtype, 0, 3)
                weights = whole(two.state_dict())
                tensors, groups = optimizer_state(two_optimizer, two)
                for folder, state in (
                    (f"{root}/two", tensors),
                    (f"{root}/one", optimizer_state(one_optimizer, one)[0]),
                ):
                    save(folder, state, groups, mesh)
                state = whole(tensors)
                same(weights, whole(one.state_dict()), f"two ranks against one, weights, {what}")
                same(state, optimizer_state(one_optimizer, one)[0], f"two ranks against one, state, {what}")

                train(one, one_optimizer, dtype, 3, 5)
                expected = whole(one.state_dict())
                for source, sharded in (("two", True), ("one", True), ("two", False)):
                    net, optimizer = make(sharded)
                    with torch.no_grad():
                        for key, parameter in net.named_parameters():
                            own(parameter).copy_(weights[key][part_of(parameter) or ()])
                    with SavedState(RunFolder(f"{root}/{source}"), 1, mesh) as saved:
                        load_optimizer_state(optimizer, net, saved)
                        holds_its_rows(saved, net)
                    train(net, optimizer, dtype, 3, 5)
                    same(whole(net.state_dict()), expected, f"{source} resumed, sharded {sharded}, {what}")


def holds_its_rows(saved: SavedState, net: nn.Module) -> None:
    """What a resume keeps of a state tensor, scales of blocks too, is this rank's part of its rows."""
    parameters = dict(net.named_parameters())
    for key in saved.names("optimizer"):
        held, mine = (
            own(_read_like(saved, key, parameters[key.partition(".")[2]])),
            own(parameters[key.partition(".")[2]]),
        )
        assert held.ndim == 0 or held.shape[0] == mine.shape[0], (key, held.shape, mine.shape)


def save(root: str, tensors: dict[str, Tensor], groups: list[dict[str, Any]], mesh: Mesh) -> None:
    numbers = {"optimizer_groups": groups}
    save_run_state(
        RunFolder(root), 1, weights={}, ema=None, optimizer=tensors, numbers=numbers, scheduler={}, mesh=mesh
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

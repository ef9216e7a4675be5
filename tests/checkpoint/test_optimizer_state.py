"""The optimizer's part of a run's state: float32 masters come from the files, and are made anew only where they lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.checkpoint.run_state import SavedState, load_optimizer_state, optimizer_state, save_run_state
from cosmos_predict.training.optimizers import MasterAdamW, adamw


class Casts(TorchDispatchMode):
    """Counts copies of bfloat16 tensors in float32."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "_to_copy" in str(func) and args[0].dtype == torch.bfloat16 and out.dtype == torch.float32:
            self.count += 1
        return out


def trained(seed: int) -> tuple[nn.Module, MasterAdamW]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).to(torch.bfloat16)
    optimizer = adamw(net, lr=1e-3)
    assert isinstance(optimizer, MasterAdamW)
    net(torch.ones(3, 4, dtype=torch.bfloat16)).float().square().mean().backward()
    optimizer.step()
    return net, optimizer


def test_masters_are_copied_from_weights_only_where_none_is_saved(tmp_path: Path) -> None:
    net, optimizer = trained(0)
    tensors, groups = optimizer_state(optimizer, net)
    for iteration, missing in enumerate([set(), {"master.1.weight"}], 1):
        kept = {name: tensor for name, tensor in tensors.items() if name not in missing}
        numbers, folder = {"optimizer_groups": groups}, RunFolder(tmp_path)
        save_run_state(folder, iteration, weights={}, ema=None, optimizer=kept, numbers=numbers, scheduler={})
        other, target = trained(1)
        other.load_state_dict(net.state_dict())
        with SavedState(folder, iteration) as saved, Casts() as casts:
            load_optimizer_state(target, other, saved)
        assert casts.count == len(missing)
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        for parameter, master, expected in zip(optimizer.parameters, target.masters, optimizer.masters, strict=True):
            name = names[id(parameter)]
            wanted = parameter.detach().float() if f"master.{name}" in missing else expected
            assert torch.equal(master, wanted), name

"""AdamW recipe: groups, float32 masters of low-precision weights, and resuming them exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cosmos_predict.config.lazy import LazyCall, instantiate
from cosmos_predict.errors import ConfigError
from cosmos_predict.training.optimizers import MasterAdamW, adamw, parameter_groups


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4), nn.Linear(4, 2)).to(dtype)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).to(next(net.parameters()).dtype)
        net(x).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_one_group_as_published_or_norms_and_biases_apart() -> None:
    net = model()
    net[2].weight.requires_grad_(False)
    (group,) = parameter_groups(net.parameters(), 0.1)
    assert group["weight_decay"] == 0.1 and len(group["params"]) == 5 and group["params"][0] is net[1].weight
    decayed, exempt = parameter_groups(net.parameters(), 0.1, decay_vectors=False)
    assert [p is net[1].weight for p in decayed["params"]] == [True]
    assert exempt["weight_decay"] == 0.0 and {p.ndim for p in exempt["params"]} == {1}
    net.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter is trainable"):
        parameter_groups(net.parameters(), 0.1)


def test_exempt_parameters_are_not_decayed() -> None:
    net = model()
    optimizer = adamw(net, lr=0.1, weight_decay=0.5, decay_vectors=False)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    bias, weight = net[1].bias.detach().clone(), net[1].weight.detach().clone()
    optimizer.step()
    assert torch.equal(net[1].bias, bias)
    torch.testing.assert_close(net[1].weight.detach(), weight * 0.95)


def test_defaults_and_config() -> None:
    optimizer = instantiate(LazyCall(adamw)(lr=2**-14.5, betas=[0.9, 0.99]), model=model())
    options = optimizer.defaults
    assert (options["lr"], options["betas"], options["eps"], options["fused"]) == (2**-14.5, (0.9, 0.99), 1e-8, True)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert type(optimizer) is torch.optim.AdamW and isinstance(adamw(model(torch.bfloat16)), MasterAdamW)


def test_masters_gather_changes_below_the_weights_resolution() -> None:
    net, plain = model(torch.bfloat16), model(torch.bfloat16)
    with torch.no_grad():
        for parameter in (*net.parameters(), *plain.parameters()):
            parameter.fill_(1.0)
    master, rounded = (
        adamw(net, lr=1e-4, weight_decay=0.0),
        adamw(plain, lr=1e-4, weight_decay=0.0, master_weights=False),
    )
    assert not isinstance(rounded, MasterAdamW)
    for _ in range(100):
        for parameter in (*net.parameters(), *plain.parameters()):
            parameter.grad = torch.ones_like(parameter)
        master.step()
        rounded.step()
    torch.testing.assert_close(net[1].weight.float(), torch.full((4, 6), 0.99), rtol=0, atol=4e-3)
    assert torch.all(plain[1].weight == 1.0), "without masters a bfloat16 weight of 1 cannot move by 1e-4"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_identical(dtype: torch.dtype) -> None:
    net = model(dtype)
    optimizer = adamw(net, lr=1e-3)
    train(net, optimizer, 0, 3)
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = optimizer.state_dict()
    again = model(dtype)
    again.load_state_dict(weights)
    resumed = adamw(again, lr=1e-3)
    resumed.load_state_dict(torch.utils._pytree.tree_map(lambda v: v.clone() if torch.is_tensor(v) else v, state))
    train(net, optimizer, 3, 6)
    train(again, resumed, 3, 6)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in net.state_dict().items())


def test_state_of_another_model_is_refused() -> None:
    optimizer = adamw(model(torch.bfloat16))
    state = optimizer.state_dict()
    state["masters"] = state["masters"][:2]
    with pytest.raises(ConfigError, match="holds 2 float32 masters, this run has 6 parameters"):
        optimizer.load_state_dict(state)


def test_zero_grad_reaches_the_weights() -> None:
    net = model(torch.bfloat16)
    optimizer = adamw(net)
    net(torch.ones(1, 6, dtype=torch.bfloat16)).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert all(not parameter.grad.any() for parameter in net.parameters())
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())

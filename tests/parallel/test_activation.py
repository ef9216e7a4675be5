"""Activation checkpointing and compiled blocks: same numbers, less kept, attention computed once under `selective`."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.dit import DiT, build_dit
from cosmos_predict.parallel.activation import activation_bytes, apply_activation_checkpointing, compile_blocks
from tests.parallel.cp_network import SMALL

CONFIG = SMALL.replace(num_blocks=4)


class Counted(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name().partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def net() -> DiT:
    torch.manual_seed(0)
    net = build_dit(CONFIG)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def forward(net: DiT) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x, t, text = (torch.randn(size, generator=generator) for size in ((1, 4, 4, 16, 16), (1, 4), (1, 8, 16)))
    return net(x, t, text)


def measure(net: DiT) -> tuple[list[Tensor], int, int]:
    """Return gradients, bytes kept for backward, and how often backward computes attention again."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward(net)
    with Counted() as counted:
        out.square().mean().backward()
    again = sum(n for name, n in counted.counts.items() if "dot_product" in name and "backward" not in name)
    return [p.grad for p in net.parameters() if p.grad is not None], sum(kept.values()), again


@pytest.mark.parametrize(
    ("policy", "every", "share", "again"), [("full", 1, 0.2, 8), ("full", 2, 0.7, 4), ("selective", 1, 0.2, 0)]
)
def test_gradients_stay_and_less_is_kept(net: DiT, policy: str, every: int, share: float, again: int) -> None:
    expected, everything, _ = measure(copy.deepcopy(net))
    lean = copy.deepcopy(net)
    apply_activation_checkpointing(lean, policy, every)
    assert list(dict(lean.named_parameters())) == list(dict(net.named_parameters()))
    gradients, kept, computed_again = measure(lean)
    assert all(map(torch.equal, gradients, expected))
    assert kept < share * everything and computed_again == again


@pytest.mark.parametrize("policy", ["none", "full"])
def test_forecast_of_what_is_kept(policy: str) -> None:
    """Six blocks more keep six times what the forecast says of one. Widths as in published networks' proportions."""
    config, kept = SMALL.replace(model_channels=256, mlp_ratio=4.0), []
    for blocks in (1, 7):
        net = build_dit(config.replace(num_blocks=blocks))
        apply_activation_checkpointing(net, policy)
        kept.append(measure(net)[1])
    tokens = 4 * 8 * 8
    weights = 6 * sum(p.numel() * 4 for p in build_dit(config.replace(num_blocks=1), device="meta").blocks.parameters())
    more = kept[1] - kept[0] - (weights if policy == "none" else 0)  # the hook sees weights too
    forecast = [activation_bytes(config.replace(num_blocks=blocks), tokens, policy) for blocks in (1, 7)]
    assert more == pytest.approx(forecast[1] - forecast[0], rel=0.05)


def test_none_changes_nothing_and_other_policies_are_named(net: DiT) -> None:
    plain = copy.deepcopy(net)
    apply_activation_checkpointing(plain, "none")
    assert "forward" not in vars(plain.blocks[0])
    with pytest.raises(ConfigError, match="'some' is not one of none, full, selective"):
        apply_activation_checkpointing(plain, "some")


@pytest.mark.parametrize("policy", ["none", "full", "selective"])
def test_compiled_blocks_compute_the_same(net: DiT, policy: str) -> None:
    compiled = copy.deepcopy(net)
    apply_activation_checkpointing(compiled, policy)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(compiled, backend="aot_eager")
    forward(compiled).square().mean().backward()
    whole = copy.deepcopy(net)
    forward(whole).square().mean().backward()
    for (name, a), b in zip(compiled.named_parameters(), whole.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1, "four blocks, one compilation"
    assert not counters["graph_break"]

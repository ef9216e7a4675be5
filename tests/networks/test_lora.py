"""LoRA: published keys, mathematics, several adapters, merging. Files: tests/checkpoint/test_lora_files.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cosmos_predict.errors import ConfigError
from cosmos_predict.models.published import published_config
from cosmos_predict.networks.dit import build_dit
from cosmos_predict.networks.lora import (
    DEFAULT_TARGETS,
    LoRALinear,
    initialize_adapter,
    inject_lora,
    lora_layers,
    merge_lora,
    without_adapters,
)
from tests.networks.lora_toy import Block, randomize, toy

MANIFESTS = Path(__file__).parents[1] / "goldens" / "manifests"


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("size", "rank", "trainable"), [("2b", 16, 22_937_600), ("14b", 32, 143_917_056)])
def test_adapted_published_networks_have_the_published_keys(size: str, rank: int, trainable: int) -> None:
    network = build_dit(published_config(f"predict2_{size}_video2world"), device="meta", dtype=torch.bfloat16)
    before = {name: tensor.shape for name, tensor in network.state_dict().items()}
    inject_lora(network, rank)
    shapes = {f"net.{name}": list(tensor.shape) for name, tensor in network.state_dict().items()}
    manifest = json.loads((MANIFESTS / f"predict2_video2world_{size}_lora_r{rank}_adapted_keys.json").read_text())
    assert {name: shapes.get(name) for name in manifest} == manifest
    adapted = {name for name in shapes if any(part in name for part in (".base_layer.", ".lora_A.", ".lora_B."))}
    assert adapted == set(manifest)
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == trainable
    with without_adapters(network):
        assert {name: tensor.shape for name, tensor in network.state_dict().items()} == before
    assert {f"net.{name}": list(tensor.shape) for name, tensor in network.state_dict().items()} == shapes


def test_new_adapter_changes_nothing_and_depends_on_names_alone(x: Tensor) -> None:
    network, plain = toy(), toy()
    names = inject_lora(network, rank=4, seed=5)
    assert names[:2] == ["0.self_attn.q_proj", "0.self_attn.k_proj"] and len(names) == 12
    assert torch.equal(network(x), plain(x))
    torch.manual_seed(99)
    again, other = toy(), toy()
    inject_lora(again, rank=4, seed=5, targets=list(reversed(DEFAULT_TARGETS)))
    inject_lora(other, rank=4, seed=6)
    a, b, c = (net.state_dict()["1.mlp.layer2.lora_A.default.weight"] for net in (network, again, other))
    assert torch.equal(a, b) and not torch.equal(a, c)
    # Kaiming-uniform with a = sqrt 5 is uniform within 1/sqrt(fan_in).
    assert a.abs().max() <= 24**-0.5 and a.std().item() == pytest.approx((24**-0.5) / 3**0.5, rel=0.2)


def test_gradients_flow_into_adapters_alone(x: Tensor) -> None:
    network = toy()
    inject_lora(network, rank=2)
    network(x).square().sum().backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None} == {
        name for name in network.state_dict() if ".lora_" in name
    }


def test_several_adapters_with_weights_add_up(x: Tensor) -> None:
    network = toy()
    inject_lora(network, rank=2, alpha=8, targets="q_proj, mlp.layer1", adapter="style")
    inject_lora(network, rank=4, targets="q_proj,output_proj", adapter="robot")
    assert {n.split(".")[-2] for n, p in network.named_parameters() if p.requires_grad} == {"robot"}
    for number, name in enumerate(("style", "robot")):
        randomize(network, name, number)
    expected = toy()
    for name, layer in lora_layers(network):
        layer.active = {
            adapter: factor for adapter, factor in {"style": 0.5, "robot": -2.0}.items() if adapter in layer.lora_A
        }
        weight = expected.get_submodule(name).weight.data
        for adapter, scale in (("style", 0.5 * 8 / 2), ("robot", -2 * 4 / 4)):
            if adapter in layer.lora_A:
                weight += scale * layer.lora_B[adapter].weight.data @ layer.lora_A[adapter].weight.data
    torch.testing.assert_close(network(x), expected(x))
    with without_adapters(network):
        assert torch.equal(network(x), toy()(x))
    torch.testing.assert_close(network(x), expected(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_network_computes_the_same(x: Tensor, dtype: torch.dtype) -> None:
    network = toy().to(dtype)
    inject_lora(network, rank=4, dtype=torch.float32)
    randomize(network, "default", 3)
    out = network(x.to(dtype))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}
    merge_lora(network)
    assert network.state_dict().keys() == toy().state_dict().keys()
    assert not any(isinstance(module, LoRALinear) for module in network.modules())
    torch.testing.assert_close(network(x.to(dtype)), out, **tolerance)


def test_meta_network_is_filled_later(x: Tensor) -> None:
    with torch.device("meta"):
        network = nn.Sequential(Block(12), Block(12))
    inject_lora(network, rank=4, seed=5)
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    network.to_empty(device="cpu")
    plain = toy()
    with without_adapters(network):
        network.load_state_dict(plain.state_dict())
    initialize_adapter(network, seed=5)
    reference = toy()
    inject_lora(reference, rank=4, seed=5)
    assert all(torch.equal(tensor, reference.state_dict()[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(network(x), plain(x))


def test_sharded_adapters_are_filled_with_the_same_numbers() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        network, reference = toy(), toy()
        inject_lora(network, rank=4, seed=1)
        fully_shard(network, mesh=init_device_mesh("cpu", (1,)))
        initialize_adapter(network, seed=5)
        inject_lora(reference, rank=4, seed=5)
        state, expected = network.state_dict(), reference.state_dict()
        adapters = [name for name in state if ".lora_" in name]
        assert len(adapters) == 24 and all(isinstance(state[name], DTensor) for name in adapters)
        assert all(torch.equal(state[name].full_tensor(), expected[name]) for name in adapters)
    finally:
        dist.destroy_process_group()


def test_bad_targets_and_names() -> None:
    with pytest.raises(ConfigError, match=r"LoRA target 'q_prj' matches no layer.*Nearest linear layers: q_proj"):
        inject_lora(toy(), targets="q_prj")
    with pytest.raises(ConfigError, match=r"'mlp.layer3' matches no layer.*mlp.layer[12]"):
        inject_lora(toy(), targets=["q_proj", "mlp.layer3"])
    with pytest.raises(ConfigError, match=r"'q_norm' names 0.self_attn.q_norm, a LayerNorm; only linear layers"):
        inject_lora(toy(), targets="q_norm")
    with pytest.raises(ConfigError, match="lora_rank=0 must be at least 1"):
        inject_lora(toy(), rank=0)
    network = toy()
    inject_lora(network, 2)
    with pytest.raises(ConfigError, match="already has an adapter named 'default'"):
        inject_lora(network, 4)

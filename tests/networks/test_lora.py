"""LoRA: published keys, mathematics, several adapters, merging, files that PEFT reads and writes."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.models.published import published_config
from cosmos_predict.networks.dit import build_dit
from cosmos_predict.networks.lora import (
    DEFAULT_TARGETS,
    LoRALinear,
    adapter_names,
    adapter_state_dict,
    base_keys,
    base_state_dict,
    initialize_adapter,
    inject_lora,
    lora_layers,
    merge_lora,
    set_adapters,
    unmerge_lora,
)
from cosmos_predict.networks.lora_files import load_adapter_state_dict, load_adapters, save_adapters

MANIFESTS = Path(__file__).parents[1] / "goldens" / "manifests"


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "output_proj"):
            self.add_module(name, nn.Linear(width, width, bias=name == "v_proj"))
        self.q_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_proj(torch.tanh(self.q_norm(self.q_proj(x)) * self.k_proj(x)) + self.v_proj(x))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = Attention(width)
        self.mlp = nn.ModuleDict({"layer1": nn.Linear(width, 2 * width), "layer2": nn.Linear(2 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp["layer2"](self.mlp["layer1"](self.self_attn(x)).relu())


def toy(seed: int = 0, width: int = 12) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(Block(width), Block(width))


def randomize(network: nn.Module, adapter: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter_state_dict(network, adapter).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)


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
    assert {name: tensor.shape for name, tensor in base_state_dict(network).items()} == before


def test_new_adapter_changes_nothing_and_depends_on_names_alone(x: Tensor) -> None:
    network, plain = toy(), toy()
    names = inject_lora(network, rank=4, seed=5)
    assert names[:2] == ["0.self_attn.q_proj", "0.self_attn.k_proj"] and len(names) == 12
    assert torch.equal(network(x), plain(x))
    torch.manual_seed(99)
    again, other = toy(), toy()
    inject_lora(again, rank=4, seed=5, targets=list(reversed(DEFAULT_TARGETS)))
    inject_lora(other, rank=4, seed=6)
    a, b, c = (adapter_state_dict(net)["1.mlp.layer2.lora_A.weight"] for net in (network, again, other))
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
    assert adapter_names(network) == ["style", "robot"]
    assert {n.split(".")[-2] for n, p in network.named_parameters() if p.requires_grad} == {"robot"}
    for number, name in enumerate(("style", "robot")):
        randomize(network, name, number)
    set_adapters(network, {"style": 0.5, "robot": -2})
    expected = toy()
    for name, layer in lora_layers(network):
        weight = expected.get_submodule(name).weight.data
        for adapter, scale in (("style", 0.5 * 8 / 2), ("robot", -2 * 4 / 4)):
            if adapter in layer.lora_A:
                weight += scale * layer.lora_B[adapter].weight.data @ layer.lora_A[adapter].weight.data
    torch.testing.assert_close(network(x), expected(x))
    set_adapters(network, {})
    assert torch.equal(network(x), toy()(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_computes_the_same_and_unmerge_is_exact(x: Tensor, dtype: torch.dtype) -> None:
    network = toy().to(dtype)
    inject_lora(network, rank=4, dtype=torch.float32)
    randomize(network, "default", 3)
    before, out = {k: v.clone() for k, v in network.state_dict().items()}, network(x.to(dtype))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}
    merge_lora(network)
    torch.testing.assert_close(network(x.to(dtype)), out, **tolerance)
    merge_lora(network)  # a second time changes nothing
    with pytest.raises(ConfigError, match="merged; call unmerge_lora"):
        set_adapters(network, {})
    unmerge_lora(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(network(x.to(dtype)), out)
    merge_lora(network, remove=True)
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
    network.load_state_dict({base_keys(network)[key]: value for key, value in plain.state_dict().items()}, strict=False)
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
        state, expected = adapter_state_dict(network), adapter_state_dict(reference)
        assert all(isinstance(tensor, DTensor) for tensor in state.values())
        assert all(torch.equal(tensor.full_tensor(), expected[name]) for name, tensor in state.items())
    finally:
        dist.destroy_process_group()


def test_our_files_load_in_peft(tmp_path: Path, x: Tensor) -> None:
    network = toy()
    inject_lora(network, rank=4, alpha=2)
    inject_lora(network, rank=2, alpha=6, targets=["1.self_attn.v_proj"], adapter="other")
    randomize(network, "default", 3)
    set_adapters(network, {"default": 1.0})
    save_adapters(network, tmp_path, base="model.pt", base_hash="sha256:abc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    peer = peft.PeftModel.from_pretrained(toy(), str(tmp_path))
    torch.testing.assert_close(peer(x), network(x), rtol=1e-6, atol=1e-6)
    assert (peer(x) - toy()(x)).abs().max() > 0.01
    assert peer.peft_config["default"].base_model_name_or_path == "model.pt"

    other = toy()
    info = load_adapters(other, tmp_path, "again", weight=1.0)
    assert (info.base, info.base_hash, len(info.modules)) == ("model.pt", "sha256:abc", 12)
    assert torch.equal(other(x), network(x))
    assert not any(parameter.requires_grad for name, parameter in other.named_parameters() if ".lora_" in name)


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_files_load_here(tmp_path: Path, x: Tensor, rslora: bool) -> None:
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "mlp.layer2", "v_proj"],
        rank_pattern={"layer2": 2},
        alpha_pattern={"1.self_attn.q_proj": 9},
        use_rslora=rslora,
        init_lora_weights=False,
    )
    peer = peft.get_peft_model(toy(), config)
    peer.save_pretrained(str(tmp_path))
    network = toy()
    load_adapters(network, tmp_path)
    torch.testing.assert_close(network(x), peer(x), rtol=1e-6, atol=1e-6)
    # and what is loaded is saved again with the same effect
    save_adapters(network, tmp_path / "again")
    other = peft.PeftModel.from_pretrained(toy(), str(tmp_path / "again"))
    torch.testing.assert_close(other(x), peer(x), rtol=1e-6, atol=1e-6)


def test_in_file_form_and_meta_networks_take_adapters(x: Tensor) -> None:
    source = toy()
    inject_lora(source, rank=4)
    randomize(source, "default", 3)
    published = {f"net.{name}": tensor for name, tensor in source.state_dict().items() if ".lora_" in name}
    network = toy()
    load_adapter_state_dict(network, published)
    assert torch.equal(network(x), source(x))
    with torch.device("meta"):
        meta = nn.Sequential(Block(12), Block(12))
    load_adapter_state_dict(meta, published)
    meta.load_state_dict(
        {base_keys(meta)[key]: value for key, value in toy().state_dict().items()}, strict=False, assign=True
    )
    assert torch.equal(meta(x), source(x))


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
    with pytest.raises(ConfigError, match="no adapter 'stile'; it has default"):
        set_adapters(network, {"stile": 1.0})
    with pytest.raises(ConfigError, match="no adapter 'default'; it has none"):
        adapter_state_dict(toy())


def test_bad_adapter_files(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="is no adapter folder: adapter_model.safetensors and adapter_config.json missing"
    ):
        load_adapters(toy(), tmp_path)
    network = toy()
    inject_lora(network, 4)
    save_adapters(network, tmp_path)
    taken = toy()
    inject_lora(taken, 2)
    before = {name: tensor.clone() for name, tensor in taken.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"'default' of 0.mlp.layer1 has rank 2, the file has rank 4: set lora_rank=4"
    ):
        load_adapters(taken, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in taken.state_dict().items())
    with pytest.raises(
        CheckpointError, match=r"needs A \(rank, 8\) and B \(16, rank\): it belongs to a network of another size"
    ):
        load_adapters(toy(width=8), tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"a layer '1.mlp.layer1', which the network does not have. Nearest.*0.mlp.layer1",
    ):
        load_adapters(toy()[:1], tmp_path)

    tensors = load_file(tmp_path / "adapter_model.safetensors")
    half = {name: tensor for name, tensor in tensors.items() if "1.mlp.layer1.lora_B" not in name}
    save_file(half, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="only lora_A of 1.mlp.layer1, both A and B are needed"):
        load_adapters(toy(), tmp_path)
    save_file({"net.blocks.0.weight": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="'net.blocks.0.weight' is no LoRA tensor"):
        load_adapters(toy(), tmp_path)

    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, message in (({"use_dora": True}, "uses use_dora"), ({"peft_type": "IA3"}, "has peft_type 'IA3'")):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=f"{message}; plain LoRA is supported"):
            load_adapters(toy(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="adapter_config.json is not JSON"):
        load_adapters(toy(), tmp_path)

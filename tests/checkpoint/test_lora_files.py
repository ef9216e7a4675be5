"""Files of LoRA adapters: what PEFT reads and writes, several at once, what a `--lora_path` means, bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cosmos_predict.checkpoint.lora_forms import network_adapter, write_adapter
from cosmos_predict.checkpoint.lora_runs import adapter_folder, file_hash, load_adapters, weights_hash
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.networks.lora import inject_lora, lora_layers, merge_lora, without_adapters
from tests.networks.lora_toy import Block, randomize, toy

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1))


def adapted(seed: int = 3, rank: int = 4, **options: object) -> nn.Sequential:
    network = toy()
    inject_lora(network, rank, **options)  # type: ignore[arg-type]
    randomize(network, "default", seed)
    return network


def save(network: nn.Module, folder: Path, **origin: str) -> Path:
    write_adapter(network_adapter(network, **origin), folder)  # type: ignore[arg-type]
    return folder


def test_our_files_load_in_peft(tmp_path: Path, x: Tensor) -> None:
    network = adapted(alpha=2)
    save(network, tmp_path, base="model.pt", base_hash="sha256:abc", made_for="predict2 video2world")
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    peer = peft.PeftModel.from_pretrained(toy(), str(tmp_path))
    torch.testing.assert_close(peer(x), network(x), rtol=1e-6, atol=1e-6)
    assert (peer(x) - toy()(x)).abs().max() > 0.01
    assert peer.peft_config["default"].base_model_name_or_path == "model.pt"

    other = toy()
    (read,) = load_adapters(other, tmp_path)
    assert (read.base, read.base_hash, len(read.layers)) == ("model.pt", "sha256:abc", 12)
    assert read.made_for == "predict2 video2world"
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
    save(network, tmp_path / "again")
    other = peft.PeftModel.from_pretrained(toy(), str(tmp_path / "again"))
    torch.testing.assert_close(other(x), peer(x), rtol=1e-6, atol=1e-6)


def test_several_adapters_add_up_and_merge(tmp_path: Path, x: Tensor) -> None:
    one = save(adapted(seed=3, alpha=2), tmp_path / "one")
    two = save(adapted(seed=4, rank=2, targets="q_proj,mlp.layer1"), tmp_path / "two")
    network, expected = toy(), toy()
    load_adapters(network, [one, str(two)], [0.5, -2])
    for folder, factor in ((one, 0.5), (two, -2.0)):
        single = toy()
        load_adapters(single, folder, [factor])
        merge_lora(single)
        for (name, weight), plain in zip(single.state_dict().items(), toy().state_dict().values(), strict=True):
            expected.state_dict()[name].add_(weight - plain)
    torch.testing.assert_close(network(x), expected(x), rtol=1e-4, atol=1e-5)
    assert {tuple(layer.lora_A) for _, layer in lora_layers(network)} == {("default", "adapter1"), ("default",)}
    merge_lora(network)
    torch.testing.assert_close(network(x), expected(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="2 LoRA adapters are given and 1 weights for them"):
        load_adapters(toy(), [one, two], [1.0])


def test_in_file_form_and_meta_networks_take_adapters(tmp_path: Path, x: Tensor) -> None:
    source = adapted()
    path = tmp_path / "model.pt"  # a whole published checkpoint, EMA adapters among it
    state = {f"net.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save(state | {f"net_ema.{name}": tensor * 2 for name, tensor in source.state_dict().items()}, path)
    network, averaged = toy(), toy()
    load_adapters(network, path)
    assert torch.equal(network(x), source(x))
    load_adapters(averaged, path, ema=True)
    assert torch.equal(
        averaged[0].mlp["layer1"].lora_A["default"].weight, 2 * source[0].mlp["layer1"].matrices("default")[0]
    )
    with torch.device("meta"):
        meta = nn.Sequential(Block(12), Block(12))
    load_adapters(meta, path)
    with without_adapters(meta):
        meta.load_state_dict(toy().state_dict(), assign=True)
    assert torch.equal(meta(x), source(x))


def test_what_a_path_means(tmp_path: Path) -> None:
    """Run folders: tests/training/test_lora_training.py."""
    with pytest.raises(FileNotFoundError, match="no LoRA adapters at .*gone: give a folder with adapter_model"):
        adapter_folder(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"is no adapter folder \(adapter_model.safetensors\) and no run"):
        adapter_folder(tmp_path)
    exported = tmp_path / "iter_000000002_lora"
    save(adapted(), exported / "reg")
    assert adapter_folder(exported) == adapter_folder(exported / "reg") == exported / "reg"
    with pytest.raises(CheckpointError, match="holds no ema adapters, only reg: ask for these"):
        adapter_folder(exported, ema=True)


def test_bad_adapter_files(tmp_path: Path, x: Tensor) -> None:
    save(adapted(), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"needs A \(rank, 8\) and B \(16, rank\): it belongs to a network of another"
    ):
        load_adapters(toy(width=8), tmp_path)
    network = toy()[:1]
    with pytest.raises(
        CheckpointError, match=r"a layer '1.mlp.layer1', which the network does not have. Nearest.*0.mlp.layer1"
    ):
        load_adapters(network, tmp_path)
    assert torch.equal(network(x), toy()[:1](x)) and not list(lora_layers(network))

    config, tensors = json.loads((tmp_path / CONFIG).read_text()), load_file(tmp_path / WEIGHTS)
    for change, message in (({"use_dora": True}, "uses use_dora"), ({"peft_type": "IA3"}, "has peft_type 'IA3'")):
        (tmp_path / CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=f"{message}; only plain LoRA is read"):
            load_adapters(toy(), tmp_path)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match="adapter_config.json is not JSON"):
        load_adapters(toy(), tmp_path)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(CheckpointError, match="adapter_config.json is missing beside the adapter"):
        load_adapters(toy(), tmp_path)
    half = {name: tensor for name, tensor in tensors.items() if "1.mlp.layer1.lora_B" not in name}
    save_file(half, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="1.mlp.layer1 has only one of lora_A and lora_B, both are needed"):
        load_adapters(toy(), tmp_path)
    save_file(tensors | {"base_model.model.0.mlp.layer1.lora_magnitude_vector": torch.zeros(2)}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="lora_magnitude_vector' is no LoRA matrix"):
        load_adapters(toy(), tmp_path)
    save_file({"net.blocks.0.weight": torch.zeros(2)}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="holds no LoRA adapters"):
        load_adapters(toy(), tmp_path)


def test_hashes_name_a_base(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"abc")
    known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_hash(path) == known and file_hash(path, ema=True) == f"{known}#ema"
    assert file_hash(tmp_path) != known
    state = toy().state_dict()
    shuffled = dict(reversed(list(state.items())))
    assert weights_hash(state) == weights_hash(shuffled) != weights_hash(toy(seed=1).state_dict())

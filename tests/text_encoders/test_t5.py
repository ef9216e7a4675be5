"""T5 through transformers, on a small T5 of the right width that is saved to a folder: no downloads."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from cosmos_predict.errors import CheckpointError, ConfigError, MissingDependencyError
from cosmos_predict.text_encoders.build import build_text_encoder
from cosmos_predict.text_encoders.t5 import T5TextEncoder, find_t5
from cosmos_predict.text_encoders.tiny import TinyTextEncoder

transformers = pytest.importorskip("transformers")
MANIFEST = Path(__file__).parents[1] / "goldens" / "manifests" / "t5_11b_encoder.json"
PROMPTS = ["a robot arm", "", "a long caption of what a robot arm does " * 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `save_pretrained` makes it, with the weights of the tiny encoder."""
    path = tmp_path_factory.mktemp("t5")
    config = transformers.T5Config(
        vocab_size=384, d_model=1024, d_kv=16, d_ff=128, num_layers=2, num_heads=4, feed_forward_proj="relu"
    )
    model = transformers.T5EncoderModel(config)
    weights = TinyTextEncoder().weights
    model.load_state_dict(weights | {"encoder.embed_tokens.weight": weights["shared.weight"]})
    model.save_pretrained(path)
    transformers.ByT5Tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder to damage."""
    return Path(shutil.copytree(folder, tmp_path / "t5"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> T5TextEncoder:
    return T5TextEncoder(folder, device="cpu")


def test_t5_11b_matches_its_manifest() -> None:
    manifest = {name: tuple(shape) for name, shape in json.loads(MANIFEST.read_text()).items()}
    config = transformers.T5Config(
        vocab_size=32128,
        d_model=1024,
        d_kv=128,
        d_ff=65536,
        num_layers=24,
        num_heads=128,
        relative_attention_num_buckets=32,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="relu",
    )
    with torch.device("meta"):
        model = transformers.T5EncoderModel(config)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == manifest
    assert len(manifest) == 196
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_864_791_552  # the tied embedding once


def test_loads_a_folder_and_encodes_as_the_tiny_encoder(encoder: T5TextEncoder) -> None:
    embeddings, mask = encoder.encode(PROMPTS)
    expected, expected_mask = TinyTextEncoder().encode(PROMPTS)
    assert embeddings.shape == (3, 512, 1024) and embeddings.dtype == torch.float32
    assert mask.dtype == torch.bool and torch.equal(mask, expected_mask)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-4)
    assert torch.equal(embeddings.abs().sum(dim=-1) > 0, mask)
    assert not encoder.model.training and not any(weight.requires_grad for weight in encoder.model.parameters())


def test_a_prompt_does_not_depend_on_its_neighbours(encoder: T5TextEncoder) -> None:
    alone, _ = encoder.encode(PROMPTS[:1])
    for neighbour in PROMPTS[1:]:
        together, _ = encoder.encode([neighbour, PROMPTS[0]])
        torch.testing.assert_close(together[1], alone[0], rtol=0, atol=1e-4)  # rounding of another matrix shape only


def test_max_length_and_no_prompts(encoder: T5TextEncoder) -> None:
    embeddings, mask = encoder.encode(PROMPTS, max_length=7)
    assert embeddings.shape == (3, 7, 1024) and mask.sum(dim=1).tolist() == [7, 1, 7]
    assert encoder.encode([])[0].shape == (0, 512, 1024)


def test_bfloat16_is_near_float32_and_comes_out_as_float32(folder: Path, encoder: T5TextEncoder) -> None:
    half = build_text_encoder(folder, dtype=torch.bfloat16, device="cpu")
    assert isinstance(half, T5TextEncoder) and half.model.dtype == torch.bfloat16
    embeddings, _ = half.encode(PROMPTS)
    exact, _ = encoder.encode(PROMPTS)
    assert embeddings.dtype == torch.float32
    assert 0 < (embeddings - exact).norm() / exact.norm() < 0.04


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_offload_computes_the_same_and_leaves_the_weights_where_they_are(folder: Path, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    resident = T5TextEncoder(folder, device=device)
    offloaded = T5TextEncoder(folder, device=device, offload=True)
    before = [weight.data_ptr() for weight in offloaded.model.parameters()]
    embeddings, mask = offloaded.encode(PROMPTS)
    assert embeddings.device.type == mask.device.type == device
    torch.testing.assert_close(embeddings, resident.encode(PROMPTS)[0], rtol=0, atol=1e-5)
    assert [weight.data_ptr() for weight in offloaded.model.parameters()] == before
    assert all(weight.device.type == "cpu" for weight in offloaded.model.parameters())


def test_cache_dir_is_the_model_folder_or_holds_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_t5("google-t5/t5-11b", cache_dir=folder) == folder
    nested = Path(shutil.copytree(folder, tmp_path / "checkpoints" / "google-t5" / "t5-11b"))
    assert find_t5("google-t5/t5-11b", cache_dir=tmp_path / "checkpoints") == nested
    monkeypatch.chdir(tmp_path)
    assert find_t5("google-t5/t5-11b").resolve() == nested.resolve()


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no T5 folder /nowhere/t5"):
        build_text_encoder("/nowhere/t5")
    with pytest.raises(CheckpointError, match=r"is no T5 folder: expected config\.json and pytorch_model\.bin"):
        build_text_encoder(tmp_path)


def test_without_network_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match="google-t5/t5-11b: not in the local cache"):
        find_t5("google-t5/t5-11b", cache_dir=tmp_path / "empty")


def test_another_model_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"d_model": 4096}))
    with pytest.raises(CheckpointError, match="t5 model of width 4096; expected a t5 model of width 1024"):
        T5TextEncoder(copy)


def test_missing_tensors_are_named(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["encoder.block.1.layer.0.SelfAttention.o.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"lacks 1 tensors .* encoder\.block\.1\.layer\.0\.SelfAttention\.o\.weight"
    ):
        T5TextEncoder(copy)


def test_truncated_weights_are_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"cannot load a T5 encoder from {copy}"):
        T5TextEncoder(copy)


def test_unknown_dtype_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="'int4'; choose float32, bfloat16, float16 or int8"):
        T5TextEncoder(folder, dtype="int4")  # type: ignore[arg-type]


def test_eight_bit_without_its_packages_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(MissingDependencyError, match="pip install torchao"):
        T5TextEncoder(folder, dtype="int8")


def test_eight_bit_is_near_float32(folder: Path, encoder: T5TextEncoder) -> None:
    pytest.importorskip("torchao")
    embeddings, _ = T5TextEncoder(folder, dtype="int8", device="cpu").encode(PROMPTS)
    exact, _ = encoder.encode(PROMPTS)
    assert 0 < (embeddings - exact).norm() / exact.norm() < 0.08


def test_without_transformers_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match="pip install transformers, or use the tiny encoder"):
        T5TextEncoder(folder)

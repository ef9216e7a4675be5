"""Cosmos-Reason1 as a text encoder, on a small Qwen2.5-VL that is saved to a folder: no downloads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loguru import logger
from safetensors.torch import load_file, save_file

from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.embedding_index import check_same_encoder, encoder_name
from cosmos_predict.io.embeddings import ENCODERS
from cosmos_predict.text_encoders.build import LazyTextEncoder, build_text_encoder
from cosmos_predict.text_encoders.reason1 import Reason1TextEncoder
from tests.text_encoders.reason1_folder import HIDDEN, LAYERS, WIDTH, make_folder

transformers = pytest.importorskip("transformers")
modeling_qwen2_5_vl = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
PROMPTS = ["a robot arm lifts a red block", "", "a long caption of what a robot arm does " * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("reason1"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder to damage."""
    return Path(shutil.copytree(folder, tmp_path / "Cosmos-Reason1-7B"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Reason1TextEncoder:
    return Reason1TextEncoder(folder, dtype="float32", device="cpu")


def peers_embeddings(folder: Path, prompts: list[str]) -> torch.Tensor:
    """Return what diffusers' pipeline of Predict2.5 makes of prompts with the whole model, vision tower included."""
    cosmos = pytest.importorskip("diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict")
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="right")
    pipeline = SimpleNamespace(text_encoder=model, tokenizer=tokenizer, _execution_device=torch.device("cpu"))
    with torch.no_grad():
        return cosmos.Cosmos2_5_PredictBasePipeline._get_prompt_embeds(pipeline, prompts)


def test_embeddings_are_those_of_the_whole_model(folder: Path, encoder: Reason1TextEncoder) -> None:
    found, mask = encoder.encode(PROMPTS)
    assert found.shape == (3, 512, WIDTH) and encoder.width == WIDTH and found.dtype == torch.float32
    assert mask.shape == (3, 512) and mask.dtype == torch.bool and mask.all()
    torch.testing.assert_close(found, peers_embeddings(folder, PROMPTS), rtol=0, atol=2e-4)
    layers = found.unflatten(-1, (LAYERS, HIDDEN))
    assert layers.mean(-1).abs().max() < 1e-5 and (layers.std(-1) - 1).abs().max() < 1e-4
    assert not found.is_inference()  # it can be trained with


def test_the_first_layer_by_hand(folder: Path, encoder: Reason1TextEncoder) -> None:
    """Grouped-query attention with rotary angles, and the gated MLP, in plain torch from the file's tensors."""
    weights = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    table = next(value for name, value in weights.items() if name.endswith("embed_tokens.weight"))
    prefix = next(name for name in weights if "layers.0.mlp" in name).partition("mlp.")[0]
    w = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    text = "<|im_start|>system\nYou are a helpful assistant who will provide prompts to an image generator.<|im_end|>\n"
    text += f"<|im_start|>user\n{PROMPTS[0]}<|im_end|>\n"
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert len(ids) < 100 and encoder.tokenizer.pad_token_id == 0
    x = table[torch.tensor(ids + [0] * (512 - len(ids)))]

    def norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * gain

    y = norm(x, w["input_layernorm.weight"])
    q, k, v = (
        (y @ w[f"self_attn.{n}_proj.weight"].T + w[f"self_attn.{n}_proj.bias"]).unflatten(-1, (-1, 8)).transpose(0, 1)
        for n in "qkv"
    )
    angles = torch.arange(512)[:, None] * 1e6 ** -(torch.arange(4) / 4).repeat(2)
    turned = [part * angles.cos() + torch.cat([-part[..., 4:], part[..., :4]], -1) * angles.sin() for part in (q, k)]
    scores = turned[0] @ turned[1].repeat_interleave(2, 0).transpose(1, 2) / 8**0.5
    mixed = scores.masked_fill(torch.ones(512, 512).triu(1).bool(), -torch.inf).softmax(-1) @ v.repeat_interleave(2, 0)
    x = x + mixed.transpose(0, 1).flatten(1) @ w["self_attn.o_proj.weight"].T
    y = norm(x, w["post_attention_layernorm.weight"])
    gated = torch.nn.functional.silu(y @ w["mlp.gate_proj.weight"].T) * (y @ w["mlp.up_proj.weight"].T)
    x = x + gated @ w["mlp.down_proj.weight"].T
    expected = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)
    torch.testing.assert_close(encoder.encode(PROMPTS[:1])[0][0, :, :HIDDEN], expected, rtol=0, atol=2e-4)


def test_the_published_size() -> None:
    config = transformers.Qwen2_5_VLTextConfig(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4,
    )  # fmt: skip
    with torch.device("meta"):
        model = modeling_qwen2_5_vl.Qwen2_5_VLTextModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_615_616_512 - 152064 * 3584  # no lm_head
    assert {config.num_hidden_layers * config.hidden_size: Reason1TextEncoder.name}.items() <= ENCODERS.items()


def test_a_prompt_does_not_depend_on_its_neighbours_and_is_cut(encoder: Reason1TextEncoder) -> None:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    together = encoder.encode(PROMPTS)[0]
    logger.remove(sink)
    assert torch.equal(together[2], encoder.encode(PROMPTS[2:])[0][0])
    assert len(lines) == 1 and "is cut to 512: a long caption" in lines[0]
    short, mask = encoder.encode(PROMPTS, max_length=7)
    assert short.shape == (3, 7, WIDTH) and mask.shape == (3, 7)
    torch.testing.assert_close(short[2], together[2, :7])
    assert encoder.encode([])[0].shape == (0, 512, WIDTH)


def test_only_the_language_model_is_read(encoder: Reason1TextEncoder, folder: Path) -> None:
    assert not any("visual" in name or "lm_head" in name for name, _ in encoder.model.named_parameters())
    assert not encoder.model.training and not any(weight.requires_grad for weight in encoder.model.parameters())
    assert not any(tensor.is_meta for tensor in (*encoder.model.parameters(), *encoder.model.buffers()))
    half = Reason1TextEncoder(folder, device="cpu")
    assert half.model.dtype == torch.bfloat16 and half.encode(PROMPTS[:1])[0].dtype == torch.float32
    exact = encoder.encode(PROMPTS[:1])[0]
    assert 0 < (half.encode(PROMPTS[:1])[0] - exact).norm() / exact.norm() < 0.04


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_offload_computes_the_same(folder: Path, encoder: Reason1TextEncoder, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    offloaded = Reason1TextEncoder(folder, dtype="float32", device=device, offload=True)
    embeddings = offloaded.encode(PROMPTS[:1])[0]
    assert embeddings.device.type == device
    torch.testing.assert_close(embeddings.cpu(), encoder.encode(PROMPTS[:1])[0], rtol=0, atol=1e-4)
    assert all(weight.device.type == "cpu" for weight in offloaded.model.parameters())


@pytest.mark.parametrize("prefix", ["model.", "model.language_model.", "language_model.model.", ""])
def test_names_of_every_version(copy: Path, encoder: Reason1TextEncoder, prefix: str) -> None:
    tensors = {f"{prefix}{name}": value for name, value in encoder.model.state_dict().items()}
    for file in (*copy.glob("*.safetensors"), *copy.glob("*.index.json")):
        file.unlink()
    save_file(tensors | {"visual.patch_embed.proj.weight": torch.zeros(2)}, copy / "model.safetensors")
    found = Reason1TextEncoder(copy, dtype="float32", device="cpu")
    assert torch.equal(found.encode(PROMPTS[:1])[0], encoder.encode(PROMPTS[:1])[0])


def test_a_template_beside_the_tokenizer(copy: Path, encoder: Reason1TextEncoder) -> None:
    template = encoder.template
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"Cosmos-Reason1-7B has no chat template, .*chat_template\* of nvidia"):
        Reason1TextEncoder(copy, device="cpu")
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    found = Reason1TextEncoder(copy, dtype="float32", device="cpu")
    assert torch.equal(found.encode(PROMPTS[:1])[0], encoder.encode(PROMPTS[:1])[0])


def test_bad_folders_by_message(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype of the text encoder cosmos_reason1 is 'int8'; choose bfloat16"):
        Reason1TextEncoder(copy, dtype="int8")
    with pytest.raises(FileNotFoundError, match="no Cosmos-Reason1 folder here/is/none, and no Hugging Face name"):
        Reason1TextEncoder("here/is/none")
    shard = next(file for file in copy.glob("*.safetensors") if any("layers.1.mlp" in name for name in load_file(file)))
    tensors = {name: value for name, value in load_file(shard).items() if "layers.1.mlp" not in name}
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    index["weight_map"] = {n: f for n, f in index["weight_map"].items() if f != shard.name or n in tensors}
    save_file(tensors, shard)
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks \d+ tensors of the language model .* layers.1.mlp"):
        Reason1TextEncoder(copy, device="cpu")
    (copy / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 32}))
    with pytest.raises(CheckpointError, match="is a qwen2 model; expected a qwen2_5_vl, as nvidia/Cosmos-Reason1-7B"):
        Reason1TextEncoder(copy, device="cpu")
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match="is no Cosmos-Reason1 folder: expected config.json"):
        Reason1TextEncoder(copy, device="cpu")


def test_built_by_name_and_told_from_a_folder(folder: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(build_text_encoder(folder, device="cpu"), Reason1TextEncoder)
    lazy = LazyTextEncoder(str(folder), "float32", "cpu")
    assert lazy.name == "cosmos_reason1" and lazy.encode(PROMPTS[:1])[0].shape == (1, 512, WIDTH)
    monkeypatch.chdir(copy.parent)
    place = copy.parent / "checkpoints" / "nvidia" / "Cosmos-Reason1.1-7B"  # where the download command puts it
    shutil.copytree(folder, place)
    found: Any = build_text_encoder("cosmos_reason1", device="cpu")
    assert isinstance(found, Reason1TextEncoder) and found.model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("t5", "t5"),
        ("google-t5/t5-11b", "t5"),
        ("a/folder", "t5"),
        ("tiny", "tiny"),
        ("cosmos_reason1", "cosmos_reason1"),
        ("checkpoints/nvidia/Cosmos-Reason1-7B", "cosmos_reason1"),
        ("mine", "mine"),
    ],
)
def test_names(given: str, name: str) -> None:
    assert encoder_name(given) == name
    check_same_encoder(name, given, "here", "this", "do that")
    with pytest.raises(ValueError, match=f"encoder 'other', this is '{given}'"):
        check_same_encoder("other", given, "here", "this", "do that")

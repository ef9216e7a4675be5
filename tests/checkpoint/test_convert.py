"""Conversion between dialects, kinds of file, weights and LoRA forms."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from cosmos_predict.checkpoint.convert import Conversion, convert
from cosmos_predict.checkpoint.dialects import is_ignored
from cosmos_predict.checkpoint.load import load_network
from cosmos_predict.checkpoint.lora_forms import network_adapter, write_adapter
from cosmos_predict.checkpoint.lora_runs import load_adapters
from cosmos_predict.checkpoint.stream import entries_of, write_tensors
from cosmos_predict.cli.convert_checkpoint import main
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.tensors import load_tensors
from cosmos_predict.models.published import PUBLISHED
from cosmos_predict.networks.dit import build_dit
from cosmos_predict.networks.lora import DEFAULT_TARGETS, inject_lora, merge_lora
from tests.checkpoint.small import filled, native_dialect, published_state, tiny_config, tiny_network

NAME = "predict2_2b_video2world"


@pytest.fixture(scope="module")
def base():
    return tiny_network(NAME)


def save(state, path):
    write_tensors(path, entries_of(state))
    return path


def documented(state):
    """Leave out what loaders ignore, which no conversion keeps."""
    return {key: value for key, value in state.items() if not is_ignored(key)}


def same(found, expected):
    assert set(found) == set(expected)
    return all(torch.equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in expected)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_round_trip_to_our_names_and_back(name, suffix, tmp_path):
    net, dialect = tiny_network(name), native_dialect(name)
    state = published_state(net, dialect)
    save(state, tmp_path / "published.pt")
    convert(tmp_path / "published.pt", tmp_path / f"native.{suffix}", Conversion())
    native = load_tensors(tmp_path / f"native.{suffix}")
    assert {key.removeprefix("net.") for key in native if key.startswith("net.")} == set(net.state_dict())
    convert(tmp_path / f"native.{suffix}", tmp_path / f"back.{suffix}", Conversion(to=dialect))
    assert same(load_tensors(tmp_path / f"back.{suffix}"), documented(state))


def test_round_trip_through_diffusers(tmp_path):
    net = tiny_network("predict1_14b_video2world")
    state = published_state(net, "predict1")
    save(state, tmp_path / "published.pt")
    files = convert(tmp_path / "published.pt", tmp_path / "diffusers", Conversion(to="diffusers", config=net.config))
    assert [file.name for file in files] == ["diffusion_pytorch_model.safetensors", "config.json"]
    # The folder tells its own configuration, also for a size that nobody published.
    loaded = load_network(tmp_path / "diffusers")
    assert loaded.config == net.config
    convert(tmp_path / "diffusers", tmp_path / "back.pt", Conversion(to="predict1"))
    without_head = {key: value for key, value in documented(state).items() if not key.startswith("logvar.")}
    assert same(load_tensors(tmp_path / "back.pt"), without_head)


@pytest.mark.parametrize("name", ["predict1_7b_video2world_multiview", "predict2_2b_action", "predict2_2b_multiview"])
def test_a_dialect_without_a_name_is_refused_listing_the_tensors(name, tmp_path):
    net = tiny_network(name)
    save(published_state(net), tmp_path / "in.pt")
    with pytest.raises(CheckpointError, match="CosmosTransformer3DModel has no the control '(view|action)'"):
        convert(tmp_path / "in.pt", tmp_path / "out", Conversion(to="diffusers", config=net.config))
    text = tiny_network("predict2.5_2b_base")
    save(published_state(text), tmp_path / "text.pt")
    with pytest.raises(
        CheckpointError,
        match=r"'predict1' has no name for 2 tensors.*\n  crossattn_proj\.0\.weight\n  crossattn_proj\.0\.bias",
    ):
        convert(tmp_path / "text.pt", tmp_path / "out.pt", Conversion(to="predict1"))
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.pt").exists()


def test_ema_weights_and_dtype(base, tmp_path):
    ema = filled(build_dit(base.config, init=None), seed=3)
    state = published_state(base) | {f"net_ema.{key}": value for key, value in ema.state_dict().items()}
    save(state, tmp_path / "both.pt")
    convert(tmp_path / "both.pt", tmp_path / "ema.safetensors", Conversion(weights="ema", dtype=torch.bfloat16))
    expected = {f"net.{key}": value.bfloat16() for key, value in ema.state_dict().items()}
    assert same(load_file(tmp_path / "ema.safetensors"), expected)
    convert(tmp_path / "both.pt", tmp_path / "reg.pt", Conversion())
    assert same(load_tensors(tmp_path / "reg.pt"), documented(published_state(base)))
    with pytest.raises(CheckpointError, match="EMA weights asked for, but the file has only regular weights"):
        convert(tmp_path / "reg.pt", tmp_path / "x.pt", Conversion(weights="ema"))


def test_the_log_variance_head_keeps_its_precision(tmp_path):
    state = published_state(tiny_network("predict1_7b_text2world"), "predict1")
    save(state, tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "out.pt", Conversion(to="predict1", dtype=torch.bfloat16))
    found = load_tensors(tmp_path / "out.pt")
    assert torch.equal(found["logvar.0.freqs"], state["logvar.0.freqs"])
    assert {value.dtype for key, value in found.items() if key.startswith("net.")} == {torch.bfloat16}


def test_sharded_output(base, tmp_path):
    save(published_state(base), tmp_path / "in.pt")
    files = convert(tmp_path / "in.pt", tmp_path / "out", Conversion(max_shard_bytes=20_000))
    assert files[0].name.startswith("model-00001-of-") and files[-1].name == "model.safetensors.index.json"
    assert same(load_tensors(tmp_path / "out"), documented(published_state(base)))


def test_an_incomplete_file_is_not_converted(base, tmp_path):
    state = published_state(base)
    state.pop("net.blocks.1.mlp.layer2.weight")
    save(state, tmp_path / "in.pt")
    with pytest.raises(
        CheckpointError, match=r"in\.pt: its tensors are not the network's(.|\n)*blocks\.1\.mlp\.layer2\.weight"
    ):
        convert(tmp_path / "in.pt", tmp_path / "out.pt", Conversion(config=base.config))


# LoRA


@pytest.fixture()
def adapted(base, tmp_path):
    """A network with adapters, its base file, and its adapters in PEFT's form."""
    net = build_dit(base.config, init=None)
    net.load_state_dict(base.state_dict())
    inject_lora(net, rank=3, alpha=5)
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save(published_state(base), tmp_path / "base.pt")
    write_adapter(network_adapter(net, base="base.pt", base_hash="abc"), tmp_path / "adapter")
    return net


def forward(net):
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 16, 2, 4, 4, generator=generator), torch.randn(1, 5, 10, generator=generator)
    with torch.no_grad():
        return net(x, torch.tensor([0.3]), text)


def test_merging_adapters_into_their_base(adapted, tmp_path):
    convert(tmp_path / "base.pt", tmp_path / "merged.pt", Conversion(lora=[tmp_path / "adapter"], merge=True))
    merged = load_network(tmp_path / "merged.pt", config=adapted.config)
    torch.testing.assert_close(forward(merged), forward(adapted), rtol=1e-4, atol=1e-4)
    merge_lora(adapted)
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(parameter, adapted.get_parameter(name), rtol=0, atol=1e-6)


def test_two_adapters_are_merged_at_once(adapted, base, tmp_path):
    adapters = [tmp_path / "adapter", tmp_path / "adapter"]
    convert(tmp_path / "base.pt", tmp_path / "merged.pt", Conversion(lora=adapters, merge=True))
    found = load_tensors(tmp_path / "merged.pt")
    layer = adapted.blocks[0].mlp.layer1
    a, b = layer.matrices("default")
    expected = base.blocks[0].mlp.layer1.weight + 2 * 5 / 3 * (b @ a)
    torch.testing.assert_close(found["net.blocks.0.mlp.layer1.weight"], expected.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dialect", ["predict2", "predict1"])
def test_the_in_file_form_and_back(adapted, dialect, tmp_path):
    how = Conversion(lora=[tmp_path / "adapter"], lora_form="infile", to=dialect)
    convert(tmp_path / "base.pt", tmp_path / "infile.pt", how)
    found = load_tensors(tmp_path / "infile.pt")
    if dialect == "predict2":
        assert set(found) == {f"net.{key}" for key in adapted.state_dict()}
    else:
        assert "net.blocks.block0.blocks.0.block.attn.to_q.0.base_layer.weight" in found
    # Whole file -> adapters alone -> the same as were put in. The in-file form stores no alpha: it becomes the rank.
    convert(tmp_path / "infile.pt", tmp_path / "peft", Conversion(lora_form="peft"))
    assert same(
        load_file(tmp_path / "peft" / "adapter_model.safetensors"),
        load_file(tmp_path / "adapter" / "adapter_model.safetensors"),
    )
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["lora_alpha"] == 3
    convert(tmp_path / "infile.pt", tmp_path / "merged.pt", Conversion(merge=True))
    layer = adapted.blocks[1].self_attn.q_proj
    a, b = layer.matrices("default")
    expected = (layer.base_layer.weight + b @ a).detach()
    torch.testing.assert_close(
        load_tensors(tmp_path / "merged.pt")["net.blocks.1.self_attn.q_proj.weight"], expected, rtol=0, atol=1e-5
    )


def test_the_diffusers_form_and_back(adapted, base, tmp_path):
    convert(tmp_path / "adapter", tmp_path / "lora", Conversion(lora_form="diffusers"))
    keys = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors").keys()
    assert "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight" in keys
    convert(tmp_path / "lora", tmp_path / "back", Conversion(lora_form="peft"))
    assert same(
        load_file(tmp_path / "back" / "adapter_model.safetensors"),
        load_file(tmp_path / "adapter" / "adapter_model.safetensors"),
    )
    back, first = (json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("back", "adapter"))
    assert (
        (back["r"], back["lora_alpha"], back["revision"])
        == (3, 5, "abc")
        == (first["r"], first["lora_alpha"], first["revision"])
    )
    net = build_dit(base.config, init=None)
    net.load_state_dict(base.state_dict())
    load_adapters(net, tmp_path / "back")
    assert torch.equal(forward(net), forward(adapted))


def test_ranks_and_alphas_that_differ_between_layers_survive(base, tmp_path):
    net = build_dit(base.config, init=None)
    inject_lora(net, rank=2, alpha=4, targets="q_proj")
    inject_lora(net, rank=3, alpha=9, targets="mlp.layer1")
    filled(net)
    write_adapter(network_adapter(net), tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "d.safetensors", Conversion(lora_form="diffusers"))
    convert(tmp_path / "d.safetensors", tmp_path / "b", Conversion(lora_form="peft"))
    a, b = (json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in "ab")
    for key in ("rank_pattern", "alpha_pattern", "r", "lora_alpha"):
        assert a[key] == b[key]
    assert set(a["target_modules"]) == set(b["target_modules"])


def test_what_is_not_clear_about_adapters_is_asked(adapted, base, tmp_path):
    adapter, base_file = tmp_path / "adapter", tmp_path / "base.pt"
    cases = [
        (adapter, Conversion(), "holds LoRA adapters alone; say which form"),
        (adapter, Conversion(lora_form="infile"), "give the base as input and the adapters as --lora"),
        (adapter, Conversion(lora_form="peft", merge=True), "to merge adapters give the base as input"),
        (base_file, Conversion(lora=[adapter]), "say what becomes of them"),
        (base_file, Conversion(merge=True), "nothing to merge"),
        (base_file, Conversion(lora_form="peft"), "writes adapters alone, and .*base.pt has none"),
        (base_file, Conversion(lora=[base_file], merge=True), "holds no LoRA adapters"),
        (base_file, Conversion(lora=[adapter, adapter], lora_form="infile"), "in-file form holds one adapter"),
    ]
    for source, how, words in cases:
        with pytest.raises((ConfigError, CheckpointError), match=words):
            convert(source, tmp_path / "out", how)
    wide = build_dit(tiny_config(NAME, model_channels=48), init=None)
    inject_lora(filled(wide), rank=2, targets=DEFAULT_TARGETS)
    write_adapter(network_adapter(wide), tmp_path / "wide")
    with pytest.raises(CheckpointError, match="belongs to a network of another size"):
        convert(base_file, tmp_path / "out.pt", Conversion(lora=[tmp_path / "wide"], merge=True))


# The command


def test_the_command_converts_and_explains(base, tmp_path, capsys):
    save(published_state(base), tmp_path / "in.pt")
    with pytest.raises(SystemExit) as done:
        main([str(tmp_path / "in.pt"), str(tmp_path / "out.safetensors"), "--to", "predict1", "--dtype", "bfloat16"])
    assert done.value.code == 0 and str(tmp_path / "out.safetensors") in capsys.readouterr().out
    assert "net.affline_norm.weight" in load_file(tmp_path / "out.safetensors")
    for arguments, words in (
        (["--weights", "ema"], "only regular weights"),
        (["--shard_size", "many"], "size 'many' is not a number of bytes"),
        (["--model", "predict2_2b"], "unknown model 'predict2_2b': did you mean"),
    ):
        with pytest.raises(SystemExit) as done:
            main([str(tmp_path / "in.pt"), str(tmp_path / "x.safetensors"), *arguments])
        assert done.value.code == 2 and words in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main([str(tmp_path / "absent.pt"), str(tmp_path / "x.pt")])
    assert done.value.code == 2 and "absent.pt" in capsys.readouterr().err


def test_help_imports_no_torch():
    code = (
        "import sys, runpy; sys.argv = ['convert_checkpoint.py', '--help']\n"
        "try: runpy.run_path('scripts/convert_checkpoint.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'safetensors' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--to" in done.stdout

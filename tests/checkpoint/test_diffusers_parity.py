"""diffusers as an independent peer: our exports load there strictly and compute the same, both ways round."""

import json

import pytest
import torch

from cosmos_predict.checkpoint.convert import Conversion, convert
from cosmos_predict.checkpoint.load import load_network
from cosmos_predict.checkpoint.lora_forms import network_adapter, write_adapter
from cosmos_predict.checkpoint.metadata import diffusers_config
from cosmos_predict.checkpoint.stream import entries_of, write_tensors
from cosmos_predict.errors import CheckpointError, CorruptFileError
from cosmos_predict.io.tensors import load_tensors
from cosmos_predict.networks.dit import build_dit
from cosmos_predict.networks.lora import inject_lora
from tests.checkpoint.small import filled, native_dialect, published_state, tiny_config, tiny_network

diffusers = pytest.importorskip("diffusers")
NAMES = ("predict1_7b_text2world", "predict1_14b_video2world", "predict2_2b_text2image", "predict2_14b_video2world")
# A head of 16 gives time, rows and columns 8, 4 and 4 numbers of the rotary table: unequal, so that no axis can be mixed up.
SIZES = {"model_channels": 32, "num_heads": 2}


def export(net, name, folder):
    """Write `net` as the published file it is, convert it, and load the folder in diffusers, nothing missing or left over."""
    write_tensors(folder / "model.pt", entries_of(published_state(net, native_dialect(name))))
    convert(folder / "model.pt", folder / "transformer", Conversion(to="diffusers", config=net.config))
    model, report = diffusers.CosmosTransformer3DModel.from_pretrained(folder / "transformer", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), report
    return model.eval()


def match_epsilon(model):
    """Set the eps of the q and k norms to the published 1e-6; diffusers has 1e-5."""
    norms = [module for name, module in model.named_modules() if name.endswith(("norm_q", "norm_k"))]
    assert norms and {norm.eps for norm in norms} == {1e-5}
    for norm in norms:
        norm.eps = 1e-6


def inputs(config, batch=1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 16, 3, 6, 8, generator=generator)
    text = torch.randn(
        batch, 7, config.crossattn_proj_in_channels or config.crossattn_emb_channels, generator=generator
    )
    mask = torch.zeros(batch, 1, 3, 6, 8)
    mask[:, :, 0] = 1
    padding = torch.zeros(1, 1, 6, 8)
    padding[..., -2:] = 1
    return x, torch.full((batch,), 0.37), text, mask, padding


@torch.no_grad()
def outputs(net, model, fps):
    x, t, text, mask, padding = inputs(net.config)
    video = net.config.has_channel("cond_mask")
    ours = net(x, t, text, fps=fps, condition_mask=mask if video else None, padding_mask=padding)
    theirs = model(
        x, t, text, fps=fps, condition_mask=mask if video else None, padding_mask=padding, return_dict=False
    )[0]
    return ours, theirs


@pytest.mark.parametrize("name", NAMES)
def test_our_export_loads_strictly_in_diffusers_and_computes_the_same(name, tmp_path):
    net = tiny_network(name, **SIZES)
    model = export(net, name, tmp_path)
    fps = 16 if net.config.rope_enable_fps_modulation else None
    ours, theirs = outputs(net, model, fps)
    # As it comes, with its eps of 1e-5 on q and k, diffusers is that much off.
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    match_epsilon(model)
    ours, theirs = outputs(net, model, fps)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=2e-5)
    # Both depend on what they are given, so that the comparison means something.
    assert (ours - outputs(net, model, None if fps is None else 24)[0]).abs().max() > 1e-4 or fps is None


def test_projected_text(tmp_path):
    name = "predict2.5_2b_base"
    net = tiny_network(name, **SIZES)
    model = export(net, name, tmp_path)
    match_epsilon(model)
    ours, theirs = outputs(net, model, None)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=2e-5)


def test_one_time_per_latent_frame(tmp_path):
    name = "predict2_2b_video2world"
    net = tiny_network(name, **SIZES)
    model = export(net, name, tmp_path)
    match_epsilon(model)
    x, _, text, mask, padding = inputs(net.config)
    t = torch.tensor([[0.0001, 0.4, 0.7]])
    with torch.no_grad():
        ours = net(x, t, text, condition_mask=mask, padding_mask=padding)
        theirs = model(
            x, t[:, None, :, None, None], text, condition_mask=mask, padding_mask=padding, return_dict=False
        )[0]
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_diffusers_saves_loads_here(name, tmp_path):
    net = tiny_network(name, **SIZES)
    model = diffusers.CosmosTransformer3DModel(**{k: v for k, v in diffusers_config(net.config).items() if k[0] != "_"})
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(index))
    model.save_pretrained(tmp_path / "saved", max_shard_size="30KB")
    loaded = load_network(tmp_path / "saved")
    assert loaded.config == net.config
    match_epsilon(model)
    ours, theirs = outputs(loaded, model.eval(), 12 if net.config.rope_enable_fps_modulation else None)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_our_adapters_load_in_diffusers(tmp_path):
    pytest.importorskip("peft")
    name = "predict2_2b_video2world"
    net = tiny_network(name, **SIZES)
    model = export(net, name, tmp_path)
    match_epsilon(model)
    plain = outputs(net, model, None)[0]
    inject_lora(net, rank=3, alpha=6)
    adapters = {key: value for key, value in net.named_parameters() if "lora_" in key}
    for parameter in adapters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    write_adapter(network_adapter(net, made_for="predict2 video2world"), tmp_path / "adapter")
    convert(tmp_path / "adapter", tmp_path / "lora", Conversion(lora_form="diffusers"))
    model.load_lora_adapter(
        str(tmp_path / "lora"), prefix="transformer", weight_name="pytorch_lora_weights.safetensors"
    )
    ours, theirs = outputs(net, model, None)
    assert (ours - plain).abs().max() > 1e-2
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=5e-5)


def test_what_diffusers_cannot_compute_is_refused():
    for name, words in (
        (
            "predict1_7b_text2world_multiview",
            "no the control 'view' and no the input channel 'view' and no the sin-cos",
        ),
        ("predict2_2b_action", "no the control 'action'"),
    ):
        with pytest.raises(CheckpointError, match=words):
            diffusers_config(tiny_config(name))
    with pytest.raises(CheckpointError, match="no timestep_scale=0.001"):
        diffusers_config(tiny_config("predict2_2b_video2world", timestep_scale=0.001))


def test_a_broken_config_beside_the_weights_is_named(tmp_path):
    name = "predict2_2b_video2world"
    net = filled(build_dit(tiny_config(name), init=None))
    write_tensors(tmp_path / "model.pt", entries_of(published_state(net)))
    convert(tmp_path / "model.pt", tmp_path / "t", Conversion(to="diffusers", config=net.config))
    said = json.loads((tmp_path / "t" / "config.json").read_text())
    del said["rope_scale"]
    (tmp_path / "t" / "config.json").write_text(json.dumps(said))
    # The metadata of our own export would tell all; without it, the folder's file is what there is.
    weights = tmp_path / "t" / "diffusion_pytorch_model.safetensors"
    write_tensors(weights, entries_of(load_tensors(weights)))
    with pytest.raises(
        CorruptFileError, match=r"config\.json: no configuration of a CosmosTransformer3DModel \('rope_"
    ):
        load_network(tmp_path / "t")

"""Family, size, task and configuration from names and shapes alone."""

import pytest
import torch

from cosmos_predict.checkpoint.dialects import from_native, to_native, translated_names, unwrap_key
from cosmos_predict.checkpoint.load import load_state
from cosmos_predict.checkpoint.metadata import config_from_json, config_to_json
from cosmos_predict.checkpoint.recognise import recognise
from cosmos_predict.conditions.action import ActionControl
from cosmos_predict.conditions.camera import CameraBlockControl
from cosmos_predict.conditions.trajectory import TrajectoryControl
from cosmos_predict.errors import CheckpointError, CorruptFileError, UnsafeFileError
from cosmos_predict.models.published import PUBLISHED, published_config
from cosmos_predict.networks.dit import build_dit
from cosmos_predict.networks.lora import inject_lora
from tests.checkpoint.small import DIT_MANIFESTS, manifest, tiny_config


def shapes_of(config):
    net = build_dit(config, device="meta")
    return {f"net.{name}": tuple(p.shape) for name, p in net.state_dict().items()}


def test_there_is_a_manifest_for_every_published_network_and_the_other_way_round():
    assert set(DIT_MANIFESTS) == set(PUBLISHED)


@pytest.mark.parametrize("name", DIT_MANIFESTS)
def test_every_published_file_needs_no_config_and_matches_with_nothing_left_over(name):
    shapes = manifest(name)
    found = recognise(shapes)
    published = PUBLISHED[name]
    assert (found.name, found.family, found.size, found.task) == (
        name,
        published.family,
        published.size,
        published.task,
    )
    assert found.config == published_config(name) and not found.assumed
    net = build_dit(found.config, device="meta", dtype=torch.bfloat16)
    load_state(net, {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, device="meta")
    assert all(parameter.is_meta for parameter in net.parameters())


@pytest.mark.parametrize(("size", "rank", "count"), [("2b", 16, 22_937_600), ("14b", 32, 143_917_056)])
def test_lora_manifests_are_what_injection_makes(size, rank, count):
    expected = manifest(f"predict2_video2world_{size}_lora_r{rank}_adapted_keys")
    net = build_dit(published_config(f"predict2_{size}_video2world"), device="meta", dtype=torch.bfloat16)
    inject_lora(net, rank=rank)
    shapes = {f"net.{name}": tuple(p.shape) for name, p in net.state_dict().items()}
    assert {name: shape for name, shape in shapes.items() if "base_layer" in name or "lora_" in name} == expected
    assert sum(p.numel() for name, p in net.named_parameters() if "lora_" in name) == count
    # A whole file with adapters is told for the network it is.
    assert recognise(shapes).name == f"predict2_{size}_video2world"
    load_state(net, {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, device="meta")


def test_a_converted_file_is_recognised_by_its_shapes():
    for name, dialect in (("predict1_7b_video2world", "diffusers"), ("predict1_7b_text2world_multiview", "predict2")):
        shapes = shapes_of(published_config(name))
        renamed = {from_native(unwrap_key(key).name, dialect): shape for key, shape in shapes.items()}
        assert recognise(renamed).name == name


@pytest.mark.parametrize("name", ["predict2_2b_video2world", "predict1_7b_video2world"])
def test_a_control_on_a_published_size_takes_the_rotary_options_of_its_relative(name):
    base = published_config(name)
    plucker = (*base.input_channels[:2], ("plucker", 6), base.input_channels[2])
    for changes, task in (
        ({"controls": (ActionControl("per_latent", 7, 4),)}, "video2world_action"),
        ({"controls": (CameraBlockControl(features=96),)}, "video2world_camera"),
        (
            {"controls": (TrajectoryControl(),), "input_channels": (*base.input_channels, ("trajectory", 12))},
            "video2world_trajectory",
        ),
        ({"input_channels": plucker}, "video2world_camera"),
    ):
        found = recognise(shapes_of(base.replace(**changes)))
        assert (found.name, found.family, found.task) == (None, PUBLISHED[name].family, task)
        assert found.config == base.replace(**changes)
        assert any(f"rotary options as in {PUBLISHED[name].family}" in text for text in found.assumed)


def test_a_size_that_nobody_published_needs_a_config_and_says_which_fields():
    config = tiny_config("predict2_2b_video2world")
    found = recognise(shapes_of(config))
    assert found.config is None and found.fields["num_heads"] == 2 and found.fields["mlp_ratio"] == 4.0
    with pytest.raises(
        CheckpointError,
        match="24 channels and 2 blocks.*rope_h_extrapolation_ratio.*rope_enable_fps_modulation.*config",
    ):
        found.require_config("x.pt")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wan2.1_vae", "a video tokenizer"),
        ("cosmos_cv8x8x8_autoencoder", "a video tokenizer"),
        ("t5_11b_encoder", "a T5 text encoder"),
        ("transnetv2", "it has no tensor 't_embedding_norm.weight'"),
    ],
)
def test_other_files_are_named_for_what_they_are(name, words):
    with pytest.raises(CheckpointError, match="not a Cosmos diffusion network") as error:
        recognise(manifest(name))
    assert words in str(error.value)


def test_unknown_input_channels_ask_for_a_config():
    config = tiny_config("predict2_2b_video2world", input_channels=(("latent", 16), ("mine", 5)))
    with pytest.raises(CheckpointError, match="takes 21 channels: latent 16.*5 more that no published network has"):
        recognise(shapes_of(config))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_configurations_survive_the_metadata(name):
    config = published_config(name)
    assert config_from_json(config_to_json(config)) == config


def test_metadata_cannot_name_foreign_code():
    text = config_to_json(published_config("predict2_2b_action"))
    for target in ("os.system", "cosmos_predict.conditions.action.nn", "cosmos_predict.conditions.action.ActionMLP"):
        with pytest.raises(UnsafeFileError, match="refused.*no control of this package"):
            config_from_json(text.replace("cosmos_predict.conditions.action.ActionControl", target))
    with pytest.raises(CorruptFileError, match="no network configuration of this version"):
        config_from_json('{"controls": [], "width": 3}')


def test_translation_of_a_whole_manifest_keeps_every_shape():
    shapes = {
        unwrap_key(k).name: s for k, s in manifest("predict1_14b_video2world").items() if unwrap_key(k).part == "reg"
    }
    shapes.pop("pos_embedder.seq")
    expected = {
        n: tuple(p.shape)
        for n, p in build_dit(published_config("predict1_14b_video2world"), device="meta").state_dict().items()
    }
    assert {to_native(key, "predict1"): shape for key, shape in shapes.items()} == expected
    assert len(translated_names(shapes, "predict1", "diffusers")) == len(shapes)

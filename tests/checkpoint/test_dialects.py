"""Key names: bijections on every published manifest, and what has no name is refused."""

import pytest

from cosmos_predict.checkpoint.dialects import (
    DIALECTS,
    detect_dialect,
    from_native,
    is_ignored,
    to_native,
    translate,
    translated_names,
    unwrap_key,
)
from cosmos_predict.errors import CheckpointError, ConfigError
from tests.checkpoint.small import DIT_MANIFESTS, manifest, native_dialect

LORA_MANIFESTS = ["predict2_video2world_2b_lora_r16_adapted_keys", "predict2_video2world_14b_lora_r32_adapted_keys"]


def network_keys(name: str) -> list[str]:
    keys = [key for key in manifest(name) if not is_ignored(key)]
    return [unwrap_key(key).name for key in keys if unwrap_key(key).part == "reg"]


@pytest.mark.parametrize("name", [*DIT_MANIFESTS, *LORA_MANIFESTS])
def test_every_manifest_round_trips_to_our_names_and_back(name):
    keys = network_keys(name)
    source = "predict2" if "lora" in name else native_dialect(name)
    assert detect_dialect(manifest(name)) == source
    native = translated_names(keys, source, "predict2")
    back = translated_names(native.values(), "predict2", source)
    assert [back[native[key]] for key in keys] == keys
    assert len(set(native.values())) == len(keys)
    if source == "predict1":
        assert not any("block0" in key or "adaLN" in key or "affline" in key for key in native.values())


@pytest.mark.parametrize("name", DIT_MANIFESTS)
def test_a_dialect_either_names_every_tensor_or_refuses_and_lists_them(name):
    native = list(translated_names(network_keys(name), native_dialect(name), "predict2").values())
    for dialect in DIALECTS:
        nameless = [key for key in native if from_native(key, dialect) is None]
        if nameless:
            with pytest.raises(
                CheckpointError, match=rf"dialect '{dialect}' has no name for {len(nameless)} tensor"
            ) as error:
                translated_names(native, "predict2", dialect)
            assert nameless[0] in str(error.value) and "predict2" in str(error.value)
        else:
            theirs = translated_names(native, "predict2", dialect)
            assert [to_native(theirs[key], dialect) for key in native] == native
            assert detect_dialect(theirs.values()) == dialect


def test_what_has_no_name_where():
    crossing = {"crossattn_proj.0.weight": ("predict1",), "view_embeddings.weight": ("diffusers",)}
    crossing |= {"action_embedder_B_D.fc1.bias": ("diffusers",), "traj_embeddings.weight": ("diffusers",)}
    crossing |= {
        "blocks.3.cam_encoder.weight": ("predict1", "diffusers"),
        "my_control.weight": ("predict1", "diffusers"),
    }
    for key, without in crossing.items():
        assert tuple(d for d in DIALECTS if from_native(key, d) is None) == without
        assert from_native(key, "predict2") == key


def test_values_travel_with_their_names():
    state = {"blocks.block3.blocks.1.block.attn.to_k.1.weight": 1, "affline_norm.weight": 2}
    native = translate(state, "predict1", "predict2")
    assert native == {"blocks.3.cross_attn.k_norm.weight": 1, "t_embedding_norm.weight": 2}
    assert translate(native, "predict2", "diffusers") == {
        "transformer_blocks.3.attn2.norm_k.weight": 1,
        "time_embed.norm.weight": 2,
    }
    assert translate(native, "predict2", "predict1") == state


def test_keys_of_another_dialect_are_refused_with_the_likely_one():
    with pytest.raises(CheckpointError, match="look like dialect 'predict1'"):
        translate({"blocks.block0.blocks.0.block.attn.to_q.0.weight": 0}, "diffusers", "predict2")
    with pytest.raises(ConfigError, match="dialect 'nemo' is unknown; choose one of predict2, predict1, diffusers"):
        to_native("x", "nemo")
    assert detect_dialect(["encoder.conv1.weight", "x_embedder.proj.1.weight"]) is None


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("net.blocks.0.mlp.layer1.weight", ("reg", "blocks.0.mlp.layer1.weight")),
        ("net_ema.blocks.0.mlp.layer1.weight", ("ema", "blocks.0.mlp.layer1.weight")),
        ("blocks.0.mlp.layer1.weight", ("reg", "blocks.0.mlp.layer1.weight")),
        ("net-blocks-block0-blocks-2-block-layer1-weight", ("reg", "blocks.block0.blocks.2.block.layer1.weight")),
        ("logvar.0.freqs", ("logvar", "logvar.0.freqs")),
    ],
)
def test_prefixes(key, expected):
    assert unwrap_key(key) == expected


def test_only_the_documented_entries_are_ignored():
    ignored = ["net.pos_embedder.seq", "pos_embedder.dim_spatial_range", "net.pos_embedder_options.n_cameras_7.seq"]
    ignored += ["net.accum_iteration", "net_ema.accum_train_in_hours", "net.blocks.0.cross_attn.k_norm._extra_state"]
    ignored += ["net.accum_video_sample_counter", "net.accum_image_sample_counter", "net.t_embedding_norm._extra_state"]
    kept = ["net.extra_pos_embedder.pos_emb_h", "net.pos_embedder.weight", "net.accum_weights", "logvar.0.freqs"]
    assert all(map(is_ignored, ignored)) and not any(map(is_ignored, kept))

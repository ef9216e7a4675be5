"""Loading published files strictly, and every way in which a file can be wrong."""

import json
import pickle
import re

import pytest
import torch

from cosmos_predict.checkpoint.accounting import require_match
from cosmos_predict.checkpoint.load import grow_from_base, load_log_variance, load_network, load_state
from cosmos_predict.checkpoint.metadata import METADATA_KEY, config_to_json
from cosmos_predict.checkpoint.stream import entries_of, write_tensors
from cosmos_predict.conditions.action import ActionControl
from cosmos_predict.conditions.trajectory import TrajectoryControl
from cosmos_predict.errors import CheckpointError, CorruptFileError, UnsafeFileError
from cosmos_predict.io.accounting import grouped
from cosmos_predict.models.published import PUBLISHED, published_config
from cosmos_predict.networks.dit import build_dit
from cosmos_predict.networks.lora import inject_lora
from tests.checkpoint.small import filled, native_dialect, published_state, tiny_config, tiny_network


def same_weights(net, other):
    theirs = dict(other.named_parameters())
    assert set(theirs) == {name for name, _ in net.named_parameters()}
    return all(torch.equal(p.float(), theirs[name].float()) for name, p in net.named_parameters())


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_published_kind_loads_under_its_published_keys(name, suffix, tmp_path):
    net = tiny_network(name)
    path = tmp_path / f"model.{suffix}"
    write_tensors(path, entries_of(published_state(net, native_dialect(name))))
    loaded = load_network(path, config=tiny_config(name))
    assert same_weights(net, loaded) and not any(p.is_meta for p in loaded.parameters())


def test_dtype_is_the_files_or_the_one_asked_for(tmp_path):
    net = tiny_network("predict2_2b_video2world")
    torch.save({key: value.bfloat16() for key, value in net.state_dict().items()}, tmp_path / "m.pt")
    kept = load_network(tmp_path / "m.pt", config=net.config)
    assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}
    cast = load_network(tmp_path / "m.pt", config=net.config, dtype=torch.float32)
    assert {p.dtype for p in cast.parameters()} == {torch.float32} and same_weights(cast, kept)
    assert all(p.requires_grad for p in cast.parameters())


def test_a_safetensors_file_may_carry_its_configuration(tmp_path):
    net = tiny_network("predict1_7b_video2world_action")
    metadata = {METADATA_KEY: config_to_json(net.config)}
    write_tensors(tmp_path / "m.safetensors", entries_of(published_state(net)), metadata=metadata)
    loaded = load_network(tmp_path / "m.safetensors")
    assert loaded.config == net.config and same_weights(net, loaded)


def test_sharded_folder_and_wrapping_dict(tmp_path):
    net = tiny_network("predict2_2b_video2world")
    files = write_tensors(tmp_path / "s" / "model.safetensors", entries_of(net.state_dict()), max_shard_bytes=20_000)
    assert len(files) > 3
    assert same_weights(net, load_network(tmp_path / "s", config=net.config))
    torch.save({"state_dict": published_state(net), "step": 3}, tmp_path / "wrapped.pt")
    assert same_weights(net, load_network(tmp_path / "wrapped.pt", config=net.config))


def test_ema_and_regular_weights(tmp_path):
    net = tiny_network("predict2_2b_video2world")
    ema = filled(build_dit(net.config, init=None), seed=1)
    both = published_state(net) | {f"net_ema.{key}": value for key, value in ema.state_dict().items()}
    torch.save(both, tmp_path / "both.pt")
    assert same_weights(net, load_network(tmp_path / "both.pt", config=net.config))
    assert same_weights(ema, load_network(tmp_path / "both.pt", config=net.config, ema=True))
    torch.save(published_state(net), tmp_path / "reg_model.pt")
    with pytest.raises(
        CheckpointError, match=r"reg_model.pt: EMA weights asked for, but the file has only regular weights \(net\.\*\)"
    ):
        load_network(tmp_path / "reg_model.pt", config=net.config, ema=True)
    torch.save({key: value for key, value in both.items() if "net_ema." in key}, tmp_path / "only.pt")
    with pytest.raises(
        CheckpointError, match=r"regular weights asked for, but the file has only EMA weights \(net_ema"
    ):
        load_network(tmp_path / "only.pt", config=net.config)
    # Predict1 keeps EMA weights in a file of their own, under net.*
    torch.save(published_state(ema), tmp_path / "iter_000000200_ema_model.pt")
    assert same_weights(ema, load_network(tmp_path / "iter_000000200_ema_model.pt", config=net.config, ema=True))


def test_ema_of_an_unsharded_tracker_with_dashes(tmp_path):
    net = tiny_network("predict1_7b_text2world")
    state = {
        key.replace(".", "-"): value
        for key, value in published_state(net, "predict1").items()
        if key.startswith("net.")
    }
    torch.save(state, tmp_path / "iter_000000200_ema_model.pt")
    assert same_weights(net, load_network(tmp_path / "iter_000000200_ema_model.pt", config=net.config, ema=True))


def test_the_log_variance_head_lies_outside_the_network():
    state = published_state(tiny_network("predict1_7b_text2world"), "predict1")
    head = torch.nn.Sequential(torch.nn.Module(), torch.nn.Linear(8, 1, bias=False))
    head[0].register_buffer("freqs", torch.zeros(8))
    head[0].register_buffer("phases", torch.zeros(8))
    load_log_variance(head, state)
    assert torch.equal(head[0].phases, state["logvar.0.phases"]) and torch.equal(
        head[1].weight, state["logvar.1.weight"]
    )
    averaged = {key.replace("net.", "net_ema."): value for key, value in state.items()}  # a file of EMA weights alone
    load_log_variance(head, averaged | {"logvar.0.phases": torch.ones(8)})
    assert torch.equal(head[0].phases, torch.ones(8))
    with pytest.raises(CheckpointError, match=r"logvar.*\nmissing from the file: 3"):
        load_log_variance(head, {"net.x": torch.zeros(1)})


def test_a_lora_file_in_the_published_form_loads_base_and_adapters(tmp_path):
    net = tiny_network("predict2_2b_video2world")
    inject_lora(net, rank=3, targets="q_proj,mlp.layer1")
    filled(net, seed=2)
    torch.save({f"net.{key}": value for key, value in net.state_dict().items()}, tmp_path / "lora.pt")
    loaded = load_network(tmp_path / "lora.pt", config=net.config)
    assert same_weights(net, loaded)
    x, t, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([0.3]), torch.randn(1, 5, 10)
    torch.testing.assert_close(loaded(x, t, text), net(x, t, text), rtol=0, atol=0)


def test_a_14b_network_on_meta_allocates_nothing():
    net = build_dit(published_config("predict2_14b_video2world"), device="meta", dtype=torch.bfloat16)
    assert sum(p.numel() for p in net.parameters()) > 14e9 and all(p.is_meta for p in net.parameters())


# Bad input: the message is what the user has.


def refuse(net, state, *patterns, error=CheckpointError):
    before = {name: p.clone() for name, p in net.state_dict().items()}
    with pytest.raises(error) as caught:
        load_state(net, state, where="model.pt")
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), str(caught.value)
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())


def test_wrong_keys():
    net = tiny_network("predict2_2b_video2world")
    state = net.state_dict()
    state["blocks.0.mlp.layer3.weight"] = state.pop("blocks.0.mlp.layer2.weight")
    refuse(
        net,
        state,
        r"model\.pt: its tensors are not the network's",
        r"missing from the file: 1\n  blocks\.0\.mlp\.layer2\.weight",
        r"not in the network: 1\n  blocks\.0\.mlp\.layer3\.weight",
    )


def test_wrong_shapes_and_other_sizes():
    net = tiny_network("predict2_2b_video2world")
    wide = tiny_network("predict2_2b_video2world", model_channels=48)
    refuse(
        net,
        wide.state_dict(),
        r"wrong shape: 4\d\n  x_embedder\.proj\.1\.weight  file \(48, 72\), network \(24, 72\)",
        "the file is 48 wide, the network 24",
    )
    deep = tiny_network("predict2_2b_video2world", num_blocks=3)
    refuse(
        net, deep.state_dict(), "another size: the file has 3 blocks, the network 2", r"blocks\.2\.mlp\.layer1\.weight"
    )
    image = tiny_network("predict2_2b_text2image")
    refuse(
        net,
        image.state_dict(),
        r"the file takes 4 patch columns \(1 input channels at patch 1x2x2\) less",
        r"In training name a base of this task with model\.config\.model_manager_config\.dit_path=FILE, .* model=NAME",
        r"checkpoint\.strict_resume=false loads all that fits",
        "In Python: grow_from_base",
    )
    refuse(image, net.state_dict(), "the network takes 4 patch columns")


def test_likely_causes():
    net = tiny_network("predict2_2b_video2world")
    action = tiny_network("predict2_2b_action")
    refuse(
        action,
        net.state_dict(),
        "a base without action_embedder_B_3D, action_embedder_B_D",
        "grow_from_base",
        r"with model\.config\.train_architecture=base",
    )
    refuse(
        net,
        action.state_dict(),
        "modules that this network's configuration leaves out: action_embedder_B_3D, action_embedder_B_D",
    )
    cut = {key: value for key, value in net.state_dict().items() if not key.startswith("blocks.1.mlp")}
    refuse(net, cut, r"  blocks\.1\.mlp\.layer1\.weight", "the file is incomplete: it was cut, or one shard of several")
    refuse(
        net,
        {"encoder.conv1.weight": torch.zeros(2), "decoder.middle.0.bias": torch.zeros(1)},
        "this is a video tokenizer",
    )
    adapted = tiny_network("predict2_2b_video2world")
    inject_lora(adapted, rank=2)
    refuse(net, adapted.state_dict(), "a LoRA file.*base_layer", r"convert_checkpoint\.py --merge", r"blocks\.\{0-1\}")
    refuse(adapted, net.state_dict(), "carries LoRA adapters and the file has none")
    with pytest.raises(CheckpointError, match="look like dialect 'predict1'"):
        load_state(net, published_state(net, "predict1"), dialect="predict2")


def test_a_tokenizer_and_adapters_alone_are_not_networks(tmp_path):
    torch.save(
        {"encoder.conv1.weight": torch.zeros(2), "decoder.conv1.weight": torch.zeros(1)}, tmp_path / "tokenizer.pth"
    )
    with pytest.raises(CheckpointError, match=r"tokenizer\.pth: not a Cosmos diffusion network: a video tokenizer"):
        load_network(tmp_path / "tokenizer.pth")
    torch.save({"base_model.model.blocks.0.mlp.layer1.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="LoRA adapters alone.*--lora_path"):
        load_network(tmp_path / "a.pt")


def test_unknown_size_without_configuration(tmp_path):
    torch.save(tiny_network("predict2_2b_video2world").state_dict(), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt: a network of 24 channels.*Give its configuration"):
        load_network(tmp_path / "m.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_truncated_file(suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    write_tensors(path, entries_of(tiny_network("predict2_2b_video2world").state_dict()))
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(CorruptFileError, match=rf"model\.{suffix}: truncated or damaged.*download it again"):
        load_network(path)


class Exploding:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_a_pt_that_needs_weights_only_false_is_refused(tmp_path):
    torch.save({"net.x": torch.zeros(2), "more": Exploding()}, tmp_path / "zip.pt", pickle_protocol=2)
    (tmp_path / "legacy.pt").write_bytes(pickle.dumps({"net.x": Exploding()}, protocol=2))
    for name in ("zip.pt", "legacy.pt"):
        with pytest.raises((UnsafeFileError, CorruptFileError), match=name):
            load_network(tmp_path / name)


def test_tables_fold_blocks_and_stay_short():
    names = [f"blocks.{i}.mlp.layer1.weight" for i in (0, 1, 2, 5)] + ["a.weight"]
    assert grouped(names) == ["a.weight", "blocks.{0-2,5}.mlp.layer1.weight"]
    with pytest.raises(CheckpointError) as caught:
        require_match({}, {f"module{i}.weight": (1,) for i in range(40)}, "model.pt")
    text = str(caught.value)
    assert "missing from the file: 40" in text and "... and 24 more" in text and len(text.splitlines()) < 25


# Growing


def test_a_grown_network_gives_the_bases_output_bit_for_bit_whatever_the_new_channel_holds():
    base = tiny_network("predict2_2b_video2world")
    channels = (*base.config.input_channels[:2], ("plucker", 6), base.config.input_channels[2], ("trajectory", 5))
    config = base.config.replace(input_channels=channels, controls=(TrajectoryControl(dim=5),))
    torch.manual_seed(0)
    grown = build_dit(config)
    new = grow_from_base(grown, published_state(base))
    assert sorted(new) == ["traj_embeddings.bias", "traj_embeddings.weight"]
    x, t, text = torch.randn(2, 16, 2, 4, 6), torch.rand(2), torch.randn(2, 5, 10)
    mask, padding = torch.rand(2, 1, 2, 1, 1).round(), torch.rand(2, 1, 4, 6).round()
    expected = base(x, t, text, condition_mask=mask, padding_mask=padding)
    for scale in (0.0, 1.0, 1e4):
        signals = {"plucker": scale * torch.randn(2, 6, 2, 4, 6), "trajectory": scale * torch.randn(2, 192)}
        found = grown(x, t, text, condition_mask=mask, padding_mask=padding, **signals)
        assert torch.equal(found, expected), (found - expected).abs().max()


def test_growing_an_image_network_into_a_video_network_with_actions():
    base = tiny_network("predict2_2b_text2image")
    config = tiny_config("predict2_2b_video2world", controls=(ActionControl("per_latent", 7, 2),))
    grown = build_dit(config)
    new = grow_from_base(grown, base.state_dict())
    assert {name.split(".")[0] for name in new} == {"action_embedder_B_D", "action_embedder_B_3D"}
    # One time per latent frame, as video networks are called: actions per frame make the modulation per frame too.
    x, t, text = torch.randn(1, 16, 3, 4, 4), torch.rand(1, 1).expand(1, 3), torch.randn(1, 5, 10)
    # The two networks differ in their rotary ratios; ask the base with those of the grown one.
    twin = build_dit(config.replace(controls=(), input_channels=base.config.input_channels))
    load_state(twin, base.state_dict())
    out = grown(x, t, text, action=torch.randn(1, 4, 7), condition_mask=torch.ones(1, 1, 3, 4, 4))
    assert torch.equal(out, twin(x, t, text))


def test_growing_drops_with_a_warning_and_refuses_the_rest():
    from loguru import logger

    multiview = tiny_network("predict2_2b_multiview")
    net = build_dit(tiny_config("predict2_2b_video2world"))
    messages: list[str] = []
    handler = logger.add(messages.append, level="WARNING", format="{message}")
    grow_from_base(net, multiview.state_dict())
    logger.remove(handler)
    assert any("dropped, the network has no such control: ['view_embeddings']" in m for m in messages)
    assert any("input channels ['view'] of the base are not among the network's" in m for m in messages)
    weight, theirs = net.x_embedder.proj[1].weight, multiview.x_embedder.proj[1].weight
    assert torch.equal(weight, theirs[:, : weight.shape[1]])
    cut = {key: value for key, value in multiview.state_dict().items() if "mlp" not in key}
    with pytest.raises(CheckpointError):
        grow_from_base(net, cut)


def test_a_file_in_a_run_folder_takes_the_configuration_of_the_run(tmp_path):
    net = tiny_network("predict2_2b_video2world")
    fields = (
        "model_channels",
        "num_blocks",
        "num_heads",
        "adaln_lora_dim",
        "crossattn_emb_channels",
        "rope_h_extrapolation_ratio",
    )
    fields += ("max_img_h", "max_img_w", "max_frames", "rope_w_extrapolation_ratio")
    target = "cosmos_predict.{}".format
    config = {"_target_": target("networks.config.DiTConfig")} | {name: getattr(net.config, name) for name in fields}
    pipe = {"_target_": target("models.config.PipeConfig"), "net": config}
    model = {"_target_": target("models.config.ModelConfig"), "pipe_config": pipe}
    tree = {"model": {"_target_": target("models.build.build_world_model"), "config": model}}
    path = tmp_path / "run" / "checkpoints" / "model" / "iter_000000002.pt"
    write_tensors(path, entries_of(published_state(net)))
    with pytest.raises(CheckpointError, match="Give its configuration"):
        load_network(path)
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(tree))  # JSON is YAML
    loaded = load_network(path)
    assert loaded.config == net.config and same_weights(net, loaded)

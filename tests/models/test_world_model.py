"""Pixels and latents, batches, the denoiser's noise levels, construction, and the published models by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_predict.config.lazy import instantiate, lazy_dict
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.models.build import build_world_model
from cosmos_predict.models.conditioning import Conditioning
from cosmos_predict.models.config import ModelConfig, PipeConfig, TokenizerConfig
from cosmos_predict.models.published import PUBLISHED, published_config
from cosmos_predict.networks.dit import build_dit
from tests.models.small import LinearTokenizer, small_batch, small_model
from tests.networks.variants import TINY, VARIANTS, fill

# ---- pixels and latents ----------------------------------------------------------------------------------------------


def pixels(views: int = 1, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (batch, 3, 3 * views, 8, 16), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["predict1_text2world", "predict2_video2world"])
def test_latents_are_scaled_by_sigma_data(name: str) -> None:
    model = small_model(name, LinearTokenizer())
    video = pixels()
    latent = model.encode(video)
    scale = 0.5 if name.startswith("predict1") else 1.0
    assert latent.shape == (2, 16, 2, 2, 4) and latent.dtype == torch.float32
    torch.testing.assert_close(latent, scale * LinearTokenizer().encode(video.float() / 127.5 - 1))
    torch.testing.assert_close(model.encode(video.float() / 127.5 - 1), latent)
    torch.testing.assert_close(model.encode(model.decode(latent).clamp(-1, 1)), latent, rtol=0.1, atol=0.3)
    torch.testing.assert_close(model.decode(latent), LinearTokenizer().decode(latent / scale))


def test_each_view_is_encoded_on_its_own() -> None:
    model = small_model("predict2_multiview", LinearTokenizer())
    video = pixels(views=2)
    latent = model.encode(video, views=2)
    assert latent.shape == (2, 16, 4, 2, 4)
    assert torch.equal(latent[:, :, :2], model.encode(video[:, :, :3]))
    assert torch.equal(latent[:, :, 2:], model.encode(video[:, :, 3:]))
    assert torch.equal(model.decode(latent, views=2)[:, :, 3:], model.decode(latent[:, :, 2:]))
    with pytest.raises(ConfigError, match="5 frames do not divide into 2 views"):
        model.encode(video[:, :, :5], views=2)


@pytest.mark.parametrize(("value", "shown"), [(255.0, "255.000"), (-1.5, "1.500"), (float("nan"), "nan")])
def test_float_videos_out_of_range(value: float, shown: str) -> None:
    video = torch.zeros(1, 3, 3, 8, 16)
    video[0, 0, 0, 0, 0] = value
    with pytest.raises(DataError, match=rf"must lie in \[-1, 1\], this one reaches {shown}; pass uint8 or scale it"):
        small_model(tokenizer=LinearTokenizer()).encode(video)


def test_no_tokenizer() -> None:
    with pytest.raises(ConfigError, match="built without a tokenizer: give one, or use batches with the key 'latent'"):
        small_model().encode(pixels())


@pytest.mark.parametrize("name", ["predict1_video2world", "predict2_multiview", "predict2_action"])
def test_cached_latents_are_the_video(name: str) -> None:
    """`latent` holds the tokenizer's own output; a batch of it gives the loss of the video batch bit for bit."""
    variant = VARIANTS[name]
    model, tokenizer = small_model(name, LinearTokenizer()), LinearTokenizer()
    video = pixels(variant.views)
    batch = small_batch(name)
    del batch["latent"]
    if "action" in batch:
        assert batch["action"].shape == (2, 12, 7)
    views = video.float().div(127.5).sub(1).split(3, dim=2)
    latent = torch.cat([tokenizer.encode(view) for view in views], dim=2)
    if "view_indices" in batch:
        batch["view_indices"] = batch["view_indices"][:, : latent.shape[2]]
    batch["padding_mask"] = torch.zeros(2, 1, 8, 16)
    with torch.no_grad():
        from_video = model.training_loss({**batch, "video": video})
        from_latent = model.training_loss({**batch, "latent": latent})
    assert torch.equal(from_video.loss, from_latent.loss)
    assert torch.equal(from_video.xt, from_latent.xt)


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_prepare_reads_what_the_network_needs() -> None:
    batch = small_batch("predict1_trajectory")
    batch["action"], batch["image_size"] = torch.zeros(2, 12, 7), torch.zeros(2, 4)
    x0, condition = small_model("predict1_trajectory").prepare(batch)
    torch.testing.assert_close(x0, 0.5 * batch["latent"])
    assert set(condition.signals) == {"view_indices", "frame_repeat", "trajectory"}
    assert (condition.views, condition.data_type, condition.frames) == (3, "video", None)
    # A batch counts the repeated frames; the published networks read tens.
    torch.testing.assert_close(condition.signals["frame_repeat"], batch["frame_repeat"] / 10)
    assert torch.equal(condition.signals["view_indices"], batch["view_indices"])


def test_prepare_reads_named_channels() -> None:
    batch = small_batch("predict1_pose")
    condition = small_model("predict1_pose").prepare(batch)[1]
    assert torch.equal(condition.signals["plucker"], batch["plucker"])
    del batch["plucker"]
    assert small_model("predict1_pose").prepare(batch)[1].signals == {}


def test_absent_and_none_are_the_same() -> None:
    batch = small_batch("predict2_multiview")
    absent = {key: value for key, value in batch.items() if key not in ("view_indices", "padding_mask")}
    none: dict[str, Any] = {**absent, "view_indices": None, "padding_mask": None}
    model = small_model("predict2_multiview")
    assert torch.equal(model.training_loss(absent).loss, model.training_loss(none).loss)


def test_images_are_told_from_their_length() -> None:
    batch = small_batch()
    assert small_model().prepare(batch)[1].data_type == "video"
    batch["latent"] = batch["latent"][:, :, :1]
    assert small_model().prepare(batch)[1].data_type == "image"


def test_stacked_conditions() -> None:
    _, condition = small_model("predict1_trajectory").prepare(small_batch("predict1_trajectory"))
    stacked = Conditioning.stack([condition, condition.drop({"text", "trajectory"})])
    assert stacked.text.shape[0] == 4 and torch.equal(stacked.text[:2], condition.text) and not stacked.text[2:].any()
    assert not stacked.signals["trajectory"][2:].any() and stacked.signals["trajectory"][:2].any()
    assert torch.equal(stacked.signals["view_indices"], condition.signals["view_indices"].repeat(2, 1))
    assert stacked.views == 3 and stacked.frames is None and stacked.negative_text is None


# ---- the denoiser ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["predict1_video2world", "predict2_video2world"])
@torch.no_grad()
def test_forms_of_sigma(name: str) -> None:
    model = small_model(name)
    latent, condition = model.prepare(small_batch(name))
    forms = [
        2.0,
        torch.tensor(2.0),
        torch.tensor(2.0, dtype=torch.float64),
        torch.full((2,), 2.0),
        torch.full((2, 1), 2.0),
    ]
    outputs = [model.denoise(latent, sigma, condition) for sigma in forms]
    assert all(torch.equal(out, outputs[0]) for out in outputs[1:])
    single = model.denoise(latent[:1], 2.0, dataclasses.replace(condition, **_first(condition)))
    torch.testing.assert_close(single, outputs[0][:1], rtol=1e-5, atol=1e-5)
    different = model.denoise(latent, torch.tensor([2.0, 5.0]), condition)
    assert torch.equal(different[0], outputs[0][0]) and not torch.equal(different[1], outputs[0][1])


def _first(condition: Conditioning) -> dict[str, Any]:
    assert condition.padding_mask is not None
    return {"text": condition.text[:1], "padding_mask": condition.padding_mask[:1], "fps": 10.0}


@pytest.mark.parametrize("name", ["predict1_text2world", "predict2_text2image"])
@torch.no_grad()
def test_clean_states_come_back(name: str) -> None:
    """At a tiny noise level the prediction is the state itself, whatever the network says."""
    model = small_model(name)
    latent, condition = model.prepare(small_batch(name))
    torch.testing.assert_close(model.denoise(latent, 1e-6, condition), latent, rtol=1e-4, atol=1e-4)


# ---- construction ----------------------------------------------------------------------------------------------------


def test_the_tokenizer_is_not_part_of_the_model() -> None:
    model = small_model(tokenizer=LinearTokenizer())
    assert all(key.startswith("net.") for key in model.state_dict())
    assert isinstance(model.tokenizer, LinearTokenizer)


def tiny_config(**changes: Any) -> ModelConfig:
    net = VARIANTS["predict2_video2world"].config
    return ModelConfig(pipe_config=PipeConfig(**{"net": net, "tokenizer": TokenizerConfig("dct"), **changes}))


def test_build_world_model() -> None:
    torch.manual_seed(0)
    config = tiny_config(tokenizer=TokenizerConfig("dct", options={"channels": 16}))
    model = build_world_model(config)
    assert model.tokenizer.latent_ch == 16
    assert model.net.x_embedder.get_parameter("proj.1.weight").any()
    bare = build_world_model(config, with_tokenizer=False, init=False, dtype=torch.bfloat16)
    assert bare.net.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="built without a tokenizer"):
        _ = bare.tokenizer
    with_logvar = dataclasses.replace(config, loss_add_logvar=True)
    meta = build_world_model(with_logvar, device="meta", with_tokenizer=False)
    assert all(p.is_meta for p in meta.parameters()) and "logvar.1.weight" in meta.state_dict()


def test_build_refuses() -> None:
    with pytest.raises(ConfigError, match="model.config.pipe_config.net is not set"):
        build_world_model(ModelConfig())
    with pytest.raises(ConfigError, match="tokenizer 'dct' makes 8 latent channels, the network takes 16"):
        build_world_model(tiny_config(tokenizer=TokenizerConfig("dct", options={"channels": 8})))


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "family": ({"family": "predict3"}, "model family 'predict3' is not one of predict1, predict2, predict2.5"),
    "range": ({"min_num_conditional_frames": 3}, "min_num_conditional_frames=3 must lie between 0 and max_num_cond"),
    "dropout": ({"text_dropout": 1.2}, "text_dropout=1.2 is not a probability"),
    "probabilities": ({"conditional_frames_probs": (0.5, 0.6)}, r"conditional_frames_probs=\[0.5, 0.6\] are no prob"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_pipe_config_refuses(what: str) -> None:
    changes, message = CONFIGS[what]
    with pytest.raises(ConfigError, match=message):
        PipeConfig(**changes)


def test_model_config_refuses() -> None:
    with pytest.raises(ConfigError, match="train_architecture='full' is not 'base' or 'lora'"):
        ModelConfig(train_architecture="full")
    with pytest.raises(ConfigError, match="loss_reduce='none' is not 'mean' or 'sum'"):
        ModelConfig(loss_reduce="none")
    with pytest.raises(ConfigError, match="on_condition_drop='blur' is not 'zero' or 'noise'"):
        small_model("predict1_video2world", on_condition_drop="blur")


# ---- published models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_model_trains_at_a_tiny_size(name: str) -> None:
    published = PUBLISHED[name]
    config = published_config(name).replace(**TINY)
    if config.crossattn_proj_in_channels:
        config = config.replace(crossattn_proj_in_channels=24)
    net = build_dit(config, init=None)
    fill(net)
    views = 2 if name.endswith("multiview") else 1
    model_config = ModelConfig(pipe_config=PipeConfig(net=config, family=published.family, views=views))
    from cosmos_predict.models.world_model import WorldModel

    batch = {
        "latent": torch.randn(2, 16, 2 * views, 4, 4),
        "t5_text_embeddings": torch.randn(2, 5 * views, 24 if config.projects_text else 16),
        "fps": torch.tensor([10.0, 10.0]),
        "action": torch.randn(2, 12, 7),
        "sample_number": torch.arange(2),
    }
    model = WorldModel(model_config, net)
    loss = model.training_loss(batch).loss
    loss.backward()
    assert bool(loss.isfinite()) and float(loss.detach()) > 0
    assert model.takes_frames == ("text2" not in name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_as_config_nodes(name: str) -> None:
    assert instantiate(lazy_dict({"net": published_config(name)})) == {"net": published_config(name)}


def test_unknown_model_names_show_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match="unknown model 'predict2_2b_video2word': did you mean 'predict2_2b_video2world'"
    ):
        published_config("predict2_2b_video2word")
    with pytest.raises(ConfigError, match="unknown model 'zzz': known: .*; all: predict1_7b_text2world"):
        published_config("zzz")

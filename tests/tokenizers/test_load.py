"""Tokenizers by name and from files: published names on meta, round trips, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.tokenizers.base import VideoTokenizer
from cosmos_predict.tokenizers.cosmos_image import CosmosImageTokenizer
from cosmos_predict.tokenizers.cosmos_video import IGNORED_KEYS, CosmosVideoTokenizer
from cosmos_predict.tokenizers.dct import DCTTokenizer
from cosmos_predict.tokenizers.load import build_tokenizer, infer_tokenizer, load_strict, load_tokenizer
from cosmos_predict.tokenizers.normalize import read_mean_std
from cosmos_predict.tokenizers.wan import WanVAE

MANIFESTS = Path(__file__).parents[1] / "goldens" / "manifests"
NAMES = {
    "wan2.1_vae": "wan2.1",
    **{f"cosmos_cv{size}_{part}": f"cosmos_cv{size}" for size in ("4x8x8", "8x8x8") for part in ("encoder", "decoder")},
    **{f"cosmos_{kind}_autoencoder": f"cosmos_{kind}" for kind in ("cv4x8x8", "cv8x8x8", "ci8x8", "ci16x16")},
}


def manifest(name: str) -> dict[str, Tensor]:
    keys = json.loads((MANIFESTS / f"{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in keys.get("keys", keys).items()}


def test_every_tokenizer_manifest_is_tested() -> None:
    assert {path.stem for path in MANIFESTS.glob("*.json") if path.stem.startswith(("wan", "cosmos"))} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_manifests_match(name: str) -> None:
    tensors = manifest(name)
    half = name.rsplit("_", 1)[1]
    options = {"parts": (half,)} if half in ("encoder", "decoder") else {}
    tokenizer = build_tokenizer(NAMES[name], device="meta", **options)
    load_strict(tokenizer, tensors, name, "meta")
    ours = {key: tuple(value.shape) for key, value in tokenizer.state_dict().items()}
    left_over = [key for key in tensors if key not in ours]
    assert all(re.fullmatch(IGNORED_KEYS, key) for key in left_over)
    # The same architecture is recognised from the keys and shapes alone.
    kind, arguments = infer_tokenizer(tensors, name)
    with torch.device("meta"):
        inferred = kind(**{**arguments, **options})
    load_strict(inferred, tensors, name, "meta")
    for attribute in ("latent_ch", "spatial_compression_factor", "temporal_compression_factor"):
        assert getattr(inferred, attribute) == getattr(tokenizer, attribute)


def test_parameter_counts() -> None:
    def count(name: str, **options: Any) -> int:
        return sum(p.numel() for p in build_tokenizer(name, device="meta", **options).parameters())

    assert count("wan2.1") == 126_892_531
    assert count("cosmos_cv8x8x8", parts=("encoder",)) == 42_914_864
    assert count("cosmos_cv8x8x8", parts=("decoder",)) == 62_738_832


TINY: dict[str, tuple[type[VideoTokenizer], dict[str, Any]]] = {
    "wan": (WanVAE, {"dim": 8, "num_res_blocks": 1, "dim_mult": (1, 2, 2), "temperal_downsample": (False, True)}),
    "cv": (CosmosVideoTokenizer, {"channels": 8, "channels_mult": (2, 3, 4), "num_res_blocks": 1}),
    "cv4": (CosmosVideoTokenizer, {"channels": 8, "patch_size": 2, "temporal_compression": 4}),
    "cv16": (CosmosVideoTokenizer, {"channels": 8, "spatial_compression": 16}),
    "ci": (
        CosmosImageTokenizer,
        {"channels": 32, "channels_mult": (1, 2), "num_res_blocks": 1, "spatial_compression": 4},
    ),
}


def tiny(name: str, **options: Any) -> VideoTokenizer:
    kind, arguments = TINY[name]
    torch.manual_seed(0)
    return kind(**{**arguments, **options}).eval().requires_grad_(False)


def state(tokenizer: nn.Module) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in tokenizer.state_dict().items()}


def same(a: VideoTokenizer, b: VideoTokenizer) -> None:
    theirs = b.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in a.state_dict().items()) and len(theirs)
    video = torch.rand(1, 3, 1 + a.temporal_compression_factor, 32, 32)
    latent = a.encode(video)
    torch.testing.assert_close(b.encode(video), latent)
    torch.testing.assert_close(b.decode(latent), a.decode(latent))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_need_no_configuration(name: str, suffix: str, tmp_path: Path) -> None:
    tokenizer, path = tiny(name), tmp_path / f"tokenizer.{suffix}"
    save_file(state(tokenizer), path) if suffix == "safetensors" else torch.save(state(tokenizer), path)
    loaded = load_tokenizer(path)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    same(tokenizer, loaded)


class Node(nn.Module):
    """A module tree with given parameter names, as a traced tokenizer file has."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def save_jit(tensors: dict[str, Tensor], path: Path) -> None:
    root = Node()
    for key, value in tensors.items():
        *parents, leaf = key.split(".")
        node = root
        for name in parents:
            if name not in dict(node.named_children()):
                node.add_module(name, Node())
            node = node.get_submodule(name)  # type: ignore[assignment]
        node.register_buffer(leaf, value)
    torch.jit.script(root).save(str(path))  # type: ignore[union-attr]


def test_published_jit_folder(tmp_path: Path) -> None:
    tokenizer = tiny("cv")
    tensors = state(tokenizer)
    constants = {"patcher3d.wavelets": torch.ones(2), "patcher3d._arange": torch.arange(2)}
    encoder = {key: value for key, value in tensors.items() if key.startswith(("encoder.", "quant_conv."))}
    decoder = {key: value for key, value in tensors.items() if key not in encoder}
    save_jit({**encoder, **{f"encoder.{k}": v for k, v in constants.items()}}, tmp_path / "encoder.jit")
    save_jit({**decoder, "decoder.unpatcher3d.wavelets": torch.ones(2)}, tmp_path / "decoder.jit")
    mean, std = torch.randn(16, 3), torch.rand(16, 3) + 0.5
    torch.save((mean.flatten(), std.flatten()), tmp_path / "mean_std.pt")
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, CosmosVideoTokenizer)
    assert loaded.pixel_chunk_duration == 17 and loaded.normalizer is not None
    torch.testing.assert_close(loaded.normalizer.std, std)
    video = torch.rand(1, 3, 34, 16, 16)
    expected = (tokenizer.encode(video[:, :, 17:]) - mean[None, :, :, None, None]) / std[None, :, :, None, None]
    torch.testing.assert_close(loaded.encode(video)[:, :, 3:], expected)
    assert load_tokenizer(tmp_path, pixel_chunk_duration=9).get_latent_num_frames(18) == 4
    alone = load_tokenizer(tmp_path / "encoder.jit")
    torch.testing.assert_close(alone.encode(video), loaded.encode(video))
    with pytest.raises(ConfigError, match="has no decoder"):
        alone.decode(torch.zeros(1, 16, 1, 2, 2))


def test_autoencoder_jit_by_name(tmp_path: Path) -> None:
    tokenizer = tiny("ci")
    save_jit({**state(tokenizer), "encoder.patcher.wavelets": torch.ones(2)}, tmp_path / "autoencoder.jit")
    same(tokenizer, load_tokenizer(tmp_path))
    _, arguments = TINY["ci"]
    same(tokenizer, load_tokenizer("cosmos_ci8x8", checkpoint=tmp_path / "autoencoder.jit", **arguments))


def test_published_training_checkpoint(tmp_path: Path) -> None:
    tokenizer = tiny("cv")
    model = {f"network.{key}": value for key, value in state(tokenizer).items()}
    model["ema.network-quant_conv-conv3d-bias"] = torch.zeros(16)
    torch.save({"model": model, "iteration": 3}, tmp_path / "model.pt")
    same(tokenizer, load_tokenizer(tmp_path / "model.pt"))


@pytest.mark.parametrize("name", ["wan", "cv"])
def test_diffusers_folder(name: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    if name == "wan":
        peer = diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1)
        mean, std = (torch.tensor(peer.config[k]).view(1, -1, 1, 1, 1) for k in ("latents_mean", "latents_std"))
    else:
        peer = diffusers.AutoencoderKLCosmos(
            encoder_block_out_channels=(8, 16, 32, 32), decode_block_out_channels=(16, 32, 32, 32)
        )
        mean, std = (torch.tensor(peer.config[k]).view(1, 16, -1, 1, 1) for k in ("latents_mean", "latents_std"))
    peer.eval().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    frames = 1 + tokenizer.temporal_compression_factor
    video = torch.rand(1, 3, frames, 16, 16)
    with torch.no_grad():
        expected = (peer.encode(video).latent_dist.mode() - mean[:, :, :2]) / std[:, :, :2]
    torch.testing.assert_close(tokenizer.encode(video), expected, rtol=1e-4, atol=1e-5)


def test_dtype_and_meta(tmp_path: Path) -> None:
    torch.save(state(tiny("wan")), tmp_path / "tokenizer.pth")
    assert load_tokenizer(tmp_path, dtype=torch.bfloat16).compute_dtype == torch.bfloat16
    assert next(load_tokenizer(tmp_path, device="meta").parameters()).is_meta
    assert next(load_tokenizer("wan2.1", device="meta").parameters()).is_meta
    assert isinstance(load_tokenizer("dct", channels=32), DCTTokenizer)
    assert load_tokenizer("dct").latent_ch == 16


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"unknown tokenizer 'cosmos_cv8x8': .* did you mean cosmos_c"):
        load_tokenizer("cosmos_cv8x8")
    with pytest.raises(
        ConfigError,
        match=r"no tokenizer at /nowhere/x.pth: expected a file, a folder or one of wan2.1.*download_checkpoints",
    ):
        load_tokenizer("/nowhere/x.pth")
    with pytest.raises(ConfigError, match="'wan2.1' needs its weights: pass checkpoint=PATH"):
        load_tokenizer("wan2.1")
    with pytest.raises(ConfigError, match="WanVAE.* unexpected keyword argument 'dims'"):
        build_tokenizer("wan2.1", device="meta", dims=3)
    with pytest.raises(ConfigError, match="CosmosImageTokenizer: unexpected keyword argument 'dims'"):
        build_tokenizer("cosmos_ci8x8", device="meta", dims=3)


def test_every_wrong_tensor_is_listed(tmp_path: Path) -> None:
    tensors = state(tiny("wan"))
    tensors["conv9.weight"] = tensors.pop("conv2.bias")
    tensors["conv1.bias"] = torch.zeros(5)
    torch.save(tensors, tmp_path / "tokenizer.pth")
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(tmp_path / "tokenizer.pth")
    message = str(caught.value)
    assert "does not fit WanVAE" in message and "missing from the file: 1\n  conv2.bias" in message
    assert "not in the network: 1\n  conv9.weight" in message
    assert "wrong shape: 1\n  conv1.bias  file (5,), network (32,)" in message


def test_files_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"blocks.0.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"no known tokenizer; its keys are like blocks.0.weight"):
        load_tokenizer(path)
    save_file({"quantizer._levels": torch.zeros(6)}, path)
    with pytest.raises(CheckpointError, match="a discrete tokenizer"):
        load_tokenizer(path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(CheckpointError, match="describes 'AutoencoderKL'"):
        load_tokenizer(tmp_path)


def test_bad_mean_std(tmp_path: Path) -> None:
    torch.save((torch.ones(16), torch.ones(16)), tmp_path / "good.pt")
    assert read_mean_std(tmp_path / "good.pt").mean.shape == (16, 1)
    torch.save({"mean": torch.ones(16)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"holds a dict, expected a pair"):
        read_mean_std(tmp_path / "a.pt")
    torch.save((torch.ones(20), torch.ones(20)), tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="holds 20 and 20 numbers, expected a multiple of 16"):
        read_mean_std(tmp_path / "b.pt")

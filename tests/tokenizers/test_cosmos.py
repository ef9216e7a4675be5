"""The Cosmos video and image tokenizers: chunks, causality, statistics, and diffusers as a peer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cosmos_predict.errors import ConfigError
from cosmos_predict.tokenizers.cosmos_image import CosmosImageTokenizer
from cosmos_predict.tokenizers.cosmos_video import CosmosVideoTokenizer
from cosmos_predict.tokenizers.diffusers_names import cosmos_diffusers_name
from cosmos_predict.tokenizers.normalize import LatentNormalizer

TINY = {"channels": 8, "num_res_blocks": 1}
RATIOS = {
    "8x8x8": {"patch_size": 4, "temporal_compression": 8, "spatial_compression": 8},
    "4x8x8": {"patch_size": 2, "temporal_compression": 4, "spatial_compression": 8},
    "8x16x16": {"patch_size": 4, "temporal_compression": 8, "spatial_compression": 16},
}


def build(ratio: str = "8x8x8", **options: object) -> CosmosVideoTokenizer:
    torch.manual_seed(0)
    return CosmosVideoTokenizer(**{**TINY, **RATIOS[ratio], **options}).eval().requires_grad_(False)  # type: ignore


def clip(frames: int, height: int = 32, width: int = 48, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


def close(a: Tensor, b: Tensor, limit: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, rtol=limit, atol=limit)


@pytest.mark.parametrize("ratio", RATIOS)
def test_causal_and_independent_in_the_batch(ratio: str) -> None:
    tokenizer = build(ratio)
    factor = tokenizer.temporal_compression_factor
    video = clip(1 + 2 * factor)
    latent = tokenizer.encode(video)
    assert latent.shape[2] == 3
    close(tokenizer.encode(video[:, :, : 1 + factor]), latent[:, :, :2])
    close(tokenizer.encode(video[:, :, :1]), latent[:, :, :1])
    close(tokenizer.encode(video[1:]), latent[1:])
    decoded = tokenizer.decode(latent)
    assert decoded.shape == video.shape
    close(tokenizer.decode(latent[:, :, :2]), decoded[:, :, : 1 + factor])
    close(tokenizer.decode(latent[:, :, :1]), decoded[:, :, :1])
    close(tokenizer.decode(latent[1:]), decoded[1:])


def test_chunks_are_independent_and_restart_the_statistics() -> None:
    normalizer = LatentNormalizer(torch.randn(16, 16), torch.rand(16, 16) + 0.5)
    tokenizer = build(pixel_chunk_duration=9, normalizer=normalizer)
    plain = build()
    video = clip(27, batch=1)
    latent = tokenizer.encode(video)
    assert latent.shape[2] == tokenizer.get_latent_num_frames(27) == 6
    mean, std = (table[None, :, :2, None, None] for table in (normalizer.mean, normalizer.std))
    for index in range(3):
        part, frames = latent[:, :, 2 * index : 2 * index + 2], video[:, :, 9 * index : 9 * index + 9]
        close(part, (plain.encode(frames) - mean) / std)
        close(tokenizer.decode(latent)[:, :, 9 * index : 9 * index + 9], plain.decode(part * std + mean))


def test_a_short_clip_is_the_start_of_a_chunk() -> None:
    normalizer = LatentNormalizer(torch.randn(16, 3), torch.rand(16, 3) + 0.5)
    tokenizer = build(pixel_chunk_duration=17, normalizer=normalizer)
    video = clip(17)
    latent = tokenizer.encode(video)
    close(tokenizer.encode(video[:, :, :9]), latent[:, :, :2])
    close(tokenizer.encode(video[:, :, :1]), latent[:, :, :1])


def test_per_frame_chunks() -> None:
    tokenizer = build(pixel_chunk_duration=1)
    video = clip(3)
    latent = tokenizer.encode(video)
    assert latent.shape[2] == 3 and tokenizer.get_pixel_num_frames(3) == 3
    close(latent[:, :, 2:], tokenizer.encode(video[:, :, 2:]))


def test_frame_counts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"T = 10 frames: expected 1 \+ 8 k, such as 9 or 17"):
        build().encode(clip(10))
    chunked = build(pixel_chunk_duration=9)
    with pytest.raises(
        ValueError, match=r"T = 10 frames: expected a multiple of pixel_chunk_duration=9, such as 9 or 18"
    ):
        chunked.encode(clip(10))
    with pytest.raises(ValueError, match=r"T = 5 frames: .* such as 1 or 9"):
        chunked.encode(clip(5))
    with pytest.raises(ValueError, match=r"t = 3 latent frames: expected a multiple of 2 .* such as 2 or 4"):
        chunked.decode(torch.zeros(1, 16, 3, 2, 2))
    with pytest.raises(ConfigError, match=r"pixel_chunk_duration=10: expected 1 \+ 8 k"):
        build(pixel_chunk_duration=10)
    with pytest.raises(ValueError, match=r"video W = 24: expected a multiple of 16, such as 16 or 32"):
        build("8x16x16").encode(clip(9, width=24))


def test_more_frames_than_statistics() -> None:
    tokenizer = build(normalizer=LatentNormalizer(torch.zeros(16, 2), torch.ones(16, 2)))
    with pytest.raises(ConfigError, match=r"3 latent frames in one chunk: the latent statistics cover 2"):
        tokenizer.encode(clip(17))


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="patch_method='rearrange'"):
        build(patch_method="rearrange")
    with pytest.raises(ConfigError, match="legacy_mode=True: only False is supported"):
        build(legacy_mode=True)
    with pytest.raises(ConfigError, match="num_groups=2"):
        build(num_groups=2)
    with pytest.raises(ConfigError, match="compression 12 with patch_size 4"):
        build(spatial_compression=12)
    half = build(parts=("encoder",))
    with pytest.raises(ConfigError, match="has no decoder"):
        half.decode(torch.zeros(1, 16, 1, 2, 2))


def test_bfloat16_restores_the_dtype_and_stays_near() -> None:
    tokenizer, low = build(), build().to(torch.bfloat16)
    video = clip(9)
    latent, exact = low.encode(video), tokenizer.encode(video)
    assert latent.dtype == torch.float32
    assert float((latent - exact).norm() / exact.norm()) < 3e-2
    assert low.decode(exact.bfloat16()).dtype == torch.bfloat16


def test_gradients_flow() -> None:
    tokenizer = build().requires_grad_(True)
    tokenizer.decode(tokenizer.encode(clip(9, batch=1))).square().mean().backward()
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())


def test_rounded_statistics_are_an_option() -> None:
    values = [0.123456789] * 4
    exact, rounded = LatentNormalizer(values, values), LatentNormalizer(values, values, round_to=torch.bfloat16)
    assert exact.std[0, 0] != rounded.std[0, 0] == torch.tensor(values[0]).bfloat16().float()


@pytest.mark.parametrize(("mean", "std", "message"), [([0.0], [0.0], "positive"), ([0.0, 0.0], [1.0], "one shape")])
def test_bad_statistics(mean: list[float], std: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LatentNormalizer(mean, std)


@pytest.mark.parametrize("spatial", [8, 16])
def test_image_tokenizer(spatial: int) -> None:
    torch.manual_seed(0)
    tokenizer = CosmosImageTokenizer(
        channels=32, channels_mult=(1, 1, 2), num_res_blocks=1, spatial_compression=spatial
    )
    tokenizer.eval().requires_grad_(False)
    images = clip(3)
    latent = tokenizer.encode(images)
    assert latent.shape == (2, 16, 3, 32 // spatial, 48 // spatial)
    close(latent[:, :, 1:2], tokenizer.encode(images[:, :, 1:2]))
    decoded = tokenizer.decode(latent)
    assert decoded.shape == images.shape
    close(decoded[1:, :, 2:], tokenizer.decode(latent[1:, :, 2:]))


@pytest.mark.parametrize("ratio", RATIOS)
def test_equals_diffusers(ratio: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    tokenizer = build(ratio, num_res_blocks=2)
    sizes = RATIOS[ratio]
    peer = diffusers.AutoencoderKLCosmos(
        encoder_block_out_channels=(8, 16, 32, 32),
        decode_block_out_channels=(16, 32, 32, 32),
        patch_size=sizes["patch_size"],
        spatial_compression_ratio=sizes["spatial_compression"],
        temporal_compression_ratio=sizes["temporal_compression"],
    )
    peer.eval().requires_grad_(False)
    state = {cosmos_diffusers_name(key): value for key, value in tokenizer.state_dict().items()}
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert not unexpected and all("patch" in key for key in missing)
    for frames in (1, 1 + 2 * sizes["temporal_compression"]):
        video = clip(frames)
        latent = tokenizer.encode(video)
        close(latent, peer.encode(video).latent_dist.mode())
        close(tokenizer.decode(latent), peer.decode(latent).sample, 5e-5)

"""The Wan 2.1 VAE: chunks, streams, causality, images, gradients, and diffusers as a peer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cosmos_predict.errors import ConfigError
from cosmos_predict.tokenizers.diffusers_names import wan_diffusers_name
from cosmos_predict.tokenizers.wan import WanStream, WanVAE

TINY = {"dim": 8, "num_res_blocks": 1}


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    torch.manual_seed(0)
    vae = WanVAE(**TINY, temporal_window=None).eval().requires_grad_(False)
    for name, value in vae.named_parameters():
        if name.endswith("gamma"):
            value.normal_(1, 0.2)
    return vae


def clip(frames: int, height: int = 16, width: int = 24, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


def close(a: Tensor, b: Tensor, limit: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=limit, atol=limit)


@pytest.mark.parametrize("window", [4, 8, 12])
def test_chunks_equal_the_whole(vae: WanVAE, window: int) -> None:
    video = clip(25)
    latent = vae.encode(video)
    decoded = vae.decode(latent)
    chunked = WanVAE(**TINY, temporal_window=window).eval()
    chunked.load_state_dict(vae.state_dict())
    with torch.no_grad():
        close(chunked.encode(video), latent)
        close(chunked.decode(latent), decoded)
    assert decoded.shape == video.shape and latent.shape == (2, 16, 7, 2, 3)


@pytest.mark.parametrize("sizes", [[1, 4, 8], [5, 4, 4], [9, 4], [1, 12], [13]])
def test_streaming_encode(vae: WanVAE, sizes: list[int]) -> None:
    video = clip(13)
    stream = WanStream()
    pieces = [vae.encode_chunk(piece, stream) for piece in video.split(sizes, dim=2)]
    close(torch.cat(pieces, 2), vae.encode(video))


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [1, 3], [2, 2], [3, 1], [4]])
def test_streaming_decode(vae: WanVAE, sizes: list[int]) -> None:
    latent = vae.encode(clip(13))
    stream = WanStream()
    pieces = [vae.decode_chunk(piece, stream) for piece in latent.split(sizes, dim=2)]
    assert [piece.shape[2] for piece in pieces] == [4 * sizes[0] - 3] + [4 * n for n in sizes[1:]]
    close(torch.cat(pieces, 2), vae.decode(latent))


def test_a_stream_takes_what_encode_takes(vae: WanVAE) -> None:
    """Pixels as bytes are scaled, and a size that does not fit is refused, instead of latents of something else."""
    video = torch.randint(0, 256, (1, 3, 9, 16, 16), dtype=torch.uint8)
    stream = WanStream()
    close(torch.cat([vae.encode_chunk(piece, stream) for piece in video.split([5, 4], dim=2)], 2), vae.encode(video))
    with pytest.raises(ValueError, match=r"video H = 20: expected a multiple of 8, such as 16 or 24"):
        vae.encode_chunk(torch.zeros(1, 3, 5, 20, 16), WanStream())


def test_a_copied_stream_forks(vae: WanVAE) -> None:
    video, other = clip(9), clip(17)[:, :, 5:9]
    stream = WanStream()
    vae.encode_chunk(video[:, :, :5], stream)
    fork = stream.copy()
    a = vae.encode_chunk(video[:, :, 5:], stream)
    b = vae.encode_chunk(other, fork)
    close(a, vae.encode(video)[:, :, 2:])
    close(b, vae.encode(torch.cat([video[:, :, :5], other], 2))[:, :, 2:])


def test_causal(vae: WanVAE) -> None:
    video = clip(17)
    latent = vae.encode(video)
    close(vae.encode(video[:, :, :9]), latent[:, :, :3])
    close(vae.encode(video[:, :, :1]), latent[:, :, :1])
    decoded = vae.decode(latent)
    close(vae.decode(latent[:, :, :3]), decoded[:, :, :9])
    close(vae.decode(latent[:, :, :1]), decoded[:, :, :1])


def test_samples_of_a_batch_are_independent(vae: WanVAE) -> None:
    video = clip(5)
    latent = vae.encode(video)
    close(latent[1:], vae.encode(video[1:]))
    close(vae.decode(latent)[1:], vae.decode(latent[1:]))


def test_gradient_path_equals_inference(vae: WanVAE) -> None:
    video = clip(5, batch=1)
    wide = WanVAE(dim=64, dim_mult=(1, 1), num_res_blocks=1, temperal_downsample=(True,)).eval()
    with torch.no_grad():
        latent = wide.encode(video)  # pairs of frames
    differentiable = wide.encode(video.requires_grad_())  # plain sums
    close(differentiable.detach(), latent)
    wide.decode(differentiable).square().mean().backward()
    assert video.grad is not None and bool(video.grad.abs().sum() > 0)
    assert all(p.grad is not None for p in wide.parameters() if p.requires_grad)


def test_bfloat16_restores_the_dtype_and_stays_near(vae: WanVAE) -> None:
    low = WanVAE(**TINY).eval()
    low.load_state_dict(vae.state_dict())
    low.to(torch.bfloat16).requires_grad_(False)
    video = clip(5)
    latent, exact = low.encode(video), vae.encode(video)
    assert latent.dtype == torch.float32 and low.encode(video.bfloat16()).dtype == torch.bfloat16
    assert float((latent - exact).norm() / exact.norm()) < 2e-2
    decoded, exact = low.decode(exact), vae.decode(exact)
    assert float((decoded - exact).norm() / exact.norm()) < 3e-2


def test_uint8_input(vae: WanVAE) -> None:
    pixels = torch.randint(0, 256, (1, 3, 5, 16, 16), dtype=torch.uint8)
    close(vae.encode(pixels), vae.encode(pixels.float() / 127.5 - 1))


def test_frame_counts(vae: WanVAE) -> None:
    assert [vae.get_latent_num_frames(n) for n in (1, 29, 61, 93)] == [1, 8, 16, 24]
    assert [vae.get_pixel_num_frames(n) for n in (1, 8, 16, 24)] == [1, 29, 61, 93]


def test_sizes_that_do_not_fit(vae: WanVAE) -> None:
    with pytest.raises(ValueError, match=r"T = 8 frames: expected 1 \+ 4 k, such as 5 or 9"):
        vae.encode(clip(8))
    with pytest.raises(ValueError, match=r"T = 0 frames: .* such as 1"):
        vae.get_latent_num_frames(0)
    with pytest.raises(ValueError, match=r"video H = 20: expected a multiple of 8, such as 16 or 24"):
        vae.encode(clip(5, height=20))
    with pytest.raises(ValueError, match=r"video W = 4: expected a multiple of 8, such as 8"):
        vae.encode(clip(5, width=4))
    with pytest.raises(ConfigError, match=r"expected \(B, 3, T, H, W\)"):
        vae.encode(torch.zeros(1, 4, 1, 8, 8))
    with pytest.raises(ConfigError, match=r"t = 0 latent frames"):
        vae.decode(torch.zeros(1, 16, 0, 2, 2))
    with pytest.raises(ConfigError, match=r"dtype torch.int64"):
        vae.encode(torch.zeros(1, 3, 1, 8, 8, dtype=torch.int64))
    stream = WanStream()
    vae.encode_chunk(clip(5), stream)
    with pytest.raises(ConfigError, match=r"T = 5 frames to go on with: expected a multiple of 4"):
        vae.encode_chunk(clip(5), stream)


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="dropout=0.1: no published Wan VAE has any"):
        WanVAE(dropout=0.1)
    with pytest.raises(ConfigError, match="attn_scales"):
        WanVAE(**TINY, attn_scales=[1.0])
    with pytest.raises(ConfigError, match="temporal_window=6: expected a multiple of 4"):
        WanVAE(**TINY, temporal_window=6)
    with pytest.raises(ConfigError, match="temporal_window='huge'"):
        WanVAE(**TINY, temporal_window="huge")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="2 entries for 4 levels"):
        WanVAE(**TINY, temperal_downsample=[True, True])


@pytest.mark.parametrize("blocks", [1, 2])
def test_equals_diffusers(blocks: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    peer = diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=blocks).eval().requires_grad_(False)
    vae = WanVAE(dim=8, num_res_blocks=blocks).eval().requires_grad_(False)
    peer.load_state_dict({wan_diffusers_name(key, blocks): value for key, value in vae.state_dict().items()})
    mean, std = (
        torch.tensor(table).view(1, -1, 1, 1, 1) for table in (peer.config.latents_mean, peer.config.latents_std)
    )
    for frames in (1, 9):
        video = clip(frames)
        latent = vae.encode(video)
        close(latent, (peer.encode(video).latent_dist.mode() - mean) / std)
        close(vae.decode(latent).clamp(-1, 1), peer.decode(latent * std + mean).sample, 2e-5)

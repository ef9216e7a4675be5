"""The DCT tokenizer: exactness, causality, statistics."""

from __future__ import annotations

import pytest
import torch

from cosmos_predict.errors import ConfigError
from cosmos_predict.tokenizers.dct import DCT_STD_4X8X8, DCTTokenizer, dct_order, fit_dct_std


def smooth_clip(frames: int = 17, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 3, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(frames, size, size), mode="trilinear", align_corners=True)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def test_the_published_order() -> None:
    order = dct_order(4)
    assert [str(d) + str(a) + str(u) + str(v) for d, a, u, v in order[:16]] == (
        [
            "0000",
            "1000",
            "2000",
            "0100",
            "0001",
            "0010",
            "1100",
            "2100",
            "1001",
            "1010",
            "2001",
            "2010",
            "0200",
            "0101",
            "0110",
            "1200",
        ]
    )
    assert len(order) == len(set(order)) == 768


@pytest.mark.parametrize("temporal", [1, 4, 8])
def test_all_coefficients_are_lossless(temporal: int) -> None:
    video = torch.rand(2, 3, 1 + 2 * temporal, 16, 24) * 2 - 1
    tokenizer = DCTTokenizer(3 * temporal * 64, temporal)
    latent = tokenizer.encode(video)
    assert latent.shape == (2, 3 * temporal * 64, 3, 2, 3)
    torch.testing.assert_close(tokenizer.decode(latent), video, rtol=0, atol=1e-5)


def test_quality_grows_with_channels() -> None:
    video = smooth_clip()
    quality = [psnr(DCTTokenizer(k).decode(DCTTokenizer(k).encode(video)), video) for k in (3, 16, 64)]
    assert quality == sorted(quality) and quality[1] > 25


def test_causal_and_chunkable() -> None:
    tokenizer, video = DCTTokenizer(), smooth_clip(13)
    latent = tokenizer.encode(video)
    torch.testing.assert_close(tokenizer.encode(video[:, :, :5]), latent[:, :, :2])
    torch.testing.assert_close(tokenizer.encode(video[:, :, :1]), latent[:, :, :1])
    torch.testing.assert_close(tokenizer.decode(latent[:, :, :2]), tokenizer.decode(latent)[:, :, :5])


def test_default_table_and_meta_device() -> None:
    with torch.device("meta"):
        tokenizer = DCTTokenizer()
    assert tokenizer.normalizer is not None and tokenizer.state_dict() == {}
    assert tokenizer.normalizer.std[:, 0].tolist() == pytest.approx(DCT_STD_4X8X8)
    assert tokenizer.encode(torch.ones(1, 3, 1, 8, 8))[0, 0].item() == pytest.approx(1 / 0.256, rel=1e-5)


def test_fitted_table_gives_unit_variance() -> None:
    clips = [smooth_clip(seed=seed)[0] for seed in range(8)]
    std = fit_dct_std(clips, channels=4)
    latents = torch.cat([DCTTokenizer(4, std=std).encode(c[None]) for c in clips]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.std(1, correction=0), torch.ones(4), rtol=1e-3, atol=1e-3)
    pixels = [((c + 1) * 127.5).round().byte() for c in clips]
    torch.testing.assert_close(fit_dct_std(pixels, channels=4), std, rtol=0.05, atol=1e-3)


def test_gradients_and_dtypes() -> None:
    video = smooth_clip(5).requires_grad_()
    tokenizer = DCTTokenizer()
    tokenizer.decode(tokenizer.encode(video)).square().sum().backward()
    assert video.grad is not None and bool(video.grad.abs().sum() > 0)
    assert tokenizer.decode(tokenizer.encode(smooth_clip(5).bfloat16())).dtype == torch.bfloat16


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="DCT with 800 channels"):
        DCTTokenizer(800)
    with pytest.raises(ConfigError, match="DCT std of 3 numbers: expected one for each of 4"):
        DCTTokenizer(4, std=[1.0] * 3)
    with pytest.raises(ConfigError, match="one shape"):
        DCTTokenizer(4, std=[1.0] * 4, mean=[0.0] * 3)
    with pytest.raises(ConfigError, match="no clips"):
        fit_dct_std([])
    with pytest.raises(ValueError, match=r"T = 7 frames: expected 1 \+ 4 k, such as 5 or 9"):
        DCTTokenizer().encode(torch.zeros(1, 3, 7, 8, 8))

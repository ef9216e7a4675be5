"""Metrics against values that are known or computed another way."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos_predict.errors import CheckpointError, DataError
from cosmos_predict.evaluation.metrics import LPIPS, mean_interval, psnr, ssim, t_quantile
from cosmos_predict.evaluation.report import summarise, table


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_psnr_of_a_constant_error() -> None:
    real = np.full((3, 16, 20, 3), 100, np.uint8)
    assert np.allclose(psnr(real + np.uint8(5), real), 20 * math.log10(255 / 5))
    assert np.array_equal(psnr(real, real), [100.0] * 3)
    mixed = real.copy()
    mixed[1] += 10
    assert np.allclose(psnr(mixed, real), [100, 20 * math.log10(255 / 10), 100])


def test_ssim_against_its_definition() -> None:
    """One window of the definition, computed directly; and known ends of the scale."""
    x, y = noise(1, 11, 11, 3), noise(1, 11, 11, 3, seed=1)
    grid = np.exp(-((np.arange(11) - 5.0) ** 2) / 4.5)
    weight = np.outer(grid, grid) / np.outer(grid, grid).sum()
    values = []
    for channel in range(3):
        a, b = x[0, :, :, channel].astype(float), y[0, :, :, channel].astype(float)
        mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
        var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
        covariance = (weight * (a - mean_a) * (b - mean_b)).sum()
        c1, c2 = 6.5025, 58.5225
        values.append(
            (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
        )
    assert ssim(x, y)[0] == pytest.approx(np.mean(values), abs=1e-9)
    big = noise(2, 32, 40, 3)
    assert np.allclose(ssim(big, big), 1) and abs(ssim(big, noise(2, 32, 40, 3, seed=2))).max() < 0.1


def test_ssim_of_whole_frames_against_convolution() -> None:
    """All windows of frames of several strips at once, with variances from their definition; views of any strides."""
    real = noise(2, 45, 37, 3)
    near = np.clip(real + np.random.default_rng(3).normal(0, 25, real.shape), 0, 255).astype(np.uint8)
    grid = np.exp(-((np.arange(11) - 5.0) ** 2) / 4.5)
    weight = np.outer(grid, grid) / np.outer(grid, grid).sum()
    x, y = (np.lib.stride_tricks.sliding_window_view(a.astype(float), (11, 11), (1, 2)) for a in (near, real))
    mean_x, mean_y = ((a * weight).sum((-1, -2), keepdims=True) for a in (x, y))
    moments = ((x - mean_x) ** 2, (y - mean_y) ** 2, (x - mean_x) * (y - mean_y))
    var_x, var_y, covariance = ((a * weight).sum((-1, -2)) for a in moments)
    mean_x, mean_y = mean_x[..., 0, 0], mean_y[..., 0, 0]
    expected = (2 * mean_x * mean_y + 6.5025) * (2 * covariance + 58.5225)
    expected /= (mean_x**2 + mean_y**2 + 6.5025) * (var_x + var_y + 58.5225)
    assert np.allclose(ssim(near, real), expected.mean((1, 2, 3)), rtol=0, atol=1e-12)
    channels_first = np.ascontiguousarray(real.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    assert np.array_equal(ssim(near, channels_first), ssim(near, real))


class Largest(TorchDispatchMode):
    """Keeps the bytes of the largest tensor that is made inside."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.nbytes = max(self.nbytes, result.nbytes if isinstance(result, torch.Tensor) else 0)
        return result


def test_measures_take_a_frame_at_a_time() -> None:
    """Neither a clip nor a frame is ever whole in float64: no tensor is larger than some rows, however large the clip."""
    frames = noise(6, 192, 192, 3)
    with Largest() as largest:
        ssim(frames, frames)
    assert 0 < largest.nbytes <= 4 * 18 * 192 * 3 * 8 < frames.nbytes


def test_ssim_of_two_constants() -> None:
    """Without variance only the luminance term is left: (2 a b + c1) / (a^2 + b^2 + c1)."""
    a, b = np.full((1, 16, 16, 3), 60, np.uint8), np.full((1, 16, 16, 3), 120, np.uint8)
    assert ssim(a, b)[0] == pytest.approx((2 * 60 * 120 + 6.5025) / (60**2 + 120**2 + 6.5025), abs=1e-6)


def test_clips_that_cannot_be_compared() -> None:
    with pytest.raises(
        DataError, match=r"uint8 \(T, H, W, 3\) of one shape, got uint8 \(1, 16, 16, 3\) and uint8 \(2,"
    ):
        psnr(noise(1, 16, 16, 3), noise(2, 16, 16, 3))
    with pytest.raises(DataError, match="at least 11 x 11 pixels, got 8 x 16"):
        ssim(noise(1, 8, 16, 3), noise(1, 8, 16, 3))


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.30265), (5, 2.57058), (15, 2.13145), (23, 2.06866), (1000, 1.96234)]
)
def test_t_quantiles_of_the_tables(degrees: int, expected: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(expected, rel=2e-4)


def test_intervals() -> None:
    mean, half = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and half == pytest.approx(3.18245 * math.sqrt(5 / 3) / 2, rel=1e-4)
    assert math.isnan(mean_interval([1.0])[1])


def lpips_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    weights = {}
    for layer, (n, shape) in enumerate(shapes.items()):
        weights[f"features.{n}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        weights[f"features.{n}.bias"] = torch.zeros(shape[0])
        weights[f"lin{layer}.model.1.weight"] = torch.rand(1, shape[0], 1, 1, generator=generator)
    return weights


def test_lpips_from_files(tmp_path: Path) -> None:
    """Zero for equal frames, symmetric, larger for a larger change; the network is torchvision's AlexNet."""
    from torchvision.models import alexnet

    weights = lpips_weights()
    save_file({k: v for k, v in weights.items() if k.startswith("features")}, tmp_path / "alexnet.safetensors")
    torch.save({k: v for k, v in weights.items() if k.startswith("lin")}, tmp_path / "alex.pth")
    measure = LPIPS([tmp_path / "alexnet.safetensors", tmp_path / "alex.pth"])
    real = noise(2, 64, 64, 3)
    near = np.clip(real.astype(int) + 4, 0, 255).astype(np.uint8)
    assert np.allclose(measure(real, real), 0)
    assert (measure(near, real) < measure(255 - real, real)).all()
    assert np.allclose(measure(near, real), measure(real, near), rtol=1e-5)
    layers = alexnet(weights=None).features
    layers.load_state_dict({k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features")})
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    expected, a, b = (
        torch.zeros(2),
        *(((torch.from_numpy(v) / 127.5 - 1 - shift) / scale).permute(0, 3, 1, 2) for v in (near, real)),
    )
    with torch.no_grad():
        for n, layer in enumerate(layers):
            a, b = layer(a), layer(b)
            if n in (1, 4, 7, 9, 11):
                number = (1, 4, 7, 9, 11).index(n)
                gap = (torch.nn.functional.normalize(a) - torch.nn.functional.normalize(b)) ** 2
                expected += (gap * weights[f"lin{number}.model.1.weight"]).sum(1).mean((1, 2))
    assert np.allclose(measure(near, real), expected.numpy(), rtol=1e-4)
    with pytest.raises(CheckpointError, match=r"LPIPS: features.0.weight is in none of .*alex.pth"):
        LPIPS([tmp_path / "alex.pth"])


def test_differences_are_paired() -> None:
    """A small constant gain is certain although clips differ by much more than it."""
    base = np.array([10.0, 20.0, 30.0, 40.0])
    scores = {
        "ours": {"psnr": [np.array([value + 0.5, value + 0.5]) for value in base]},
        "other": {"psnr": [np.array([value, value]) for value in base]},
    }
    summary = summarise(scores)
    assert summary["methods"]["other"]["psnr"]["interval"] > 15
    assert summary["differences"]["other"]["psnr"] == {"mean": pytest.approx(0.5), "interval": pytest.approx(0)}
    assert summary["methods"]["ours"]["psnr"]["per_frame"] == [25.5, 25.5]
    assert "ours - other  +0.50 +- 0.00" in table(summary)


def test_one_clip_has_no_interval() -> None:
    summary = summarise({name: {"psnr": [np.array([gain])]} for name, gain in (("ours", 21.5), ("other", 20.0))})
    assert summary["methods"]["ours"]["psnr"]["interval"] is None
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    shown = table(summary)
    assert "21.50 +- n/a" in shown and "+1.50 +- n/a" in shown and "nan" not in shown

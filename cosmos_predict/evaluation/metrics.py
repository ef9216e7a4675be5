"""How near generated frames are to real ones: PSNR, SSIM, LPIPS per frame; means with Student-t intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos_predict.errors import CheckpointError, DataError
from cosmos_predict.io.tensors import load_tensors

MAX_PSNR = 100.0  # of equal frames, so that means exist


def psnr(frames: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return 10 log10(255^2 / mean square error) in dB, at most 100, per frame `(T,)` of uint8 `(T, H, W, 3)`."""
    _check(frames, real)
    error = ((frames.astype(np.float64) - real) ** 2).mean((1, 2, 3))
    return np.minimum(10 * np.log10(255.0**2 / np.maximum(error, 1e-12)), MAX_PSNR)


def ssim(frames: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return the structural similarity per frame `(T,)` of uint8 `(T, H, W, 3)`, sides of at least 11 pixels.

    Wang et al. 2004, "Image Quality Assessment": Gaussian windows of 11 x 11 with sigma 1.5 inside the frame, K1 = 0.01,
    K2 = 0.03, range 255; mean over windows and colour channels.
    """
    _check(frames, real)
    if min(real.shape[1:3]) < 11:
        raise DataError(f"SSIM needs frames of at least 11 x 11 pixels, got {real.shape[1]} x {real.shape[2]}")
    window = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = window / window.sum()
    x, y = (torch.from_numpy(a).double().permute(0, 3, 1, 2).flatten(0, 1)[:, None] for a in (frames, real))

    def smooth(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (
        (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    )
    return similarity.mean((1, 2, 3)).unflatten(0, (-1, 3)).mean(1).numpy()


class LPIPS:
    """Learned perceptual distance with AlexNet features (Zhang et al. 2018, arXiv:1801.03924), from given weight files.

    files: torchvision's AlexNet (`features.N.*`) and the linear weights of LPIPS 0.1 (`linK.model.1.weight`), in one file
    or two. Raises CheckpointError naming a tensor that is missing.
    """

    CONVOLUTIONS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # index in AlexNet, stride, padding

    def __init__(self, files: Sequence[str | Path]) -> None:
        self.weights: dict[str, Tensor] = {}
        wanted = [f"features.{n}.{part}" for n, _, _ in self.CONVOLUTIONS for part in ("weight", "bias")]
        wanted += [f"lin{k}.model.1.weight" for k in range(5)]
        for path in files:
            self.weights |= {name: tensor.float() for name, tensor in load_tensors(path).items() if name in wanted}
        if missing := [name for name in wanted if name not in self.weights]:
            raise CheckpointError(f"LPIPS: {missing[0]} is in none of {', '.join(map(str, files))}")

    @torch.no_grad()
    def __call__(self, frames: np.ndarray, real: np.ndarray) -> np.ndarray:
        """Return the distance per frame `(T,)` of uint8 `(T, H, W, 3)`, sides of at least 64 pixels."""
        _check(frames, real)
        shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[:, None, :, None, None]
        x = (torch.from_numpy(np.concatenate([frames, real])).permute(0, 3, 1, 2) / 127.5 - 1 - shift) / scale
        total = torch.zeros(len(frames))
        for layer, (n, stride, padding) in enumerate(self.CONVOLUTIONS):
            if layer in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            x = F.conv2d(
                x, self.weights[f"features.{n}.weight"], self.weights[f"features.{n}.bias"], stride, padding
            ).relu()
            ours, theirs = (x / (x.norm(dim=1, keepdim=True) + 1e-10)).chunk(2)
            total += F.conv2d((ours - theirs) ** 2, self.weights[f"lin{layer}.model.1.weight"]).mean((1, 2, 3))
        return total.numpy()


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean of independent values and the half width of its Student-t interval (nan for fewer than two)."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return float(array.mean()), math.nan
    half = t_quantile((1 + confidence) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean()), float(half)


def t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t: with t = sqrt(n) tan(a) its density is proportional to cos(a)^(n - 1)."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 200_001)
    density = np.cos(angle) ** (degrees - 1)
    area = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(math.sqrt(degrees) * np.tan(np.interp(probability, area / area[-1], angle)))


def _check(frames: np.ndarray, real: np.ndarray) -> None:
    if frames.shape != real.shape or frames.ndim != 4 or frames.dtype != np.uint8 or real.dtype != np.uint8:
        raise DataError(
            f"compared clips must be uint8 (T, H, W, 3) of one shape, got {frames.dtype} {frames.shape} and {real.dtype} {real.shape}"
        )

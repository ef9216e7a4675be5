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
    pairs = zip(frames, real, strict=True)
    error = np.array([((ours.astype(np.float64) - theirs) ** 2).mean() for ours, theirs in pairs])
    return np.minimum(10 * np.log10(255.0**2 / np.maximum(error, 1e-12)), MAX_PSNR)


def ssim(frames: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return the structural similarity per frame `(T,)` of uint8 `(T, H, W, 3)`, sides of at least 11 pixels.

    Wang et al. 2004, "Image Quality Assessment": Gaussian windows of 11 x 11 with sigma 1.5 inside the frame, K1 = 0.01,
    K2 = 0.03, range 255; mean over windows and colour channels.
    """
    _check(frames, real)
    if min(real.shape[1:3]) < 11:
        raise DataError(f"SSIM needs frames of at least 11 x 11 pixels, got {real.shape[1]} x {real.shape[2]}")
    return np.array([_frame_ssim(ours, theirs) for ours, theirs in zip(frames, real, strict=True)])


def _frame_ssim(frame: np.ndarray, real: np.ndarray) -> float:
    """Return the similarity of two frames uint8 `(H, W, 3)`, over strips of rows that stay in the cache."""
    window = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    weights = (window / window.sum()).tolist()

    def smooth(values: Tensor, dim: int, step: int) -> Tensor:
        length = values.shape[dim] - 10 * step
        total = values.narrow(dim, 0, length) * weights[0]
        for tap in range(1, 11):
            total.add_(values.narrow(dim, tap * step, length), alpha=weights[tap])
        return total

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    total, windows = 0.0, 0
    for top in range(0, len(real) - 10, 8):
        x, y = (torch.from_numpy(image[top : top + 18]).double().flatten(1) for image in (frame, real))  # (rows, W 3)
        fields = torch.stack([x, y, x * x + y * y, x * y])
        mean_x, mean_y, square, product = smooth(smooth(fields, 1, 1), 2, 3)
        means, luminance = mean_x**2 + mean_y**2, mean_x * mean_y
        values = (2 * luminance + c1) * (2 * (product - luminance) + c2) / ((means + c1) * (square - means + c2))
        total, windows = total + float(values.sum()), windows + values.numel()
    return total / windows


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
        return np.array([self._distance(*pair) for pair in zip(frames, real, strict=True)], np.float32)

    def _distance(self, frame: np.ndarray, real: np.ndarray) -> float:
        shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[:, None, :, None, None]
        x = (torch.from_numpy(np.stack([frame, real])).permute(0, 3, 1, 2) / 127.5 - 1 - shift) / scale
        total = 0.0
        for layer, (n, stride, padding) in enumerate(self.CONVOLUTIONS):
            if layer in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            weight, bias = (self.weights[f"features.{n}.{part}"] for part in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, stride, padding).relu()
            ours, theirs = (x / (x.norm(dim=1, keepdim=True) + 1e-10)).chunk(2)
            total += float(F.conv2d((ours - theirs) ** 2, self.weights[f"lin{layer}.model.1.weight"]).mean())
        return total


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
        got = " and ".join(f"{clip.dtype} {clip.shape}" for clip in (frames, real))
        raise DataError(f"compared clips must be uint8 (T, H, W, 3) of one shape, got {got}")

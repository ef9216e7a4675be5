"""The aesthetic score of frames: CLIP ViT-L/14 image embeddings and a published linear head on them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from cosmos_predict.errors import CheckpointError
from cosmos_predict.io.accounting import compare, shapes_of
from cosmos_predict.io.tensors import load_tensors

CLIP, HEAD = "openai/clip-vit-large-patch14", "ttj/sac-logos-ava1-l14-linearMSE"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class AestheticHead(nn.Module):
    """Linear layers, one after the other; the names of the published weights count dropouts, which do nothing here."""

    def __init__(self, dims: Sequence[int] = (768, 1024, 128, 64, 16, 1)) -> None:
        super().__init__()
        layers = [part for sizes in pairwise(dims) for part in (nn.Linear(*sizes), nn.Dropout(0.0))]
        self.layers = nn.Sequential(*layers[:-3], layers[-2])  # no dropout in front of the last, or behind it

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return scores (N,) of L2-normalised embeddings (N, 768)."""
        return self.layers(embeddings).squeeze(-1)


def reduce_scores(scores: Tensor | np.ndarray, reduction: str) -> float:
    """Return the score of a clip from those of its frames: their "min" or "mean"."""
    return float(scores.min() if reduction == "min" else scores.mean())


def clip_pixels(frames: np.ndarray, size: int = 224) -> Tensor:
    """Return what CLIP reads, float32 (N, 3, size, size), of uint8 RGB frames (N, H, W, 3): the middle square, normalised."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    pixels = v2.functional.resize(pixels, [size], v2.InterpolationMode.BICUBIC)  # the shorter side
    pixels = v2.functional.center_crop(pixels, [size, size])
    return v2.functional.normalize(pixels / 255, list(MEAN), list(STD))


class AestheticScorer:
    """CLIP and head, from folders of these names below `weights`, on a device."""

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        from transformers import CLIPVisionModelWithProjection

        self.device = device
        self.clip: Any = CLIPVisionModelWithProjection.from_pretrained(weights / CLIP).eval()
        self.clip.to(self.device)
        tensors, self.head = load_tensors(weights / HEAD / "model.safetensors"), AestheticHead()
        if found := compare(shapes_of(tensors), shapes_of(self.head.state_dict())):
            raise CheckpointError(f"{weights / HEAD}: not the weights of the aesthetic head\n{found}")
        self.head.load_state_dict(tensors)
        self.head.to(self.device)

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> Tensor:
        """Return scores (N,) of uint8 RGB frames (N, H, W, 3)."""
        size = self.clip.config.image_size
        embeddings = self.clip(pixel_values=clip_pixels(frames, size).to(self.device)).image_embeds
        return self.head(F.normalize(embeddings, dim=-1)).cpu()

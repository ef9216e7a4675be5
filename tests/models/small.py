"""Tiny world models of every variant, batches for them, and a linear tokenizer. Shared by the tests of models."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from cosmos_predict.conditions.frames import GivenFrames, first_frames_mask
from cosmos_predict.models.conditioning import Conditioning
from cosmos_predict.models.config import ModelConfig, PipeConfig
from cosmos_predict.models.world_model import WorldModel
from cosmos_predict.tokenizers.base import VideoTokenizer
from tests.networks.variants import VARIANTS, build_variant

PIPE_FIELDS = set(PipeConfig.__dataclass_fields__)


class LinearTokenizer(VideoTokenizer):
    """4 x 4 pixels of a frame pair, averaged over time, to 16 channels by a fixed orthogonal matrix. T = 1 + 2 k."""

    spatial_compression_factor = 4
    temporal_compression_factor = 2
    latent_ch = 16

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("basis", torch.linalg.qr(torch.randn(48, 16)).Q)

    def _encode(self, video: Tensor) -> Tensor:
        first, rest = video[:, :, :1], video[:, :, 1:]
        groups = torch.cat([first, rest.unflatten(2, (-1, 2)).mean(3)], 2) if rest.shape[2] else first
        b, c, t, h, w = groups.shape
        patches = groups.reshape(b, c, t, h // 4, 4, w // 4, 4).permute(0, 2, 3, 5, 1, 4, 6).flatten(4)
        return (patches @ self.get_buffer("basis")).permute(0, 4, 1, 2, 3)

    def _decode(self, latent: Tensor) -> Tensor:
        patches = (latent.permute(0, 2, 3, 4, 1) @ self.get_buffer("basis").T).unflatten(-1, (3, 4, 4))
        b, t, h, w = patches.shape[:4]
        frames = patches.permute(0, 4, 1, 2, 5, 3, 6).reshape(b, 3, t, 4 * h, 4 * w)
        return torch.cat([frames[:, :, :1], frames[:, :, 1:].repeat_interleave(2, 2)], 2)


def small_model(name: str = "predict2_video2world", tokenizer: Any = None, **options: Any) -> WorldModel:
    """Return the world model of a variant with random weights; options are fields of PipeConfig or ModelConfig."""
    variant = VARIANTS[name]
    pipe: dict[str, Any] = {
        "net": variant.config,
        "family": variant.family,
        "views": variant.views,
        "condition_on_augment_sigma": name == "predict1_augment_sigma",
    }
    pipe |= {key: value for key, value in options.items() if key in PIPE_FIELDS}
    rest = {key: value for key, value in options.items() if key not in PIPE_FIELDS}
    torch.manual_seed(0)
    return WorldModel(ModelConfig(pipe_config=PipeConfig(**pipe), **rest), build_variant(variant), tokenizer)


def small_batch(name: str = "predict2_video2world", batch: int = 2, seed: int = 0) -> dict[str, Any]:
    """Return a training batch of latents for `small_model(name)`; sample numbers 100 * seed + 0, 1, ..."""
    inputs = VARIANTS[name].inputs(batch, seed)
    renamed = {"x": "latent", "crossattn_emb": "t5_text_embeddings"}
    left_out = {"timesteps", "views", "condition_mask", "augment_sigma"}
    content = {renamed.get(key, key): value for key, value in inputs.items() if key not in left_out}
    return {**content, "sample_number": torch.arange(batch) + 100 * seed}


def small_condition(
    name: str = "predict2_video2world", batch: int = 1, seed: int = 0, given: int = 1
) -> tuple[WorldModel, Tensor, Conditioning]:
    """Return a model, unit noise and a conditioning whose first `given` latent frames of every view are given."""
    model = small_model(name)
    latent, condition = model.prepare(small_batch(name, batch, seed))
    if model.takes_frames and given:
        mask = first_frames_mask([given] * batch, latent.shape[2] // condition.views, condition.views)
        condition = dataclasses.replace(condition, frames=GivenFrames(latent, mask))
    return model, torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed)), condition


def cut(batch: dict[str, Any], *indices: int) -> dict[str, Any]:
    """Return the samples `indices` of a batch, in that order."""
    return {key: value[list(indices)] if isinstance(value, Tensor) else value for key, value in batch.items()}

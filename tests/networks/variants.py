"""Every kind of network that the package builds, at a tiny size, with inputs for it. Shared by the tests of networks and models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_predict.conditions.action import ActionControl
from cosmos_predict.conditions.augment_sigma import AugmentSigmaControl
from cosmos_predict.conditions.camera import CameraBlockControl
from cosmos_predict.conditions.trajectory import TrajectoryControl
from cosmos_predict.models.published import published_config
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import DiT, build_dit

TINY: dict[str, Any] = {
    "model_channels": 48,
    "num_blocks": 2,
    "num_heads": 2,
    "adaln_lora_dim": 8,
    "crossattn_emb_channels": 16,
    "max_frames": 8,
    "max_img_h": 16,
    "max_img_w": 16,
}
FRAMES, HEIGHT, WIDTH, TEXT = 3, 4, 6, 5  # latent frames of one view, latent size, text tokens of one view
Signals = Callable[[int, int, int], dict[str, Tensor]]  # (batch, views, latent frames over all views) -> signals


@dataclasses.dataclass(frozen=True)
class Variant:
    """A published network by name, its size replaced by `TINY`, and what its controls read."""

    family: str
    config: DiTConfig
    signals: Signals = lambda batch, views, frames: {}
    views: int = 1
    frames: int = FRAMES

    def inputs(self, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        """Return keyword arguments of `DiT.forward` in which nothing is zero or constant over the batch but fps."""
        torch.manual_seed(seed)
        config = self.config
        frames = self.views * self.frames
        inputs: dict[str, Any] = {
            "x": torch.randn(batch, config.latent_channels, frames, HEIGHT, WIDTH),
            "timesteps": torch.rand(batch, 1 if self.family == "predict1" else frames),
            "crossattn_emb": torch.randn(
                batch, self.views * TEXT, config.crossattn_proj_in_channels or config.crossattn_emb_channels
            ),
            "fps": torch.full((batch,), 10.0),
            "padding_mask": (torch.rand(batch, 1, 4 * HEIGHT, 4 * WIDTH) > 0.5).float(),
            "views": self.views,
            **self.signals(batch, self.views, frames),
        }
        if config.has_channel("cond_mask"):
            inputs["condition_mask"] = torch.rand(batch, 1, frames, 1, 1)
        return inputs


def _tiny(name: str, **changes: Any) -> DiTConfig:
    return published_config(name).replace(**TINY, **changes)


def _view_signals(batch: int, views: int, frames: int) -> dict[str, Tensor]:
    return {"view_indices": torch.randint(0, 6, (batch, views)), "frame_repeat": torch.rand(batch, views)}


def _trajectory_signals(batch: int, views: int, frames: int) -> dict[str, Tensor]:
    return {**_view_signals(batch, views, frames), "trajectory": torch.randn(batch, 192)}


def _variants() -> dict[str, Variant]:
    multiview = _tiny("predict1_7b_video2world_multiview")
    video = _tiny("predict1_7b_video2world")
    base = _tiny("predict2_2b_video2world")
    action = (ActionControl(mode="per_latent", chunk=4),)
    plucker = ("plucker", 6)
    return {
        "predict1_text2world": Variant("predict1", _tiny("predict1_14b_text2world")),
        "predict1_video2world": Variant("predict1", video),
        "predict1_pose": Variant(
            "predict1",
            video.replace(input_channels=(*video.input_channels[:2], plucker, ("padding", 1))),
            lambda b, v, t: {"plucker": torch.randn(b, 6, t, HEIGHT, WIDTH)},
        ),
        "predict1_action": Variant(
            "predict1", _tiny("predict1_7b_video2world_action"), lambda b, v, t: {"action": torch.randn(b, 1, 7)}
        ),
        "predict1_augment_sigma": Variant(
            "predict1",
            video.replace(controls=(AugmentSigmaControl(),)),
            lambda b, v, t: {"augment_sigma": torch.randn(b)},
        ),
        "predict1_text2world_multiview": Variant(
            "predict1", _tiny("predict1_7b_text2world_multiview"), _view_signals, 3, 2
        ),
        "predict1_video2world_multiview": Variant("predict1", multiview, _view_signals, 3, 2),
        "predict1_trajectory": Variant(
            "predict1",
            multiview.replace(
                input_channels=(*multiview.input_channels, ("trajectory", 12)),
                controls=(*multiview.controls, TrajectoryControl()),
            ),
            _trajectory_signals,
            3,
            2,
        ),
        "predict2_text2image": Variant("predict2", _tiny("predict2_0.6b_text2image"), frames=1),
        "predict2_video2world": Variant("predict2", base),
        "predict2_multiview": Variant(
            "predict2",
            _tiny("predict2_2b_multiview"),
            lambda b, v, t: {"view_indices": torch.randint(0, 7, (b, t))},
            2,
            2,
        ),
        "predict2_action": Variant(
            "predict2", _tiny("predict2_2b_action"), lambda b, v, t: {"action": torch.randn(b, 12, 7)}
        ),
        "predict2.5_base": Variant("predict2.5", _tiny("predict2.5_2b_base").replace(crossattn_proj_in_channels=24)),
        "predict2.5_action": Variant(
            "predict2.5", base.replace(controls=action), lambda b, v, t: {"action": torch.randn(b, 4 * (t - 1), 7)}
        ),
        "predict2.5_camera": Variant(
            "predict2.5",
            base.replace(controls=(CameraBlockControl(features=24),)),
            lambda b, v, t: {"camera": torch.randn(b, t, HEIGHT // 2, WIDTH // 2, 24)},
        ),
    }


VARIANTS = _variants()


@torch.no_grad()
def fill(net: nn.Module, seed: int = 0) -> None:
    """Give every weight a random value of a trained network's scale, so that nothing is silent: zero-initialised ones too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 1 + 0.1 * noise)


def build_variant(variant: Variant, seed: int = 0) -> DiT:
    """Return the variant's network with random weights (`fill`)."""
    net = build_dit(variant.config, init=None)
    fill(net, seed)
    return net


def replace_sample(inputs: dict[str, Any], other: dict[str, Any], index: int) -> dict[str, Any]:
    """Return `inputs` with sample `index` of every batched tensor taken from `other`."""
    mixed = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            mixed[name] = value.clone()
            mixed[name][index] = other[name][index]
    return mixed


def take_sample(inputs: dict[str, Any], index: int) -> dict[str, Any]:
    """Return `inputs` for sample `index` alone."""
    return {k: v[index : index + 1] if isinstance(v, Tensor) else v for k, v in inputs.items()}

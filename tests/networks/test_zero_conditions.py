"""A network grown from a base by channel name and by zero-initialised controls starts as its base, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_predict.conditions.action import ActionControl
from cosmos_predict.conditions.camera import CameraBlockControl
from cosmos_predict.conditions.trajectory import TrajectoryControl
from cosmos_predict.conditions.view import ViewControl
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.control import Control, Injection
from cosmos_predict.networks.dit import DiT, build_dit
from cosmos_predict.networks.patch import grow_patch_weight
from tests.networks.variants import HEIGHT, VARIANTS, WIDTH, build_variant

PATCH = "x_embedder.proj.1.weight"
BASES = ("predict1_video2world", "predict2_video2world", "predict2.5_base")


def grow(base: DiT, config: DiTConfig) -> DiT:
    """Return a network of `config` that starts from `base`: patch columns by name, new weights from their own init."""
    net = build_dit(config)
    state = dict(base.state_dict())
    state[PATCH] = grow_patch_weight(
        state[PATCH], base.config.input_channels, config.input_channels, config.patch_volume
    )
    missing, unexpected = net.load_state_dict(state, strict=False)
    new = {name for control in config.controls for name in control.modules(config)}
    new |= {name for control in config.controls for name in control.block_modules(config)}
    assert not unexpected and all(set(key.split(".")) & new for key in missing)
    return net


def grown_channels(config: DiTConfig, *new: tuple[str, int], last: bool) -> tuple[tuple[str, int], ...]:
    old = config.input_channels
    return (*old, *new) if last else (*old[:2], *new, *old[2:])


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("last", [True, False], ids=["last", "before_padding"])
@torch.no_grad()
def test_new_channels_of_any_value_change_nothing(name: str, last: bool) -> None:
    variant = VARIANTS[name]
    base = build_variant(variant)
    config = base.config.replace(
        input_channels=grown_channels(base.config, ("plucker", 6), ("view", 7), ("trajectory", 12), last=last),
        controls=(ViewControl(), TrajectoryControl()),
    )
    net = grow(base, config)
    inputs = variant.inputs()
    frames = inputs["x"].shape[2]
    signals = {
        "plucker": 10 * torch.randn(2, 6, frames, HEIGHT, WIDTH),
        "view_indices": torch.randint(0, 7, (2, frames)),
        "trajectory": 10 * torch.randn(2, 192),
    }
    expected = base(**inputs)
    assert torch.equal(net(**inputs), expected)
    assert torch.equal(net(**inputs, **signals), expected)
    net.get_parameter(PATCH)[:, -28:].normal_()
    assert not torch.equal(net(**inputs, **signals), expected)


CONTROLS: dict[str, tuple[Control, dict[str, Any]]] = {
    "flat": (ActionControl(mode="flat", chunk=12), {"action": (12, 7)}),
    "per_latent": (ActionControl(mode="per_latent", chunk=4), {"action": (8, 7)}),
    "first_only": (ActionControl(mode="first_only", use_time=False), {"action": (1, 7)}),
    "camera": (CameraBlockControl(features=24), {"camera": (3, HEIGHT // 2, WIDTH // 2, 24)}),
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("control_name", CONTROLS)
@pytest.mark.parametrize("per_frame", [True, False], ids=["t_per_frame", "one_t"])
@torch.no_grad()
def test_new_controls_start_silent(name: str, control_name: str, per_frame: bool) -> None:
    variant = VARIANTS[name]
    base = build_variant(variant)
    control, shapes = CONTROLS[control_name]
    net = grow(base, base.config.replace(controls=(control,)))
    inputs = variant.inputs()
    inputs["timesteps"] = torch.rand(2, 3 if per_frame else 1)
    signals = {key: 10 * torch.randn(2, *shape) for key, shape in shapes.items()}
    expected = base(**inputs)
    assert torch.equal(net(**inputs, **signals), expected)
    new = [p for key, p in net.named_parameters() if key not in dict(base.named_parameters())]
    assert new
    for parameter in new:
        parameter.normal_(std=0.1)
    assert not torch.equal(net(**inputs, **signals), expected)


@pytest.mark.parametrize("control_name", CONTROLS)
def test_a_silent_control_learns_from_the_first_step(control_name: str) -> None:
    """Zero-initialised, yet the gradient of its last layer is not zero."""
    variant = VARIANTS["predict2_video2world"]
    base = build_variant(variant)
    control, shapes = CONTROLS[control_name]
    net = grow(base, base.config.replace(controls=(control,)))
    signals = {key: torch.randn(2, *shape) for key, shape in shapes.items()}
    net(**variant.inputs(), **signals).square().mean().backward()
    last = {key: p for key, p in net.named_parameters() if key.endswith(("B_3D.fc2.weight", "0.cam_encoder.weight"))}
    assert len(last) == 1
    for key, parameter in last.items():
        assert parameter.grad is not None and bool(parameter.grad.any()), key


@pytest.mark.parametrize("size", [(64, 2, 1), (96, 4, 3), (320, 2, 2)], ids=str)
@torch.no_grad()
def test_growth_is_exact_at_other_widths(size: tuple[int, int, int]) -> None:
    """Matrix products round differently for other sizes: more columns of zeros and more batches must not."""
    width, heads, batch = size
    base = build_dit(DiTConfig(width, 1, heads, adaln_lora_dim=16, crossattn_emb_channels=32))
    for parameter in base.parameters():
        if not parameter.any():
            parameter.normal_(std=0.05)
    channels = (*base.config.input_channels, ("plucker", 6), ("view", 7))
    net = grow(base, base.config.replace(input_channels=channels, controls=(ActionControl(), ViewControl())))
    torch.manual_seed(0)
    x, t, text = torch.randn(batch, 16, 3, 4, 6), torch.rand(batch), torch.randn(batch, 8, 32)
    mask = torch.zeros(batch, 1, 3, 1, 1)
    signals = {"action": torch.randn(batch, 8, 7), "plucker": torch.randn(batch, 6, 3, 4, 6)}
    assert torch.equal(net(x, t, text, condition_mask=mask, **signals), base(x, t, text, condition_mask=mask))


@torch.no_grad()
def test_absent_channel_signals_are_zeros() -> None:
    variant = VARIANTS["predict1_pose"]
    net, inputs = build_variant(variant), variant.inputs()
    zeros = {**inputs, "plucker": torch.zeros_like(inputs["plucker"])}
    assert torch.equal(net(**{**inputs, "plucker": None}), net(**zeros))
    assert not torch.equal(net(**inputs), net(**zeros))


def test_injections_add_up() -> None:
    """Two controls of one site add; the order of sums is the order of the controls."""
    injection = Injection()
    first, second = torch.randn(2, 1, 4), torch.randn(2, 3, 4)
    injection.add_time(first)
    injection.add_time(second)
    injection.add_lora(second)
    assert isinstance(injection.time, Tensor) and torch.equal(injection.time, first + second)
    assert injection.lora is second

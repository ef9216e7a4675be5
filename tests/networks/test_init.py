"""Initialisation from scratch: the published statistics, and blocks that start as the identity."""

import math

import pytest
import torch

from cosmos_predict.conditions.action import ActionControl
from cosmos_predict.conditions.camera import CameraBlockControl
from cosmos_predict.conditions.view import ViewControl
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import build_dit

CONFIG = DiTConfig(
    192,
    2,
    8,
    adaln_lora_dim=64,
    crossattn_emb_channels=128,
    crossattn_proj_in_channels=96,
    extra_pos_emb="learnable",
    input_channels=(("latent", 16), ("cond_mask", 1), ("padding", 1), ("view", 7)),
    controls=(ViewControl(), ActionControl(), CameraBlockControl(features=32)),
)
OWN_INIT = ("crossattn_proj", "action_embedder", "view_embeddings", "cam_encoder", "extra_pos_embedder")


def is_second_modulation(name: str) -> bool:
    return "adaln_modulation" in name and name.endswith("2.weight")


def test_trunc_normal_statistics() -> None:
    torch.manual_seed(0)
    net = build_dit(CONFIG)
    for name, weight in net.state_dict().items():
        if any(own in name for own in OWN_INIT):
            continue
        if name.endswith("norm.weight"):
            assert torch.equal(weight, torch.ones_like(weight)), name
        elif is_second_modulation(name):
            assert not weight.any(), name
        else:
            bound = 1 / math.sqrt(weight.shape[1])
            assert abs(float(weight.std()) / (0.9866 * bound) - 1) < 0.05, name  # cut at 3 std: 0.9866 of it remains
            assert float(weight.abs().max()) <= 3 * bound, name
            assert abs(float(weight.mean())) < 0.1 * bound, name


def test_xavier_statistics() -> None:
    """Predict1: Xavier-uniform, time MLP N(0, 0.02), the final layer's second modulation matrix not zero."""
    torch.manual_seed(0)
    net = build_dit(CONFIG.replace(initialization="xavier"))
    for name, weight in net.state_dict().items():
        if any(own in name for own in OWN_INIT):
            continue
        if name.endswith("norm.weight"):
            assert torch.equal(weight, torch.ones_like(weight)), name
        elif is_second_modulation(name) and name.startswith("blocks"):
            assert not weight.any(), name
        elif name.startswith("t_embedder"):
            assert abs(float(weight.std()) / 0.02 - 1) < 0.05, name
        else:
            bound = math.sqrt(6 / sum(weight.shape))
            assert float(weight.abs().max()) <= bound, name
            assert abs(float(weight.std()) / (bound / math.sqrt(3)) - 1) < 0.05, name
    assert net.final_layer.get_parameter("adaln_modulation.2.weight").any()


def test_controls_and_tables_keep_their_own() -> None:
    torch.manual_seed(0)
    net = build_dit(CONFIG)
    assert abs(float(net.get_parameter("view_embeddings.weight").detach().std()) - 1) < 0.25
    for table in ("pos_emb_h", "pos_emb_w", "pos_emb_t"):
        assert abs(float(net.get_parameter(f"extra_pos_embedder.{table}").detach().std()) / 0.02 - 1) < 0.05
    bound = 1 / math.sqrt(96)  # torch's own Linear: uniform within 1 / sqrt(fan_in)
    projection = net.get_parameter("crossattn_proj.0.weight").detach()
    assert 0.9 * bound < float(projection.abs().max()) <= bound
    for name in ("action_embedder_B_D", "action_embedder_B_3D"):
        assert net.get_parameter(f"{name}.fc1.weight").any() and net.get_parameter(f"{name}.fc1.bias").any()
        assert not net.get_parameter(f"{name}.fc2.weight").any() and not net.get_parameter(f"{name}.fc2.bias").any()
    assert not net.get_parameter("blocks.1.cam_encoder.weight").any()


def test_controls_as_published() -> None:
    """Without zero_init a control starts as the published training did."""
    torch.manual_seed(0)
    controls = (ActionControl(zero_init=False), CameraBlockControl(features=32, zero_init=False))
    net = build_dit(CONFIG.replace(controls=controls, input_channels=CONFIG.input_channels[:3]))
    assert net.get_parameter("action_embedder_B_D.fc2.weight").any()
    encoder, std = net.get_parameter("blocks.1.cam_encoder.weight").detach(), 192**-0.5
    assert abs(float(encoder.std()) / (0.9866 * std) - 1) < 0.05


@pytest.mark.parametrize("initialization", ["trunc_normal", "xavier"])
@torch.no_grad()
def test_zero_modulation_leaves_the_shared_vector_alone(initialization: str) -> None:
    """At the start a block's gates are the shared time vector; where that is zero too, blocks are the identity."""
    config = CONFIG.replace(initialization=initialization, extra_pos_emb="none", crossattn_proj_in_channels=None)
    config = config.replace(controls=(), input_channels=CONFIG.input_channels[:3])
    net = build_dit(config)
    net.t_embedder.get_parameter("1.linear_2.weight").zero_()
    tokens: list[torch.Tensor] = []
    net.x_embedder.register_forward_hook(lambda _m, _i, out: tokens.append(out))
    net.blocks[-1].register_forward_hook(lambda _m, _i, out: tokens.append(out))
    net(torch.randn(2, 16, 2, 4, 4), torch.rand(2), torch.randn(2, 5, 128))
    assert torch.equal(tokens[0], tokens[1]) and tokens[0].std() > 0.1


def test_seeds_and_devices() -> None:
    """The same seed gives the same weights; init=None touches none, and "meta" holds none."""
    small = CONFIG.replace(num_blocks=1, controls=(), input_channels=CONFIG.input_channels[:3])
    torch.manual_seed(1)
    first = build_dit(small, dtype=torch.float32).state_dict()
    torch.manual_seed(1)
    second = build_dit(small).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    state = torch.get_rng_state()
    build_dit(small, init=None)
    meta = build_dit(small, device="meta", dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in meta.parameters())

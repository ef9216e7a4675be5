"""Action, camera, view, trajectory and augmentation-level controls: what they add to a network, absent inputs, refusals."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from cosmos_predict.conditions.action import ActionControl
from cosmos_predict.conditions.augment_sigma import AugmentSigmaControl
from cosmos_predict.conditions.camera import CameraBlockControl
from cosmos_predict.conditions.trajectory import TrajectoryControl
from cosmos_predict.conditions.view import ViewControl
from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.control import Control, Grid, Injection
from cosmos_predict.networks.dit import DiT, build_dit
from cosmos_predict.networks.rope import timestep_sinusoid
from tests.networks.variants import TINY, VARIANTS, build_variant, fill

GRID = Grid(batch=2, frames=6, height=4, width=6, views=3, dtype=torch.float32, device=torch.device("cpu"))
CLIP = Grid(batch=2, frames=3, height=4, width=6, views=1, dtype=torch.float32, device=torch.device("cpu"))


def network(control: Control, **channels: int) -> DiT:
    config = VARIANTS["predict2_video2world"].config
    config = config.replace(input_channels=(*config.input_channels, *channels.items()), controls=(control,))
    net = build_dit(config, init=None)
    fill(net)
    return net


def inject(control: Control, grid: Grid, net: DiT | None = None, **signals: Any) -> Injection:
    injection = Injection()
    channels = {name: getattr(control, "dim", 0) for name in control.channels}
    with torch.no_grad():
        control.inject(net or network(control, **channels), signals, grid, injection)
    return injection


# ---- views -----------------------------------------------------------------------------------------------------------

VIEW = ViewControl(num_views=7, dim=5)


def test_view_channels_per_view_per_frame_and_absent() -> None:
    net = network(VIEW, view=5)
    table = net.get_parameter("view_embeddings.weight").detach()
    absent = inject(VIEW, GRID, net).channels["view"]
    assert absent.shape == (2, 5, 6, 1, 1)
    assert torch.equal(absent[0, :, :, 0, 0].T, table[[0, 0, 1, 1, 2, 2]])
    per_view = inject(VIEW, GRID, net, view_indices=torch.tensor([[0, 1, 2], [5, 3, 3]])).channels["view"]
    assert torch.equal(per_view[0], absent[0])
    assert torch.equal(per_view[1, :, :, 0, 0].T, table[[5, 5, 3, 3, 3, 3]])
    frames = torch.tensor([[0, 0, 1, 1, 2, 2], [5, 5, 3, 3, 3, 3]], dtype=torch.int32)
    assert torch.equal(inject(VIEW, GRID, net, view_indices=frames).channels["view"], per_view)
    mixed = torch.tensor([[0, 1, 2, 3, 4, 5]] * 2)  # the id may change from frame to frame
    assert torch.equal(inject(VIEW, GRID, net, view_indices=mixed).channels["view"][0, :, :, 0, 0].T, table[:6])


def test_view_indices_beyond_the_table_are_clamped() -> None:
    net = network(VIEW, view=5)
    high = inject(VIEW, GRID, net, view_indices=torch.tensor([[6, 7, 100], [-3, 0, 1]])).channels["view"]
    near = inject(VIEW, GRID, net, view_indices=torch.tensor([[6, 6, 6], [0, 0, 1]])).channels["view"]
    assert torch.equal(high, near)


def test_more_views_than_the_table_when_indices_are_absent() -> None:
    control = ViewControl(num_views=2, dim=5)
    net = network(control, view=5)
    rows = inject(control, GRID, net).channels["view"][0, :, :, 0, 0].T
    assert torch.equal(rows, net.get_parameter("view_embeddings.weight").detach()[[0, 0, 1, 1, 1, 1]])


def test_frame_repeat_absent_is_zeros_with_the_bias() -> None:
    control = ViewControl(num_views=7, dim=5, add_frame_repeat=True)
    net = network(control, view=5)
    absent = inject(control, GRID, net).channels["view"]
    assert torch.equal(absent, inject(control, GRID, net, frame_repeat=torch.zeros(2, 3)).channels["view"])
    bias = net.get_parameter("repeat_frame_embedding.bias").detach()
    weight = net.get_parameter("repeat_frame_embedding.weight").detach()[:, 0]
    plain = inject(VIEW, GRID, net).channels["view"]
    torch.testing.assert_close(absent - plain, bias[None, :, None, None, None].expand(2, 5, 6, 1, 1))
    given = inject(control, GRID, net, frame_repeat=torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.0, 0.0]])).channels["view"]
    change = (given - absent)[..., 0, 0]
    torch.testing.assert_close(change[0, :, 4:], weight[:, None].expand(5, 2))
    torch.testing.assert_close(change[1, :, :2], 0.5 * weight[:, None].expand(5, 2))
    assert not change[0, :, :4].any() and not change[1, :, 2:].any()


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (2, 3, 1), (2, 12)], ids=str)
def test_view_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"'view_indices' has shape .*, expected \(2, 3\) or \(2, 6\)"):
        inject(VIEW, GRID, view_indices=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("shape", [(2, 6), (1, 3), (2,)], ids=str)
def test_frame_repeat_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"'frame_repeat' has shape .*, expected \(2, 3\), one per view"):
        inject(ViewControl(7, 5, True), GRID, frame_repeat=torch.zeros(shape))


# ---- trajectory ------------------------------------------------------------------------------------------------------

TRAJECTORY = TrajectoryControl(dim=4)


def test_trajectory_flat_shaped_and_absent() -> None:
    net = network(TRAJECTORY, trajectory=4)
    path = torch.randn(2, 64, 3)
    channels = inject(TRAJECTORY, GRID, net, trajectory=path).channels["trajectory"]
    assert channels.shape == (2, 4, 1, 1, 1)
    assert torch.equal(channels, inject(TRAJECTORY, GRID, net, trajectory=path.flatten(1)).channels["trajectory"])
    absent = inject(TRAJECTORY, GRID, net).channels["trajectory"]
    assert torch.equal(absent, inject(TRAJECTORY, GRID, net, trajectory=torch.zeros(2, 192)).channels["trajectory"])
    torch.testing.assert_close(absent[0, :, 0, 0, 0], net.get_parameter("traj_embeddings.bias").detach())


@pytest.mark.parametrize("shape", [(2, 64, 2), (1, 192), (2, 193), (384,)], ids=str)
def test_trajectory_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"'trajectory' has shape .*, expected \(2, 192\)"):
        inject(TRAJECTORY, GRID, trajectory=torch.zeros(shape))


# ---- action ----------------------------------------------------------------------------------------------------------


def test_first_only_reads_the_first_action() -> None:
    control = ActionControl(mode="first_only", use_time=False)
    net, action = network(control), torch.randn(2, 5, 7)
    injection = inject(control, CLIP, net, action=action)
    assert injection.time is None and injection.lora is not None and injection.lora.shape == (2, 1, 144)
    again = inject(control, CLIP, net, action=action[:, :1]).lora
    assert again is not None and torch.equal(injection.lora, again)


@pytest.mark.parametrize("gelu", ["tanh", "none"])
def test_flat_is_one_mlp_over_the_whole_chunk(gelu: str) -> None:
    control = ActionControl(mode="flat", chunk=4, gelu=gelu)
    net, action = network(control), torch.randn(2, 4, 7)
    injection = inject(control, CLIP, net, action=action)
    mlp = net.get_submodule("action_embedder_B_D")
    with torch.no_grad():
        expected = mlp.fc2(functional.gelu(mlp.fc1(action.flatten(1)), approximate=gelu))[:, None]
    assert injection.time is not None and injection.lora is not None
    torch.testing.assert_close(injection.time, expected)
    assert injection.lora.shape == (2, 1, 144)


def test_per_latent_gives_each_frame_the_actions_that_lead_to_it() -> None:
    control = ActionControl(mode="per_latent", chunk=4)
    net, action = network(control), torch.randn(2, 8, 7)
    injection = inject(control, CLIP, net, action=action)
    mlp = net.get_submodule("action_embedder_B_3D")
    assert injection.time is not None and injection.lora is not None
    assert injection.time.shape == (2, 3, 48) and injection.lora.shape == (2, 3, 144)
    assert not injection.time[:, 0].any() and not injection.lora[:, 0].any()
    for t in (1, 2):
        with torch.no_grad():
            expected = mlp(action[:, 4 * (t - 1) : 4 * t].flatten(1))
        torch.testing.assert_close(injection.lora[:, t], expected)
    mask = torch.tensor([[1.0, 1, 0], [1, 0, 0]])[:, None, :, None, None]
    masked = inject(control, CLIP, net, action=action, condition_mask=mask)
    assert masked.lora is not None and not masked.lora[0, 1].any()
    assert torch.equal(masked.lora[1], injection.lora[1]) and torch.equal(masked.lora[0, 2], injection.lora[0, 2])


def test_per_latent_of_a_single_frame_adds_nothing() -> None:
    single = Grid(2, 1, 4, 6, 1, torch.float32, torch.device("cpu"))
    injection = inject(ActionControl(mode="per_latent", chunk=4), single, action=torch.zeros(2, 0, 7))
    assert injection.lora is not None and injection.lora.shape == (2, 1, 144) and not injection.lora.any()


def test_hidden_width() -> None:
    assert network(ActionControl(hidden=20)).get_parameter("action_embedder_B_D.fc1.weight").shape == (20, 28)
    assert network(ActionControl()).get_parameter("action_embedder_B_D.fc1.weight").shape == (4 * 48, 28)


ACTIONS: dict[str, tuple[dict[str, Any], tuple[int, ...] | None, str]] = {
    "absent": ({}, None, "conditioned on actions: the batch needs the key 'action'"),
    "axes": ({}, (2, 7), r"'action' has shape \(2, 7\), expected \(2, K, 7\)"),
    "batch": ({}, (1, 8, 7), r"'action' has shape \(1, 8, 7\), expected \(2, K, 7\)"),
    "size": ({}, (2, 8, 6), r"'action' has shape \(2, 8, 6\), expected \(2, K, 7\)"),
    "per latent": ({"chunk": 4}, (2, 12, 7), "12 steps, expected 8 for 3 latent frames .per_latent."),
    "flat": ({"mode": "flat", "chunk": 12}, (2, 8, 7), "8 steps, expected 12 .*flat"),
    "first only": ({"mode": "first_only"}, (2, 0, 7), "0 steps, expected at least 1"),
}


@pytest.mark.parametrize("what", ACTIONS)
def test_actions_that_do_not_fit(what: str) -> None:
    options, shape, message = ACTIONS[what]
    with pytest.raises(ConfigError, match=message):
        inject(ActionControl(**options), CLIP, action=None if shape is None else torch.zeros(shape))


def test_unknown_action_mode() -> None:
    with pytest.raises(ConfigError, match="action mode='last' is not one of first_only, flat, per_latent"):
        ActionControl(mode="last")


# ---- camera ----------------------------------------------------------------------------------------------------------

CAMERA = CameraBlockControl(features=24)


def test_camera_features_reach_each_block_in_token_order() -> None:
    rays = torch.randn(2, 3, 2, 3, 24)
    features = inject(CAMERA, CLIP, camera=rays).blocks["cam_encoder"]
    assert features.shape == (2, 18, 24) and torch.equal(features[1, 6 + 3 + 2], rays[1, 1, 1, 2])
    net = network(CAMERA)
    assert all(hasattr(block, "cam_encoder") for block in net.blocks)


@pytest.mark.parametrize(
    "shape",
    [(2, 3, 3, 2, 24), (2, 3, 2, 3, 6), (1, 3, 2, 3, 24), (2, 4, 2, 3, 24), (2, 3, 4, 6, 24), (2, 18, 24)],
    ids=str,
)
def test_camera_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"'camera' has shape .*, expected \(2, 3, 2, 3, 24\): \(B, V\*T, h, w"):
        inject(CAMERA, CLIP, camera=torch.zeros(shape))


def test_absent_camera() -> None:
    with pytest.raises(ConfigError, match="conditioned on camera rays: the batch needs the key 'camera'"):
        inject(CAMERA, CLIP)


# ---- level of given frames -------------------------------------------------------------------------------------------

AUGMENT = AugmentSigmaControl()


def test_augment_sigma_adds_its_sinusoid() -> None:
    level = torch.tensor([-0.5, 0.25])
    injection = inject(AUGMENT, CLIP, augment_sigma=level)
    assert injection.lora is None and injection.time is not None
    torch.testing.assert_close(injection.time, timestep_sinusoid(level[:, None], TINY["model_channels"]))


def test_absent_augment_sigma_is_zeros() -> None:
    """As in training, where a sample without given frames is told 0."""
    variant = VARIANTS["predict1_augment_sigma"]
    net, inputs = build_variant(variant), variant.inputs()
    with torch.no_grad():
        absent = net(**{**inputs, "augment_sigma": None})
        assert torch.equal(absent, net(**{**inputs, "augment_sigma": torch.zeros(2)}))
        assert not torch.equal(absent, net(**inputs))


def test_augment_sigma_shapes() -> None:
    with pytest.raises(ConfigError, match=r"'augment_sigma' has shape \(3,\), expected \(2,\)"):
        inject(AUGMENT, CLIP, augment_sigma=torch.zeros(3))

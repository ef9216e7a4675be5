"""Masks, image batches, frames per second, caches and refusals of the DiT's forward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional

from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.dit import DiT, build_dit
from tests.networks.variants import FRAMES, HEIGHT, TEXT, TINY, VARIANTS, WIDTH, Variant, build_variant


def call(variant: Variant, net: DiT, **changes: Any) -> torch.Tensor:
    """Return the output for the variant's inputs with `changes`."""
    with torch.no_grad():
        return net(**{**variant.inputs(), **changes})


def patch_input(variant: Variant, net: DiT, **changes: Any) -> torch.Tensor:
    """Return what the patch embedding sees: all named channels, (B, C, T, H, W)."""
    seen: list[torch.Tensor] = []
    handle = net.x_embedder.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    call(variant, net, **changes)
    handle.remove()
    return seen[0]


def channels(variant: Variant, seen: torch.Tensor) -> dict[str, torch.Tensor]:
    names, sizes = zip(*variant.config.input_channels, strict=True)
    return dict(zip(names, seen.split(sizes, dim=1), strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_named_channel_is_at_its_place(name: str) -> None:
    """Padding that is not zero, together with condition mask, view, pose and trajectory channels, in the published order."""
    variant = VARIANTS[name]
    net, inputs = build_variant(variant), variant.inputs()
    parts = channels(variant, patch_input(variant, net))
    batch, _, frames, height, width = inputs["x"].shape
    assert torch.equal(parts["latent"], inputs["x"])
    # Nearest without averaging: row floor(i h / H), the same for every frame.
    rows = [i * inputs["padding_mask"].shape[2] // height for i in range(height)]
    columns = [j * inputs["padding_mask"].shape[3] // width for j in range(width)]
    nearest = inputs["padding_mask"][:, :, rows][..., columns].unsqueeze(2).expand(batch, 1, frames, height, width)
    assert 0 < float(nearest.mean()) < 1
    assert torch.equal(parts["padding"], nearest)
    if "cond_mask" in parts:
        assert torch.equal(parts["cond_mask"], inputs["condition_mask"].expand(batch, 1, frames, height, width))
    if "plucker" in parts:
        assert torch.equal(parts["plucker"], inputs["plucker"])
    if "trajectory" in parts:
        layer = net.get_submodule("traj_embeddings")
        vector = functional.linear(inputs["trajectory"], layer.weight, layer.bias)
        expected = vector[:, :, None, None, None].expand(batch, -1, frames, height, width)
        torch.testing.assert_close(parts["trajectory"], expected)


def test_padding_masks_of_odd_sizes_and_one_for_all() -> None:
    variant = VARIANTS["predict2_video2world"]
    net = build_variant(variant)
    mask = (torch.rand(2, 1, 31, 45) > 0.5).float()
    seen = channels(variant, patch_input(variant, net, padding_mask=mask))["padding"]
    rows = [i * 31 // HEIGHT for i in range(HEIGHT)]
    assert torch.equal(seen[:, :, 0], mask[:, :, rows][..., [j * 45 // WIDTH for j in range(WIDTH)]])
    alone = call(variant, net, padding_mask=mask[:1])
    assert torch.equal(alone, call(variant, net, padding_mask=mask[:1].expand(2, -1, -1, -1)))
    none = call(variant, net, padding_mask=None)
    assert torch.equal(none, call(variant, net, padding_mask=torch.zeros(2, 1, 8, 8)))
    assert not torch.equal(none, alone)


@pytest.mark.parametrize("name", ["predict1_video2world", "predict2_video2world", "predict2.5_action"])
def test_images_have_no_given_frames(name: str) -> None:
    variant = VARIANTS[name]
    net = build_variant(variant)
    image = call(variant, net, data_type="image")
    assert torch.equal(image, call(variant, net, data_type="image", condition_mask=torch.ones(2, 1, FRAMES, 1, 1)))
    assert torch.equal(image, call(variant, net, condition_mask=None))
    assert torch.equal(image, call(variant, net, condition_mask=torch.zeros(2, 1, FRAMES, 1, 1)))
    assert not torch.equal(image, call(variant, net))


def test_one_timestep_per_sample_is_the_same_for_every_frame() -> None:
    variant = VARIANTS["predict2_video2world"]
    net = build_variant(variant)
    t = torch.rand(2)
    one = call(variant, net, timesteps=t)
    assert torch.equal(one, call(variant, net, timesteps=t[:, None]))
    torch.testing.assert_close(one, call(variant, net, timesteps=t[:, None].expand(2, FRAMES)), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(one, call(variant, net, timesteps=torch.rand(2, FRAMES)), atol=1e-3)


def test_timestep_scale() -> None:
    """Predict2.5 hands over flow time in [0, 1000] and scales it inside."""
    variant = VARIANTS["predict2.5_base"]
    net = build_variant(variant)
    scaled = build_dit(variant.config.replace(timestep_scale=0.001), init=None)
    scaled.load_state_dict(net.state_dict())
    t = torch.rand(2, FRAMES)
    torch.testing.assert_close(
        call(variant, net, timesteps=t), call(variant, scaled, timesteps=1000 * t), rtol=1e-4, atol=1e-4
    )


# ---- frames per second -----------------------------------------------------------------------------------------------


def test_fps_none_and_unequal_fps_are_refused_where_time_is_measured_in_seconds() -> None:
    variant = VARIANTS["predict1_video2world"]
    net = build_variant(variant)
    with pytest.raises(ConfigError, match="measures time in seconds .rope_enable_fps_modulation.: give fps"):
        call(variant, net, fps=None)
    with pytest.raises(ConfigError, match=r"must have one fps here, got \[10.0, 24.0\]; batch clips of equal fps"):
        call(variant, net, fps=torch.tensor([10.0, 24.0]))


def test_fps_forms_and_effect() -> None:
    variant = VARIANTS["predict1_video2world"]
    net = build_variant(variant)
    outputs = [call(variant, net, fps=fps) for fps in (10, 10.0, torch.tensor(10), torch.tensor([10.0, 10.0]))]
    assert all(torch.equal(outputs[0], out) for out in outputs[1:])
    assert not torch.equal(outputs[0], call(variant, net, fps=24.0))
    # At the base rate time is measured in latent frames.
    plain = build_dit(variant.config.replace(rope_enable_fps_modulation=False), init=None)
    plain.load_state_dict(net.state_dict())
    assert torch.equal(call(variant, net, fps=24.0), call(variant, plain, fps=24.0))
    assert torch.equal(call(variant, plain, fps=None), call(variant, plain, fps=torch.tensor([10.0, 24.0])))


def test_single_frames_need_no_fps() -> None:
    variant = VARIANTS["predict1_video2world"]
    net = build_variant(variant)
    inputs = variant.inputs()
    single = {"x": inputs["x"][:, :, :1], "condition_mask": None}
    expected = call(variant, net, **single, fps=None)
    assert torch.equal(expected, call(variant, net, **single, fps=torch.tensor([10.0, 24.0])))


def test_fps_matters_to_several_views() -> None:
    variant = VARIANTS["predict2_multiview"]
    net = build_variant(variant)
    assert not torch.equal(call(variant, net, fps=10.0), call(variant, net, fps=30.0))


# ---- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["predict1_trajectory", "predict2_multiview"])
def test_permuted_views_give_permuted_outputs(name: str) -> None:
    """Views are a set: each starts at time 0, has its own text and its own id, and self-attention sees all of them."""
    variant = VARIANTS[name]
    net, inputs = build_variant(variant), variant.inputs()
    inputs["view_indices"] = torch.arange(variant.views).expand(2, -1)
    order = torch.tensor([2, 0, 1])[: variant.views] if variant.views == 3 else torch.tensor([1, 0])

    def permute(value: torch.Tensor, dim: int) -> torch.Tensor:
        return value.unflatten(dim, (variant.views, -1)).index_select(dim, order).flatten(dim, dim + 1)

    moved = dict(inputs)
    for key, dim in {"x": 2, "condition_mask": 2, "crossattn_emb": 1, "view_indices": 1, "frame_repeat": 1}.items():
        if key in inputs:
            moved[key] = permute(inputs[key], dim)
    if inputs["timesteps"].shape[1] > 1:
        moved["timesteps"] = permute(inputs["timesteps"], 1)
    with torch.no_grad():
        out, other = net(**inputs), net(**moved)
    torch.testing.assert_close(other, permute(out, 2), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(other, out, atol=1e-2)


def test_a_view_reads_only_its_own_text() -> None:
    """Without self-attention a change of view 1's text changes view 1 alone."""
    variant = VARIANTS["predict2_multiview"]
    net, inputs = build_variant(variant), variant.inputs()
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if "self_attn.output_proj" in key:
                parameter.zero_()
        out = net(**inputs)
        inputs["crossattn_emb"][:, TEXT:] += 1
        other = net(**inputs)
    half = inputs["x"].shape[2] // 2
    assert torch.equal(out[:, :, :half], other[:, :, :half])
    assert not torch.equal(out[:, :, half:], other[:, :, half:])


def test_zero_rows_of_text_count() -> None:
    """The published networks attend to the padding of the text, so cutting it changes the output; there is no mask."""
    variant = VARIANTS["predict2_video2world"]
    net, inputs = build_variant(variant), variant.inputs()
    padded = functional.pad(inputs["crossattn_emb"], (0, 0, 0, 3))
    assert not torch.allclose(call(variant, net), call(variant, net, crossattn_emb=padded), atol=1e-3)


# ---- caches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["predict2_video2world", "predict1_video2world_multiview"])
def test_training_after_inference_mode(name: str) -> None:
    """The position tables that a forward keeps are usable by autograd, whatever mode made them."""
    variant = VARIANTS[name]
    net = build_variant(variant)
    with torch.inference_mode():
        expected = net(**variant.inputs())
    out = net(**variant.inputs())
    out.sum().backward()
    assert torch.equal(out, expected)
    assert net.x_embedder.get_parameter("proj.1.weight").grad is not None


def test_tables_follow_the_grid_the_views_and_the_fps() -> None:
    """The kept tables never serve another call: a network that was used before computes what a fresh one does."""
    variant = VARIANTS["predict1_video2world_multiview"]
    used = build_variant(variant)
    inputs = variant.inputs()
    calls = [
        {},
        {"fps": 24.0},
        {"views": 1, "x": inputs["x"], "view_indices": None, "frame_repeat": None},
        {key: inputs[key].transpose(-1, -2) for key in ("x", "padding_mask")},
        {"x": inputs["x"][..., :2]},
    ]
    for changes in [*calls, *reversed(calls)]:
        assert torch.equal(call(variant, used, **changes), call(variant, build_variant(variant), **changes))


def test_networks_can_be_copied_and_take_bfloat16() -> None:
    variant = VARIANTS["predict1_trajectory"]
    net = build_variant(variant)
    exact = call(variant, net)
    low = copy.deepcopy(net).to(torch.bfloat16)
    out = call(variant, low)
    assert low.dtype == torch.bfloat16 and net.dtype == torch.float32
    assert out.dtype == torch.float32
    assert 0 < float((out - exact).norm() / exact.norm()) < 0.05
    assert torch.equal(call(variant, net), exact)


# ---- refusals --------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "four axes": (
        "predict2_video2world",
        {"x": torch.zeros(2, 16, 4, 6)},
        r"shape \(2, 16, 4, 6\), expected \(B, C, T",
    ),
    "latent channels": ("predict2_video2world", {"x": torch.zeros(2, 8, 3, 4, 6)}, "8 channels, the network takes 16"),
    "odd height": (
        "predict2_video2world",
        {"x": torch.zeros(2, 16, 3, 5, 6)},
        "5 x 6 does not divide into patches of 2",
    ),
    "tall": ("predict2_video2world", {"x": torch.zeros(2, 16, 3, 18, 6)}, r"\(3, 9, 3\) is larger than .*\(8, 8, 8\)"),
    "wide": ("predict2_video2world", {"x": torch.zeros(2, 16, 3, 4, 18)}, r"at most 16 x 16 latent pixels"),
    "long": (
        "predict2_video2world",
        {"x": torch.zeros(2, 16, 9, 4, 6), "timesteps": torch.rand(2)},
        r"\(9, 2, 3\) is larger than .* use fewer frames or a smaller size",
    ),
    "views": ("predict2_multiview", {"views": 3}, "4 latent frames do not divide into 3 views"),
    "text views": (
        "predict2_multiview",
        {"crossattn_emb": torch.zeros(2, 5, 16)},
        r"text of shape \(2, 5, 16\) .* 2 views",
    ),
    "text batch": ("predict2_video2world", {"crossattn_emb": torch.zeros(3, 5, 16)}, "does not fit a batch of 2"),
    "text axes": ("predict2_video2world", {"crossattn_emb": torch.zeros(2, 16)}, r"text of shape \(2, 16\)"),
    "text width": ("predict2_video2world", {"crossattn_emb": torch.zeros(2, 5, 24)}, "24 wide, the network takes 16"),
    "projected text": ("predict2.5_base", {"crossattn_emb": torch.zeros(2, 5, 16)}, "16 wide, the network takes 24"),
    "timesteps": ("predict2_video2world", {"timesteps": torch.rand(2, 2)}, r"\(2, 2\) fit neither \(B,\) nor \(B, T\)"),
    "timestep": ("predict2_video2world", {"timesteps": torch.tensor(0.5)}, r"timesteps of shape \(\) fit neither"),
    "timestep axes": ("predict2_video2world", {"timesteps": torch.rand(2, 1, 1)}, r"\(2, 1, 1\) fit neither"),
    "data type": ("predict2_video2world", {"data_type": "images"}, "data_type='images' is not 'video' or 'image'"),
    "padding axes": (
        "predict2_video2world",
        {"padding_mask": torch.zeros(2, 8, 8)},
        r"'padding_mask' has shape \(2, 8, 8\)",
    ),
    "padding batch": (
        "predict2_video2world",
        {"padding_mask": torch.zeros(3, 1, 8, 8)},
        r"\(3, 1, 8, 8\), expected \(2, 1",
    ),
    "condition mask": (
        "predict2_video2world",
        {"condition_mask": torch.zeros(2, 1, 2, 1, 1)},
        r"'cond_mask' has shape \(2, 1, 2, 1, 1\), expected \(2, 1, 3, 4, 6\)",
    ),
    "pose size": ("predict1_pose", {"plucker": torch.zeros(2, 6, 3, 8, 12)}, r"'plucker' has shape \(2, 6, 3, 8, 12\)"),
    "pose channels": ("predict1_pose", {"plucker": torch.zeros(2, 1, 3, 4, 6)}, "not in place of 6 channels"),
    "pose axes": (
        "predict1_pose",
        {"plucker": torch.zeros(2, 6, 4, 6)},
        r"'plucker' has shape \(2, 6, 4, 6\), expected",
    ),
    "misspelt signal": (
        "predict2_action",
        {"actions": torch.zeros(2, 12, 7)},
        "reads no signal 'actions'; it reads 'action'",
    ),
    "no signals": ("predict2_video2world", {"action": torch.zeros(2, 12, 7)}, "no signal 'action'; it reads none"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_inputs_that_do_not_fit_are_refused(what: str) -> None:
    name, changes, message = REFUSED[what]
    variant = VARIANTS[name]
    with pytest.raises(ConfigError, match=message):
        call(variant, build_variant(variant), **changes)


def test_longer_poses_are_cut() -> None:
    """Camera rays may be longer than the clip, as published: the first frames count."""
    variant = VARIANTS["predict1_pose"]
    net, plucker = build_variant(variant), variant.inputs()["plucker"]
    longer = torch.cat([plucker, torch.ones(2, 6, 2, HEIGHT, WIDTH)], dim=2)
    assert torch.equal(call(variant, net), call(variant, net, plucker=longer))


def test_temporal_patches() -> None:
    """Two latent frames per token: shapes, the refusals, and one timestep per sample only."""
    config = VARIANTS["predict2_video2world"].config.replace(patch_temporal=2)
    variant = Variant("predict1", config, frames=4)
    net = build_variant(variant)
    assert call(variant, net).shape == variant.inputs()["x"].shape
    with pytest.raises(ConfigError, match="3 latent frames do not divide into 1 views of patches of 2 frames"):
        call(variant, net, x=torch.zeros(2, 16, 3, 4, 6))
    with pytest.raises(ConfigError, match=r"\(2, 4\) fit neither"):
        call(variant, net, timesteps=torch.rand(2, 4))


def test_the_largest_grid_is_accepted() -> None:
    variant = VARIANTS["predict1_video2world"]
    x = torch.zeros(2, 16, TINY["max_frames"], TINY["max_img_h"], TINY["max_img_w"])
    assert call(variant, build_variant(variant), x=x, condition_mask=None).shape == x.shape

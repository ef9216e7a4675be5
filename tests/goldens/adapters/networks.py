"""DiT forwards, position tables and condition masks of the areas predict1, predict2 and control."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from cosmos_predict.checkpoint.dialects import detect_dialect, translate, unwrap_key
from cosmos_predict.conditions.action import ActionControl
from cosmos_predict.conditions.augment_sigma import AugmentSigmaControl
from cosmos_predict.conditions.camera import CameraBlockControl
from cosmos_predict.conditions.frames import first_frames_mask, view_mask
from cosmos_predict.conditions.trajectory import TrajectoryControl
from cosmos_predict.conditions.view import ViewControl
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import DiT, build_dit
from cosmos_predict.networks.rope import (
    LearnablePositionEmbedding,
    SinCosPositionEmbedding,
    rope_angles,
    timestep_sinusoid,
)
from tests.goldens.run_case import Case, adapter

SHARED = {field.name for field in dataclasses.fields(DiTConfig)} - {
    "input_channels",
    "controls",
    "rope_enable_fps_modulation",
}
NETWORK_AREAS = ("predict1", "predict2", "control")


def network_config(case: Case, arguments: dict[str, Any]) -> DiTConfig:
    """Translate published constructor arguments into our configuration."""
    network = case.call.get("network", "video2world")
    predict1 = case.area == "predict1"
    channels: list[tuple[str, int]] = []
    controls: list[Any] = []
    latent = arguments["in_channels"]
    video = network not in ("text2world", "text2image", "multiview_text2world")
    if predict1 and video and not network.startswith("multiview"):
        extra = latent - arguments["out_channels"] - 1  # its in_channels counts the mask and the pose
        latent = arguments["out_channels"]
        channels = [("latent", latent), ("cond_mask", 1)] + ([("plucker", extra)] if extra else [])
    else:
        channels = [("latent", latent)] + ([("cond_mask", 1)] if video else [])
    if arguments.get("concat_padding_mask", True):
        channels.append(("padding", 1))
    if "multiview" in network:
        size = arguments["view_condition_dim"]
        count = arguments.get("n_cameras_emb") or arguments["n_views"]
        channels.append(("view", size))
        controls.append(
            ViewControl(num_views=count, dim=size, add_frame_repeat=arguments.get("add_repeat_frame_embedding", False))
        )
    if arguments.get("concat_traj_embedding"):
        channels.append(("trajectory", arguments["traj_condition_dim"]))
        controls.append(TrajectoryControl(dim=arguments["traj_condition_dim"]))
    if arguments.get("add_augment_sigma_embedding"):
        controls.append(AugmentSigmaControl())
    if network == "action":
        steps, size = case.inputs["action"].shape[1:]
        mode = "first_only" if predict1 else "flat"
        controls.append(ActionControl(mode=mode, action_dim=size, chunk=steps, use_time=not predict1))
    if network == "action_chunk":
        size, chunk = arguments["action_dim"], arguments["temporal_compression_ratio"]
        hidden = arguments.get("hidden_dim_in_action_embedder")
        controls.append(ActionControl(mode="per_latent", action_dim=size, chunk=chunk, hidden=hidden))
    if network == "camera":
        controls.append(CameraBlockControl(features=arguments["cam_dim"]))
    extra = "none"
    if arguments.get("extra_per_block_abs_pos_emb"):
        extra = "sincos" if "multiview" in network else arguments.get("extra_per_block_abs_pos_emb_type", "learnable")
    return DiTConfig(
        **{name: value for name, value in arguments.items() if name in SHARED},
        input_channels=tuple(channels),
        extra_pos_emb=extra,
        rope_enable_fps_modulation=case.call.get(
            "rope_fps_modulation", predict1 or arguments.get("rope_enable_fps_modulation", False)
        ),
        controls=tuple(controls),
    )


def build_network(case: Case, arguments: dict[str, Any] | None = None) -> tuple[DiT, dict[str, Tensor]]:
    """Return the case's network with its weights, and the tensors of its state dict that are not the network's."""
    net = build_dit(network_config(case, arguments or case.config), init=None)
    named = [(unwrap_key(key), value) for key, value in case.weights().items()]
    state = {key.name: value for key, value in named if key.part == "reg"}
    rest = {key.name: value for key, value in named if key.part != "reg"}
    dialect = detect_dialect(state)
    assert dialect is not None, "no dialect knows the case's keys"
    net.load_state_dict(translate(state, dialect, "predict2"))
    return net, rest


def views_of(case: Case, arguments: dict[str, Any]) -> int:
    """Return how many views lie along T (the camera networks see one long clip)."""
    if "multiview" not in case.call.get("network", ""):
        return 1
    return case.call.get("n_views") or arguments.get("n_views") or 1


def network_signals(case: Case) -> dict[str, Any]:
    """Return the control inputs of a case under our names."""
    names = {
        "action": "action",
        "camera": "camera",
        "view_indices": "view_indices",
        "frame_repeat": "frame_repeat",
        "trajectory": "trajectory",
        "condition_video_pose": "plucker",
        "condition_video_augment_sigma": "augment_sigma",
    }
    return {ours: case.inputs[theirs] for theirs, ours in names.items() if theirs in case.inputs}


def _dit_forward(case: Case) -> dict[str, Tensor]:
    net, _ = build_network(case)
    seen: dict[str, Tensor] = {}
    net.t_embedding_norm.register_forward_hook(lambda _m, _i, out: seen.__setitem__("t_emb", out))
    net.blocks[0].register_forward_hook(lambda _m, _i, out: seen.__setitem__("block0", out))
    inputs = case.inputs
    with torch.no_grad():
        out = net(
            inputs["x"],
            inputs["timesteps"],
            inputs["crossattn_emb"],
            fps=inputs.get("fps"),
            padding_mask=inputs.get("padding_mask"),
            condition_mask=inputs.get("condition_video_input_mask"),
            data_type=case.call.get("data_type", "video"),
            views=views_of(case, case.config),
            **network_signals(case),
        )
    if case.area == "predict1":
        return {"net_output": out}
    frames, height, width = inputs["x"].shape[2:]
    return {"x": out, "t_emb": seen["t_emb"], "block0": seen["block0"].unflatten(1, (frames, height // 2, width // 2))}


for _area in NETWORK_AREAS:
    adapter(_area, "dit_forward")(_dit_forward)


@adapter("predict2", "rope_tables")
def rope_tables(case: Case) -> dict[str, Tensor]:
    config = case.config
    out = {}
    for name, table in case.call["tables"].items():
        angles = rope_angles(
            config["head_dim"],
            tuple(table["grid"]),
            tuple(table["ratios_hwt"]),
            fps=table["fps"] if table["fps_modulation"] else None,
            base_fps=config["base_fps"],
            views=table["n_views"],
        )
        out[name] = angles.repeat(1, 2)  # the published table holds the columns twice
    return out


@adapter("predict1", "position_tables")
def position_tables(case: Case) -> dict[str, Tensor]:
    config, call = case.config, case.call
    grid = (call["T"], call["H"], call["W"])
    ratios = tuple(config["rope"][f"{axis}_extrapolation_ratio"] for axis in "hwt")

    def angles(grid: tuple[int, int, int], fps: float | None, views: int = 1) -> Tensor:
        table = rope_angles(config["head_dim"], grid, ratios, fps=fps, base_fps=config["base_fps"], views=views)
        return table.repeat(1, 2)[:, None, None]

    net = DiTConfig(
        model_channels=config["model_channels"],
        num_blocks=1,
        num_heads=1,
        max_img_h=2 * config["len_h"],
        max_img_w=2 * config["len_w"],
        max_frames=config["len_t"],
        **{f"extra_{axis}_extrapolation_ratio": config["extra"][f"{axis}_extrapolation_ratio"] for axis in "hwt"},
    )
    learnable = LearnablePositionEmbedding(net)
    learnable.load_state_dict({key.rsplit(".", 1)[-1]: value for key, value in case.weights().items()})
    views = config["n_views"]
    return {
        "rope_angles": angles(grid, call["fps"]),
        "rope_angles_image": angles((1, *grid[1:]), None),
        "rope_angles_multiview": angles(grid, call["fps"], views),
        "extra_learnable": learnable(grid).unflatten(1, grid),
        "extra_sincos_multiview": SinCosPositionEmbedding(net)(grid, views).unflatten(1, (views * grid[0], *grid[1:])),
        "timestep_sinusoid": timestep_sinusoid(case.inputs["timesteps"], config["model_channels"]),
    }


@adapter("predict2", "condition_masks")
def condition_masks(case: Case) -> dict[str, Tensor]:
    out = {}
    for name, mask in case.call["masks"].items():
        if mask["kind"] == "single":
            counts = [mask["num_conditional_frames"] or 0] * mask["batch"]
            value = first_frames_mask(counts, mask["frames"])
        else:
            value = view_mask(
                mask["batch"],
                case.config["state_t"],
                case.config["n_views"],
                mask["locations"],
                ref_view=mask["ref_cam_view_idx_sample_position"],
                any_view=mask.get("condition_cam_idx"),
                num_frames_per_view=mask.get("num_conditional_frames_per_view", 0),
            )
        out[name] = value[:, 0, :, 0, 0]
    return out

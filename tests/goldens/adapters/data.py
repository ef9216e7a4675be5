"""Adapters of the data kinds: robot actions, ego trajectories, Pluecker maps, frame transforms."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosmos_predict.conditions import plucker
from cosmos_predict.data import clip_sampler, ego_trajectory, robot_actions, transforms, video_reader
from cosmos_predict.data.multiview import MultiviewDataset
from cosmos_predict.data.video_folder import Clip
from cosmos_predict.io.embeddings import WIDTH, write_embedding
from tests.goldens.run_case import Case, adapter


@adapter("control", "bridge_actions")
def control_bridge_actions(case: Case) -> dict[str, Any]:
    frames = case.config["frame_ids"]
    state, gripper = case.inputs["state"].numpy(), case.inputs["gripper"].numpy()[frames[1:]]

    def actions(rebase_every: int) -> np.ndarray:
        scale = case.config["action_scaler"]
        return robot_actions.relative_actions(state, gripper, frames, rebase_every=rebase_every, scale=scale)

    return {"action": actions(1), "action_accumulated": actions(0), "action_rebased4": actions(4)}


@adapter("data", "bridge_actions")
def data_bridge_actions(case: Case) -> dict[str, Any]:
    episode = {name: value.numpy() for name, value in case.inputs.items()}
    length, interval = case.config["num_frames"], case.config["sequence_interval"]
    train = clip_sampler.enumerate_windows(len(episode["state"]), length, interval=interval)
    val = clip_sampler.enumerate_windows(
        len(episode["state"]), length, interval=interval, start_interval=case.config["val_start_frame_interval"]
    )
    frames, scale = train[case.call["sample_index"]], case.config["c_act_scaler"]
    of = robot_actions.episode_actions
    return {
        "relative": of(episode, frames, convention="predict2", scale=scale),
        "accumulated": of(episode, frames, convention="predict1", scale=scale, rebase_every=0),
        "binary": of(episode, frames, convention="predict1_binary", scale=scale),
        "inference": of(episode, convention="predict2_inference", scale=scale),
        "nemo": of(episode, convention="nemo"),
        "frame_ids_train": train,
        "frame_ids_val": val,
    }


def _future(case: Case, track: ego_trajectory.EgoTrack, t0_us: np.ndarray | int) -> dict[str, Any]:
    xyz, rotation = ego_trajectory.future_poses(
        track, t0_us, num_steps=case.config["num_future_steps"], time_step=case.config["time_step"]
    )
    vector = ego_trajectory.trajectory_vector(xyz, case.config["scale"])
    return {"future_xyz": xyz, "future_rot": rotation, "trajectory": vector}


@adapter("control", "ego_trajectory")
def control_ego_trajectory(case: Case) -> dict[str, Any]:
    arrays = {name: value.numpy() for name, value in case.inputs.items()}
    track = ego_trajectory.ego_track(
        arrays["timestamp_us"], arrays["xyz"], arrays["quat_wxyz"], sensor_to_rig=arrays["sensor_to_rig"]
    )
    outputs = _future(case, track, arrays["t0_us"])
    return {name: outputs[name] for name in ("future_xyz", "trajectory")}


@adapter("data", "av_trajectory")
def data_av_trajectory(case: Case) -> dict[str, Any]:
    arrays = {name: value.numpy() for name, value in case.inputs.items()}
    track = ego_trajectory.ego_track(arrays["timestamp"], arrays["xyz"], arrays["quat_wxyz"])
    return _future(case, track, case.call["base_timestamp_us"])


def _latent_maps(case: Case, image_size: list[float], compression: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The camera-control recipe: world-to-camera poses, intrinsics as fractions, one cell per latent pixel."""
    translation = plucker.normalize_translations(case.inputs["translation"])
    absolute = plucker.pose_matrix(case.inputs["rotation"], translation)
    relative = plucker.relative_to_first(absolute)
    intrinsics = case.inputs["intrinsics"]
    return {
        "translation_normalised": translation,
        "relative_pose": relative,
        "plucker": plucker.latent_plucker_map(relative, intrinsics, image_size, compression),
        "plucker_absolute": plucker.latent_plucker_map(absolute, intrinsics, image_size, compression),
    }


@adapter("control", "plucker")
def control_plucker(case: Case) -> dict[str, Any]:
    if "cam2world" in case.inputs:
        poses, intrinsics = case.inputs["cam2world"], case.inputs["intrinsics"]
        height, width = case.config["height"], case.config["width"]
        world2cam = plucker.invert_pose(poses)
        relative = plucker.relative_to_first(world2cam)
        rays = plucker.plucker_rays(plucker.invert_pose(relative), intrinsics, height, width)
        return {
            "world2cam": world2cam,
            "world2cam_relative": relative,
            "rays": rays,
            "rays_absolute": plucker.plucker_rays(poses, intrinsics, height, width),
            "rays_folded": plucker.fold_rays(rays, case.config["patch"]),
        }
    compression = case.config["latent_compression"]
    outputs = _latent_maps(case, case.config["image_size"], (compression, compression))
    grid = plucker.mask_to_grid(case.inputs["padding_mask"], *outputs["plucker"].shape[-2:])
    outputs["padding_mask_latent"] = grid
    outputs["plucker_masked"] = plucker.mask_rays(outputs["plucker"], grid)
    return outputs


@adapter("data", "plucker")
def data_plucker(case: Case) -> dict[str, Any]:
    config = case.config
    if "c2w" in case.inputs:
        rays = plucker.plucker_rays(case.inputs["c2w"], case.inputs["intrinsics"], *config["image_size"])
        return {"plucker": rays, "patched": plucker.fold_rays(rays, config["patch_spatial"])}
    compression = (config["latent_compression_ratio_h"], config["latent_compression_ratio_w"])
    outputs = _latent_maps(case, case.inputs["image_size"].tolist(), compression)
    outputs["relative_pose"] = plucker.to_homogeneous(outputs["relative_pose"])
    return outputs


@adapter("data", "frame_transforms")
def data_frame_transforms(case: Case) -> dict[str, Any]:
    frames, config = case.inputs["frames"], case.config
    padded = transforms.fit_frames(frames, config["big"], "pad")
    camera = transforms.fit_frames(frames, config["camera_target"], "pad_width")
    return {
        "train_up": transforms.fit_frames(frames, config["big"], "stretch").frames,
        "train_down": transforms.fit_frames(frames, config["small"], "stretch").frames,
        "train_same": transforms.fit_frames(frames, frames.shape[-2:], "stretch").frames,
        "center_crop": transforms.fit_frames(frames, config["small"], "crop").frames,
        "pad_video": padded.frames,
        "pad_mask": padded.padding_mask,
        "pad_image_size": padded.image_size.float(),
        "nemo_chunk": transforms.normalize_video(
            transforms.resize_uint8(frames, config["small"], "bilinear"), torch.bfloat16
        ).float(),
        "camera_video": camera.frames,
        "camera_image_size": camera.image_size.float()[None],
    }


def _summary(frames: torch.Tensor, selected: list[int]) -> dict[str, torch.Tensor]:
    """The golden's digest of a sample's frames (T, 3, H, W)."""
    video = frames.float()
    down = torch.nn.functional.adaptive_avg_pool2d(video[selected], (8, 12))
    return {"video_down": down.transpose(0, 1), "video_mean": video.mean(dim=(2, 3)).T}


@adapter("data", "video_sample")
def data_video_sample(case: Case) -> dict[str, Any]:
    start = case.call["start_frame"]
    frames = video_reader.read_frames(case.media / case.call["media"], range(start, start + case.config["num_frames"]))
    fitted = transforms.fit_frames(torch.from_numpy(frames).permute(0, 3, 1, 2), case.config["video_size"], "stretch")
    return _summary(fitted.frames, case.call["frames_downsampled"])


@adapter("data", "bridge_sample")
def data_bridge_sample(case: Case) -> dict[str, Any]:
    path, config = case.media / case.call["media"], case.config
    annotation = json.loads(path.read_text())
    windows = clip_sampler.enumerate_windows(
        len(annotation["state"]),
        config["num_frames"],
        interval=config["sequence_interval"],
        start_interval=config["start_frame_interval"],
    )
    ids = windows[case.call["sample_index"]]
    root = next(parent for parent in path.parents if parent.name == "annotation").parent
    frames = video_reader.read_frames(root / annotation["videos"][0]["video_path"], ids)
    fitted = transforms.fit_frames(torch.from_numpy(frames).permute(0, 3, 1, 2), config["video_size"], "stretch")
    actions = robot_actions.episode_actions(
        annotation,
        ids,
        convention="predict2" if config["gripper"] == "continuous_gripper_state" else "predict1_binary",
        rebase_every=0 if config["accumulate_action"] else 1,
        scale=config["c_act_scaler"],
    )
    return {"action": actions, **_summary(fitted.frames, case.call["frames_downsampled"])}


def multiview_dataset(case: Case, folder: Path, split: str = "train") -> MultiviewDataset:
    """The folder that the case describes, with embeddings of ones."""
    config, call = case.config, case.call
    for camera, media in call["media"].items():
        (folder / "videos" / camera).mkdir(parents=True, exist_ok=True)
        for number in range(call["n_clips"]):
            clip = f"clip{number:02d}"
            shutil.copyfile(case.media / media, folder / "videos" / camera / f"{clip}.mp4")
            ones = np.ones((call["t5_tokens"][camera], WIDTH), np.float16)
            write_embedding(folder / "t5_xxl" / camera / f"{clip}.pkl", ones)
    return MultiviewDataset(
        folder,
        config["num_frames"],
        config["video_size"],
        config["camera_keys"],
        config["camera_to_view_id"],
        config["front_camera_key"],
        config["front_view_caption_only"],
        state_t=config["state_t"],
        sequence_interval=config["sequence_interval"],
        start_interval=config["start_frame_interval"],
        split=split,
    )


def multiview_windows(dataset: MultiviewDataset) -> list[tuple[Clip, np.ndarray]]:
    """All samples in the published order: clip by clip, then by start frame."""
    return [(clip, ids) for clip in dataset.clips for ids in dataset.windows(clip)]


@adapter("data", "multiview_sample")
def data_multiview_sample(case: Case) -> dict[str, Any]:
    call = case.call
    with tempfile.TemporaryDirectory() as name:
        dataset = multiview_dataset(case, Path(name))
        sample = dataset.load(*multiview_windows(dataset)[call["sample_index"]])
    down = _summary(sample["video"].transpose(0, 1), call["frames_downsampled"])["video_down"]
    same = {name: sample[name] for name in ("view_indices", "latent_view_indices_B_T")}
    norms = sample["t5_text_embeddings"].norm(dim=1)
    return {**same, "t5_text_mask": sample["t5_text_mask"].float(), "video_down": down, "t5_row_norm": norms}

"""The clips that ship with the repository: readable, small, captioned, disjoint, and what the script simulates and draws."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from cosmos_predict.conditions.plucker import invert_pose
from cosmos_predict.data.robot_actions import episode_actions, euler_to_matrix
from cosmos_predict.data.video_reader import probe, read_frames, read_image

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets"
SINGLE_VIEW = ("robot_arm_base", "robot_arm_base_heldout", "robot_arm", "robot_arm_heldout")


@pytest.fixture(scope="module")
def clips() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_robot_clips", ROOT / "scripts" / "make_robot_clips.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", SINGLE_VIEW)
def test_every_clip_is_there_with_caption_and_actions(clips: ModuleType, folder: str) -> None:
    count, split, _ = clips.FOLDERS[folder]
    scenes = [clips.make_scene(folder, number) for number in range(count)]
    for part, suffix in (("videos", ".mp4"), ("metas", ".txt"), (f"annotation/{split}", ".json")):
        names = sorted(path.name for path in (ASSETS / folder / part).iterdir())
        assert names == sorted(scene.name + suffix for scene in scenes)
    for scene in scenes:
        assert (ASSETS / folder / "metas" / f"{scene.name}.txt").read_text().strip() == scene.caption
    info = probe(ASSETS / folder / "videos" / f"{scenes[0].name}.mp4")
    assert (info.frames, info.fps, info.width, info.height) == (17, 8, 128, 96)


def test_all_of_it_is_small() -> None:
    sizes = [path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(sizes) < 15e6


def test_no_scene_is_in_two_splits(clips: ModuleType) -> None:
    starts = [
        (*clips.make_scene(folder, number).block_xy, *clips.make_scene(folder, number).start)
        for folder in clips.FOLDERS
        for number in range(clips.FOLDERS[folder][0])
    ]
    assert len(set(starts)) == len(starts)
    tasks = {folder: set(clips.FOLDERS[folder][2]) for folder in clips.FOLDERS}
    assert tasks["robot_arm"] == tasks["robot_arm_heldout"] == {"lift"}
    assert not tasks["robot_arm_base"] & tasks["robot_arm"]  # the base never sees the new task


@pytest.mark.parametrize("folder", ["robot_arm_base", "robot_arm_heldout"])
def test_shipped_clips_are_what_the_script_draws(clips: ModuleType, folder: str) -> None:
    scene = clips.make_scene(folder, 1)
    assert scene == clips.make_scene(folder, 1)
    episode = clips.simulate(scene)
    drawn = [clips.draw(scene, clips.solids(scene, episode, t), clips.FRONT) for t in (0, 8, 16)]
    shipped = read_frames(ASSETS / folder / "videos" / f"{scene.name}.mp4", (0, 8, 16))
    assert np.abs(shipped.astype(int) - np.stack(drawn)).mean() < 3  # what compression loses
    assert all(np.abs(a.astype(int) - b).mean() > 1 for a, b in itertools.pairwise(drawn))  # it moves


def test_the_first_frame_is_that_of_the_first_clip(clips: ModuleType) -> None:
    scene = clips.make_scene("robot_arm", 0)
    drawn = clips.draw(scene, clips.solids(scene, clips.simulate(scene), 0), clips.FRONT)
    assert np.array_equal(read_image(ASSETS / "robot_arm" / "first_frame.png"), drawn)


def test_blocks_are_pushed_and_carried(clips: ModuleType) -> None:
    moved = {}
    for number in range(4):
        scene = clips.make_scene("robot_arm_base", number)
        blocks = clips.simulate(scene).blocks
        moved[scene.task] = blocks[-1] - blocks[0]
    assert moved["push_right"][1] > 0.08 and moved["push_left"][1] < -0.08
    assert not moved["touch"].any() and not moved["leave"].any()
    lifted = clips.simulate(clips.make_scene("robot_arm", 0)).blocks
    assert np.allclose(lifted[:7], lifted[0]) and np.allclose(lifted[-1] - lifted[0], [0, 0, 0.17], atol=1e-9)


def test_actions_lead_from_state_to_state(clips: ModuleType) -> None:
    """Step by step along the actions, the gripper comes to where the states say it is."""
    path = next((ASSETS / "robot_arm" / "annotation" / "train").iterdir())
    about = json.loads(path.read_text())
    state, action = np.array(about["state"]), np.array(about["action"])
    assert state.shape == (17, 7) and action.shape == (16, 7) and len(about["continuous_gripper_state"]) == 17
    position, rotation = state[0, :3], euler_to_matrix(state[0, 3:6])
    for step, target in zip(action, state[1:], strict=True):
        position = position + rotation @ step[:3]
        rotation = rotation @ euler_to_matrix(step[3:6])
        assert np.allclose(position, target[:3], atol=2e-4) and step[6] == target[6]
    assert episode_actions(about, convention="predict2").shape == (16, 7)
    assert (path.parents[2] / about["videos"][0]["video_path"]).is_file()


def test_cameras_see_the_block_where_they_say(clips: ModuleType) -> None:
    """A place of the block, projected with the shipped intrinsics and poses, is a pixel of the block's colour."""
    number = 2
    scene = clips.make_scene("robot_arm_views", number)
    block = clips.simulate(scene).blocks[0]
    for camera in ("front", "side", "wrist"):
        about = json.loads((ASSETS / "robot_arm_views" / "cameras" / camera / f"{scene.name}.json").read_text())
        poses = torch.tensor(about["cam2world"], dtype=torch.float64)
        assert poses.shape == (17, 3, 4)
        world2cam = invert_pose(poses[:1])[0].numpy()
        # The gripper hides the centre from its own camera: there the low middle of the face that looks at it.
        place = block + ([0, clips.BLOCK, -0.03] if camera == "wrist" else 0)
        x, y, z = world2cam[:, :3] @ place + world2cam[:, 3]
        fx, fy, cx, cy = about["intrinsics"]
        column, row = int(fx * x / z + cx), int(fy * y / z + cy)
        video = ASSETS / "robot_arm_views" / "videos" / camera / f"{scene.name}.mp4"
        pixel = read_frames(video, [0])[0, row, column].astype(float)
        expected = np.array(clips.COLORS[scene.block], dtype=float)
        hue = pixel / np.linalg.norm(pixel) @ (expected / np.linalg.norm(expected))
        assert z > 0 and hue > 0.95, (camera, row, column, pixel)
    moving = json.loads((ASSETS / "robot_arm_views" / "cameras" / "wrist" / f"{scene.name}.json").read_text())
    assert np.ptp(np.array(moving["cam2world"])[:, :, 3], axis=0).max() > 0.05


def test_an_unknown_folder_is_named(
    clips: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["make_robot_clips.py", "robot_leg"])
    with pytest.raises(SystemExit) as stopped:
        clips.main()
    assert stopped.value.code == 2 and "no folder robot_leg; known: robot_arm_base" in capsys.readouterr().err

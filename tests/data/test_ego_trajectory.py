"""Ego trajectories of motions whose future is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from cosmos_predict.data.ego_trajectory import (
    EgoTrack,
    ego_track,
    future_poses,
    quaternion_to_matrix,
    trajectory_vector,
)
from cosmos_predict.errors import DataError

START = 1_700_000_000_000_000  # microseconds, as real clocks count


def circle(
    seconds: float = 24.0, rate: float = 20.0, sensor_to_rig: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    """A left turn of radius 30 m at 9 m/s, heading 0.4 rad at first: times, positions, quaternions (signs flipping)."""
    time = np.arange(int(seconds * rate) + 1) / rate
    heading = 0.4 + 0.3 * time
    xyz = np.stack([30 * np.sin(heading), -30 * np.cos(heading), np.zeros_like(time)], axis=1) + [5e3, -2e3, 40]
    half = heading / 2
    quat = np.stack([np.cos(half), 0 * half, 0 * half, np.sin(half)], axis=1)
    if sensor_to_rig is not None:
        xyz = xyz + quaternion_to_matrix(quat) @ sensor_to_rig[:3, 3]
    signs = np.where(np.arange(len(time)) % 3 == 1, -1.0, 1.0)
    return START + np.rint(time * 1e6).astype(np.int64), xyz, quat * signs[:, None]


def expected(steps: int, time_step: float) -> np.ndarray:
    angle = 0.3 * time_step * np.arange(1, steps + 1)
    return np.stack([30 * np.sin(angle), 30 * (1 - np.cos(angle)), 0 * angle], axis=1)


@pytest.mark.parametrize(
    "offset", [np.eye(4), np.array([[1, 0, 0, 1.7], [0, 1, 0, -0.2], [0, 0, 1, 1.5], [0, 0, 0, 1.0]])]
)
def test_a_left_turn_is_the_same_from_anywhere_on_the_circle(offset: np.ndarray) -> None:
    track = ego_track(*circle(sensor_to_rig=offset), sensor_to_rig=offset)
    xyz, rotation = future_poses(track, START + np.array([1_500_000, 7_213_457]))
    assert xyz.shape == (2, 64, 3) and rotation.shape == (2, 64, 3, 3)
    for view in xyz:
        np.testing.assert_allclose(view, expected(64, 0.1), atol=5e-3)
    heading = np.arctan2(rotation[0, :, 1, 0], rotation[0, :, 0, 0])
    np.testing.assert_allclose(heading, 0.03 * np.arange(1, 65), atol=1e-3)


def test_vector_is_scaled_and_time_major() -> None:
    vector = trajectory_vector(expected(5, 0.5))
    assert vector.shape == (15,) and vector.dtype == np.float32
    np.testing.assert_allclose(vector[3:6], expected(5, 0.5)[1] / [10, 4, 1], rtol=1e-6)


def test_uncovered_times_are_refused() -> None:
    track = ego_track(*circle())
    for t0 in (1_300_000, 17_700_000):
        with pytest.raises(
            DataError, match="does not cover the sample.*64 future steps of 0.1 s.*choose another first frame"
        ):
            future_poses(track, START + t0)
    future_poses(track, START + 1_400_000)
    future_poses(track, START + 17_600_000)
    future_poses(track, START, num_history_steps=0)


def bad(what: str) -> EgoTrack:
    times, xyz, quat = circle(seconds=19 if what == "span" else 24)
    if what == "order":
        times[7] = times[6]
    elif what == "gap":
        times[9:] += 150_000
    elif what == "quaternion":
        quat[4] *= 1.01
    elif what == "shape":
        xyz = xyz[:-1]
    return ego_track(times, xyz, quat, sensor_to_rig=np.eye(3) if what == "sensor" else None)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("span", "covers 19 s; at least 20 s are needed"),
        ("order", "times must increase: row 7 is 0 s"),
        ("gap", "gap of 0.2 s before row 9; below 0.2 s"),
        ("quaternion", "row 4 has a quaternion of length 1.01"),
        ("shape", r"positions \(N, 3\)"),
        ("sensor", r"sensor_to_rig must be \(4, 4\), got \(3, 3\)"),
    ],
)
def test_bad_tracks(what: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        bad(what)

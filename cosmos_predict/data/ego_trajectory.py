"""The trajectory condition of driving data: an egomotion track to future positions in the vehicle's frame, in float64.

Axes of the rig (vehicle) frame: x front, y left, z up, in metres. Poses are sensor-to-world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cosmos_predict.errors import DataError

TRAJECTORY_SCALE = (10.0, 4.0, 1.0)


@dataclass(frozen=True)
class EgoTrack:
    """A checked track of the rig: `timestamp_us` (N,) int64 microseconds, strictly increasing; `xyz` (N, 3) metres;
    `quat_wxyz` (N, 4) unit quaternions whose signs are continuous. Made by `ego_track`."""

    timestamp_us: np.ndarray
    xyz: np.ndarray
    quat_wxyz: np.ndarray


def ego_track(
    timestamp_us: np.ndarray,
    xyz: np.ndarray,
    quat_wxyz: np.ndarray,
    *,
    sensor_to_rig: np.ndarray | None = None,
    min_span: float = 20.0,
    max_gap: float = 0.2,
) -> EgoTrack:
    """Check a logged track and convert it to the rig frame.

    Args:
        timestamp_us: (N,) integer microseconds.
        xyz: (N, 3) positions in the world, metres.
        quat_wxyz: (N, 4) orientations, w first; signs may flip between rows.
        sensor_to_rig: (4, 4) pose of the tracked sensor in the rig, None when the log tracks the rig itself. Every row
            becomes T_world_sensor * inv(sensor_to_rig) before any interpolation (afterwards differs by a millimetre).
        min_span: seconds that the track must cover at least.
        max_gap: seconds that two neighbours must be apart at most (exclusive).

    Raises:
        DataError: shapes, times, gaps or quaternions that do not fit.
    """
    times = np.asarray(timestamp_us, dtype=np.int64)
    xyz, quat = np.asarray(xyz, dtype=np.float64), np.asarray(quat_wxyz, dtype=np.float64)
    if times.ndim != 1 or len(times) < 2 or xyz.shape != (len(times), 3) or quat.shape != (len(times), 4):
        raise DataError(
            f"an ego track needs N >= 2 times (N,), positions (N, 3), quaternions (N, 4); got {times.shape}, "
            f"{xyz.shape}, {quat.shape}"
        )
    gaps = np.diff(times)  # whole microseconds: exact at the limits
    if gaps.min() <= 0:
        row = int(gaps.argmin()) + 1
        raise DataError(f"ego track times must increase: row {row} is {gaps.min() / 1e6:g} s after its predecessor")
    if gaps.max() >= round(max_gap * 1e6):
        row, gap = int(gaps.argmax()) + 1, gaps.max() / 1e6
        raise DataError(f"ego track has a gap of {gap:g} s before row {row}; below {max_gap:g} s is needed")
    span = times[-1] - times[0]
    if span < round(min_span * 1e6):
        raise DataError(f"ego track covers {span / 1e6:g} s; at least {min_span:g} s are needed")
    norm = np.linalg.norm(quat, axis=1)
    if np.abs(norm - 1).max() > 1e-3:
        row = int(np.abs(norm - 1).argmax())
        raise DataError(f"ego track row {row} has a quaternion of length {norm[row]:g}; expected 1 within 1e-3")
    quat = quat / norm[:, None]
    if sensor_to_rig is not None:
        sensor = np.asarray(sensor_to_rig, dtype=np.float64)
        if sensor.shape != (4, 4):
            raise DataError(f"sensor_to_rig must be (4, 4), got {sensor.shape}")
        inverse = np.linalg.inv(sensor)
        rotation = quaternion_to_matrix(quat)
        xyz, quat = xyz + rotation @ inverse[:3, 3], _matrix_to_quaternion(rotation @ inverse[:3, :3])
    # q and -q are one rotation; interpolation needs neighbours on the same side.
    flips = np.where(np.sum(quat[1:] * quat[:-1], axis=1) >= 0, 1.0, -1.0)
    quat = quat * np.concatenate([[1.0], np.cumprod(flips)])[:, None]
    return EgoTrack(times, xyz, quat)


def pose_at(track: EgoTrack, time_us: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (..., 3) and rotations (..., 3, 3), rig-to-world, at times (...) in microseconds.

    Position and quaternion components are interpolated linearly, the quaternion is then normalized.

    Raises:
        DataError: a time outside the track.
    """
    # Whole microseconds, from the track's first: absolute times in float64 seconds would already be rounded.
    start, end = track.timestamp_us[[0, -1]]
    query = np.asarray(time_us, dtype=np.int64)
    if query.min() < start or query.max() > end:
        raise DataError(f"times {query.min()}..{query.max()} us reach outside the ego track {start}..{end} us")
    columns = np.concatenate([track.xyz, track.quat_wxyz], axis=1)
    values = np.stack([np.interp(query - start, track.timestamp_us - start, column) for column in columns.T], axis=-1)
    quat = values[..., 3:] / np.linalg.norm(values[..., 3:], axis=-1, keepdims=True)
    return values[..., :3], quaternion_to_matrix(quat)


def future_poses(
    track: EgoTrack,
    t0_us: np.ndarray | int,
    *,
    num_steps: int = 64,
    time_step: float = 0.1,
    num_history_steps: int = 15,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the vehicle's future in its own frame at t0: positions (..., K, 3) in metres, rotations (..., K, 3, 3).

    p_k = R0^T (x(t0 + k dt) - x(t0)) and R0^T R_k for k = 1 .. K, dt = `time_step` seconds, K = `num_steps`.

    Args:
        track: the ego track.
        t0_us: (...) reference times in microseconds: the front camera's first selected frame.
        num_history_steps: steps up to t0 that the track must cover too (published samples are rejected without them).

    Raises:
        DataError: a track that does not cover a reference time with its history and future; the message has both spans.
    """
    t0 = np.asarray(t0_us, dtype=np.int64)
    step_us = round(time_step * 1e6)
    earliest = t0.min() - step_us * max(num_history_steps - 1, 0)
    latest = t0.max() + step_us * num_steps
    first, last = track.timestamp_us[0], track.timestamp_us[-1]
    if earliest < first or latest > last:
        raise DataError(
            f"the ego track does not cover the sample: {earliest}..{latest} us are needed (history and "
            f"{num_steps} future steps of {time_step:g} s), {first}..{last} us are there; choose another first frame"
        )
    origin, rotation = pose_at(track, t0)
    steps = step_us * np.arange(1, num_steps + 1)
    xyz, future = pose_at(track, t0[..., None] + steps)
    inverse = np.swapaxes(rotation, -1, -2)[..., None, :, :]
    return (inverse @ (xyz - origin[..., None, :])[..., None])[..., 0], inverse @ future


def trajectory_vector(future_xyz: np.ndarray, scale: Sequence[float] = TRAJECTORY_SCALE) -> np.ndarray:
    """Return the network's input (..., K * 3) float32: positions (..., K, 3) divided by `scale`, time slowest."""
    scaled = np.asarray(future_xyz) / np.asarray(scale, dtype=np.float64)
    return scaled.reshape(*scaled.shape[:-2], -1).astype(np.float32)


def quaternion_to_matrix(quat_wxyz: np.ndarray) -> np.ndarray:
    """Return rotation matrices (..., 3, 3) of unit quaternions (..., 4), w first."""
    w, x, y, z = np.moveaxis(quat_wxyz, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _matrix_to_quaternion(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternions (N, 4), w first, of rotations (N, 3, 3): the eigenvectors that fit best (Bar-Itzhack 2000)."""
    (a, b, c), (d, e, f), (g, h, i) = np.moveaxis(rotation, 0, -1)
    rows = [
        [a - e - i, b + d, c + g, h - f],
        [b + d, e - a - i, f + h, c - g],
        [c + g, f + h, i - a - e, d - b],
        [h - f, c - g, d - b, a + e + i],
    ]
    return np.linalg.eigh(np.moveaxis(np.array(rows), -1, 0))[1][:, [3, 0, 1, 2], -1]

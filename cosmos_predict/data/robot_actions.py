"""Relative end-effector actions of robot episodes (Bridge data in the IRASim layout), in float64.

A state row is x, y, z (metres), roll, pitch, yaw (radians), open flag; R = Rz(yaw) Ry(pitch) Rx(roll). The action from
frame a to frame b is the motion seen from the gripper at a: R_a^T (x_b - x_a), the Euler angles of R_a^T R_b, and a
gripper value. Published consumers differ in where they take the numbers, in the gripper signal and in the scale:
`CONVENTIONS` names them. The two gripper signals have OPPOSITE polarity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cosmos_predict.errors import DataError

ACTION_SCALE = (20.0, 20.0, 20.0, 20.0, 20.0, 20.0, 1.0)


@dataclass(frozen=True)
class ActionConvention:
    """How one published consumer reads an episode.

    pose: "state" recomputes relative motion from the states, across any frame interval; "recorded" takes the
        annotation's own `action` rows (consecutive frames only).
    gripper: "continuous" is `continuous_gripper_state` of the later frame, 0 OPEN .. 1 CLOSED; "binary" is the
        annotation's `action[a, 6]`, 1 OPEN, 0 CLOSED.
    scale: factors of the seven columns.
    """

    pose: Literal["state", "recorded"]
    gripper: Literal["continuous", "binary"]
    scale: tuple[float, ...] = ACTION_SCALE


CONVENTIONS: dict[str, ActionConvention] = {
    "predict2": ActionConvention("state", "continuous"),
    "predict2_inference": ActionConvention("recorded", "continuous"),
    "predict1": ActionConvention("state", "continuous"),
    "predict1_binary": ActionConvention("state", "binary"),
    "predict1_inference": ActionConvention("recorded", "binary"),
    "nemo": ActionConvention("recorded", "binary", (1.0,) * 7),
}


def euler_to_matrix(rpy: np.ndarray) -> np.ndarray:
    """Return rotation matrices (..., 3, 3) = Rz(yaw) Ry(pitch) Rx(roll) of angles (..., 3) in radians, float64."""
    rpy = np.asarray(rpy, dtype=np.float64)
    sin, cos = np.sin(rpy), np.cos(rpy)
    (sr, sp, sy), (cr, cp, cy) = np.moveaxis(sin, -1, 0), np.moveaxis(cos, -1, 0)
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_euler(rotation: np.ndarray) -> np.ndarray:
    """Return roll, pitch, yaw (..., 3) in (-pi, pi] of rotation matrices (..., 3, 3): the inverse of `euler_to_matrix`.

    At the gimbal lock (pitch = +-pi/2) only roll -+ yaw is determined; yaw is then 0.

    Raises:
        DataError: a matrix that is not orthogonal, ||I - R^T R||_F >= 1e-6.
    """
    r = np.asarray(rotation, dtype=np.float64)
    defect = np.linalg.norm(np.eye(3) - np.swapaxes(r, -1, -2) @ r, axis=(-2, -1))
    if np.any(defect >= 1e-6):
        raise DataError(f"not a rotation matrix: ||I - R^T R|| = {float(np.max(defect)):.3g}, expected below 1e-6")
    cos_pitch = np.hypot(r[..., 0, 0], r[..., 1, 0])
    regular = cos_pitch >= 1e-6
    roll = np.where(regular, np.arctan2(r[..., 2, 1], r[..., 2, 2]), np.arctan2(-r[..., 1, 2], r[..., 1, 1]))
    pitch = np.arctan2(-r[..., 2, 0], cos_pitch)
    yaw = np.where(regular, np.arctan2(r[..., 1, 0], r[..., 0, 0]), 0.0)
    angles = np.stack([roll, pitch, yaw], axis=-1)
    return np.where(angles <= -np.pi, angles + 2 * np.pi, angles)


def relative_actions(
    state: np.ndarray,
    gripper: np.ndarray,
    frame_ids: Sequence[int] | np.ndarray,
    *,
    rebase_every: int = 1,
    scale: Sequence[float] | None = None,
) -> np.ndarray:
    """Return the relative actions (n - 1, 7) float64 between the n selected frames of an episode.

    Action k = 1 .. n - 1 is the pose of selected frame k seen from selected frame r * floor((k - 1) / r), with
    r = `rebase_every`: 1 is step to step, 4 the published restarting accumulation, 0 everything relative to the first.

    Args:
        state: (N, >= 6) x, y, z in metres, roll, pitch, yaw in radians, of every frame of the episode.
        gripper: (n - 1,) the last column, one value per action.
        frame_ids: n frame numbers in ascending order.
        rebase_every: see above.
        scale: seven factors, None = 1.

    Raises:
        DataError: shapes that do not fit, frames outside the episode, fewer than two frames.
    """
    state = np.asarray(state, dtype=np.float64)
    ids = np.asarray(frame_ids, dtype=np.int64)
    if state.ndim != 2 or state.shape[1] < 6:
        raise DataError(f"state must be (frames, at least 6): x, y, z, roll, pitch, yaw; got {state.shape}")
    if ids.ndim != 1 or len(ids) < 2:
        raise DataError(f"actions need at least 2 frames, got frame ids {ids.tolist()}")
    if ids.min() < 0 or ids.max() >= len(state):
        raise DataError(f"frame ids {ids.min()}..{ids.max()} reach outside an episode of {len(state)} states")
    if rebase_every < 0:
        raise DataError(f"rebase_every must be 0 (always the first frame) or positive, got {rebase_every}")
    steps = np.arange(len(ids) - 1)
    base = ids[steps // rebase_every * rebase_every] if rebase_every else np.full(len(steps), ids[0])
    target = ids[1:]
    gripper = np.asarray(gripper, dtype=np.float64)
    if gripper.shape != target.shape:
        raise DataError(f"{len(target)} actions need as many gripper values, got shape {gripper.shape}")
    rotation = euler_to_matrix(state[:, 3:6])
    inverse = np.swapaxes(rotation[base], -1, -2)
    shift = np.einsum("nij,nj->ni", inverse, state[target, :3] - state[base, :3])
    turn = matrix_to_euler(inverse @ rotation[target])
    return _scaled(np.concatenate([shift, turn, gripper[:, None]], axis=1), scale)


def episode_actions(
    annotation: Mapping[str, Any],
    frame_ids: Sequence[int] | np.ndarray | None = None,
    *,
    convention: str = "predict2",
    rebase_every: int = 1,
    scale: Sequence[float] | None = None,
) -> np.ndarray:
    """Return the actions (n - 1, 7) float64 of an annotation in one of the published conventions.

    Args:
        annotation: the episode's json: `state` (N, 7), `action` (N - 1, 7), `continuous_gripper_state` (N,).
        frame_ids: the n selected frames; None = the whole episode.
        convention: a name of `CONVENTIONS`.
        rebase_every: as in `relative_actions`; conventions that recompute the poses only.
        scale: seven factors instead of the convention's.

    Raises:
        DataError: an unknown convention, a missing annotation key, frames that the convention cannot serve.
    """
    if convention not in CONVENTIONS:
        raise DataError(f"unknown action convention {convention!r}; known: {', '.join(CONVENTIONS)}")
    rule = CONVENTIONS[convention]
    scale = rule.scale if scale is None else scale
    if frame_ids is None:
        frame_ids = np.arange(len(_column(annotation, "action")) + 1)
    ids = np.asarray(frame_ids, dtype=np.int64)
    if rule.gripper == "continuous":
        gripper = _rows(annotation, "continuous_gripper_state", ids[1:])
    else:
        gripper = _rows(annotation, "action", ids[:-1])[:, 6]
    if rule.pose == "state":
        return relative_actions(_column(annotation, "state"), gripper, ids, rebase_every=rebase_every, scale=scale)
    if np.any(np.diff(ids) != 1) or rebase_every != 1:
        raise DataError(
            "the recorded actions are step to step: use consecutive frames and rebase_every=1, or a convention that "
            f"recomputes actions from states; got frames {ids.tolist()}, rebase_every={rebase_every}"
        )
    return _scaled(np.concatenate([_rows(annotation, "action", ids[:-1])[:, :6], gripper[:, None]], axis=1), scale)


def _column(annotation: Mapping[str, Any], key: str) -> np.ndarray:
    if key not in annotation:
        raise DataError(f"the annotation has no {key!r}; it has {', '.join(sorted(annotation)) or 'no keys'}")
    return np.asarray(annotation[key], dtype=np.float64)


def _rows(annotation: Mapping[str, Any], key: str, ids: np.ndarray) -> np.ndarray:
    values = _column(annotation, key)
    if len(ids) and (ids.min() < 0 or ids.max() >= len(values)):
        raise DataError(f"frames {ids.min()}..{ids.max()} reach outside the annotation's {len(values)} rows of {key!r}")
    return values[ids]


def _scaled(actions: np.ndarray, scale: Sequence[float] | None) -> np.ndarray:
    if scale is None:
        return actions
    if len(scale) != actions.shape[1]:
        raise DataError(f"the action scale needs {actions.shape[1]} factors, got {len(scale)}")
    return actions * np.asarray(scale, dtype=np.float64)

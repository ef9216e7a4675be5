"""Relative actions: inverse of integration, conventions, refusals. The published numbers are golden cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cosmos_predict.data.robot_actions import (
    CONVENTIONS,
    episode_actions,
    euler_to_matrix,
    matrix_to_euler,
    relative_actions,
)
from cosmos_predict.errors import DataError


def episode(length: int = 12) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    state = np.concatenate([rng.normal(size=(length, 3)), rng.uniform(-1.4, 1.4, (length, 3)), np.ones((length, 1))], 1)
    gripper = rng.uniform(size=length)
    recorded = relative_actions(state, (gripper < 0.5).astype(float)[1:], range(length))
    return {"state": state.tolist(), "action": recorded.tolist(), "continuous_gripper_state": gripper.tolist()}


def test_euler_round_trip_and_gimbal_lock() -> None:
    rng = np.random.default_rng(0)
    angles = rng.uniform([-np.pi, -np.pi / 2, -np.pi], [np.pi, np.pi / 2, np.pi], (200, 3))
    np.testing.assert_allclose(matrix_to_euler(euler_to_matrix(angles)), angles, atol=1e-9)
    locked = euler_to_matrix(np.array([0.3, np.pi / 2, 0.8]))
    again = matrix_to_euler(locked)
    assert again[2] == 0
    np.testing.assert_allclose(euler_to_matrix(again), locked, atol=1e-9)
    assert matrix_to_euler(np.diag([-1.0, -1.0, 1.0]))[2] == np.pi
    with pytest.raises(DataError, match="not a rotation matrix"):
        matrix_to_euler(np.diag([1.0, 1.0, 1.1]))


def test_actions_lead_from_state_to_state() -> None:
    data = episode()
    state, frames = np.array(data["state"]), [1, 4, 5, 9]
    actions = relative_actions(state, np.zeros(3), frames)
    for action, a, b in zip(actions, frames, frames[1:], strict=False):
        rotation = euler_to_matrix(state[a, 3:6])
        np.testing.assert_allclose(state[a, :3] + rotation @ action[:3], state[b, :3], atol=1e-12)
        np.testing.assert_allclose(rotation @ euler_to_matrix(action[3:6]), euler_to_matrix(state[b, 3:6]), atol=1e-12)


@pytest.mark.parametrize(
    ("every", "bases"), [(1, [0, 1, 2, 3, 4]), (2, [0, 0, 2, 2, 4]), (4, [0, 0, 0, 0, 4]), (0, [0] * 5)]
)
def test_rebasing(every: int, bases: list[int]) -> None:
    state = np.array(episode()["state"])
    actions = relative_actions(state, np.zeros(5), range(6), rebase_every=every)
    for k, base in enumerate(bases):
        np.testing.assert_allclose(actions[k], relative_actions(state, np.zeros(1), [base, k + 1])[0], atol=1e-12)


def test_conventions_differ_where_they_say() -> None:
    data, frames = episode(), list(range(3, 9))
    got = {name: episode_actions(data, frames, convention=name) for name in CONVENTIONS}
    poses = {name: actions[:, :6] / (1 if name == "nemo" else 20) for name, actions in got.items()}
    for name, pose in poses.items():
        np.testing.assert_allclose(pose, poses["nemo"], atol=1e-12, err_msg=name)
    continuous, binary = np.array(data["continuous_gripper_state"])[4:9], np.array(data["action"])[3:8, 6]
    for name, actions in got.items():
        expected = continuous if CONVENTIONS[name].gripper == "continuous" else binary
        np.testing.assert_array_equal(actions[:, 6], expected)
    # Opposite polarity: 0 is open in one signal, 1 is open in the other.
    assert np.corrcoef(continuous, binary)[0, 1] < 0
    assert episode_actions(data, convention="nemo").shape == (11, 7)


def test_bad_input() -> None:
    data = episode()
    with pytest.raises(DataError, match="unknown action convention 'mine'; known: predict2, "):
        episode_actions(data, convention="mine")
    with pytest.raises(DataError, match="has no 'state'; it has action"):
        episode_actions(
            {"action": data["action"], "continuous_gripper_state": data["continuous_gripper_state"]}, [0, 1]
        )
    with pytest.raises(DataError, match="step to step: use consecutive frames"):
        episode_actions(data, [0, 2, 4], convention="nemo")
    with pytest.raises(DataError, match=r"frames 11\.\.12 reach outside the annotation's 12 rows of 'continuous"):
        episode_actions(data, [10, 11, 12])
    with pytest.raises(DataError, match="outside an episode of 12 states"):
        relative_actions(np.array(data["state"]), np.zeros(1), [11, 12])
    with pytest.raises(DataError, match="at least 2 frames"):
        relative_actions(np.array(data["state"]), np.zeros(0), [3])
    with pytest.raises(DataError, match="as many gripper values"):
        relative_actions(np.array(data["state"]), np.zeros(3), [3, 4])
    with pytest.raises(DataError, match="needs 7 factors, got 6"):
        episode_actions(data, scale=[20] * 6)
    with pytest.raises(DataError, match="rebase_every"):
        relative_actions(np.array(data["state"]), np.zeros(1), [3, 4], rebase_every=-1)
    with pytest.raises(DataError, match="at least 6"):
        relative_actions(np.zeros((4, 5)), np.zeros(1), [0, 1])

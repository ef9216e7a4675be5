"""Windows: every start reachable, decided by seed and sample number alone, honest about time."""

from __future__ import annotations

import numpy as np
import pytest

from cosmos_predict.data import clip_sampler
from cosmos_predict.errors import DataError


def test_every_start_is_drawn_the_last_one_too() -> None:
    windows = [drawn(12, 9, seed=1, sample_number=n) for n in range(80)]
    assert {int(window[0]) for window in windows} == {0, 1, 2, 3}
    assert all(np.array_equal(np.diff(window), np.ones(8)) for window in windows)
    assert max(int(window[-1]) for window in windows) == 11


def test_clip_of_exactly_the_window() -> None:
    assert drawn(9, 9, seed=0, sample_number=5).tolist() == list(range(9))
    assert drawn(1, 1, seed=0, sample_number=5).tolist() == [0]
    with pytest.raises(DataError, match="clip too short: 8 frames, a window of 9 needs 9"):
        drawn(8, 9, seed=0, sample_number=0)
    with pytest.raises(DataError, match="a window of 5, 3 apart needs 13"):
        drawn(12, 5, seed=0, sample_number=0, interval=3)


def test_draws_depend_on_seed_and_sample_number_only() -> None:
    def starts(seed: int) -> list[int]:
        return [int(drawn(500, 9, seed=seed, sample_number=n)[0]) for n in range(20)]

    assert starts(3) == starts(3)
    assert starts(3) != starts(4)


def drawn(total: int, num_frames: int, *, seed: int, sample_number: int, interval: int = 1) -> np.ndarray:
    """Draw a window of consecutive frames as a dataset does."""
    last = clip_sampler.last_start(total, num_frames, interval)
    start = clip_sampler.draw_start(last, seed=seed, sample_number=sample_number)
    return start + interval * np.arange(num_frames)


def resampled(times: np.ndarray, num_frames: int, fps: float, *, seed: int, sample_number: int) -> np.ndarray:
    """Draw a window as a dataset that resamples does."""
    last = clip_sampler.last_start_at_fps(times, num_frames, fps)
    start = clip_sampler.draw_start(last, seed=seed, sample_number=sample_number)
    return clip_sampler.windows_at_fps(times, [start], num_frames, fps)[0]


def test_resampling_takes_frames_at_the_wanted_times() -> None:
    times = np.arange(60) / 30
    for number in range(20):
        ids = resampled(times, 8, 10, seed=0, sample_number=number)
        assert np.array_equal(np.diff(ids), np.full(7, 3))
    slow = np.arange(20) / 5
    ids = resampled(slow, 9, 10, seed=0, sample_number=1)
    assert set(np.diff(ids)) == {0, 1} and ids[-1] - ids[0] == 4


def test_resampling_follows_uneven_times() -> None:
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.06, 200))
    for number in range(20):
        ids = resampled(times, 11, 8, seed=0, sample_number=number)
        wanted = times[ids[0]] + np.arange(11) / 8
        assert np.abs(times[ids] - wanted).max() <= 0.03 + 1e-9


def test_resampling_at_the_native_rate_is_the_identity() -> None:
    ids = resampled(np.arange(9) / 24, 9, 24, seed=0, sample_number=0)
    assert ids.tolist() == list(range(9))
    assert resampled(np.zeros(1), 1, 24, seed=0, sample_number=0).tolist() == [0]
    with pytest.raises(DataError, match=r"0\.333 s between first and last frame, 17 frames at 24 fps need 0\.667 s"):
        resampled(np.arange(9) / 24, 17, 24, seed=0, sample_number=0)
    with pytest.raises(DataError, match="fps must be positive"):
        clip_sampler.last_start_at_fps(np.arange(9) / 24, 9, 0)


def test_enumerated_windows() -> None:
    windows = clip_sampler.enumerate_windows(10, 3, interval=2, start_interval=3)
    assert windows.tolist() == [[0, 2, 4], [3, 5, 7]]
    assert clip_sampler.enumerate_windows(4, 3, interval=2).shape == (0, 3)
    with pytest.raises(DataError, match="start_interval"):
        clip_sampler.enumerate_windows(4, 3, start_interval=0)
    with pytest.raises(DataError, match="num_frames >= 1"):
        clip_sampler.enumerate_windows(4, 0)

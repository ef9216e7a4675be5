"""Which frames of a clip make a sample. Stateless: every draw is a function of (seed, global sample number)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cosmos_predict.errors import DataError
from cosmos_predict.randomness import numpy_generator


def window_length(num_frames: int, interval: int = 1) -> int:
    """Return how many source frames a window of `num_frames` frames, `interval` apart, spans."""
    if num_frames < 1 or interval < 1:
        raise DataError(f"a window needs num_frames >= 1 and interval >= 1, got {num_frames} and {interval}")
    return (num_frames - 1) * interval + 1


def last_start(total_frames: int, num_frames: int, interval: int = 1) -> int:
    """Return the last possible start, INCLUSIVE: a clip of exactly the window's length has the one start 0.

    Raises:
        DataError: a clip that is too short.
    """
    length = window_length(num_frames, interval)
    if total_frames < length:
        spacing = f", {interval} apart" if interval > 1 else ""
        raise DataError(f"clip too short: {total_frames} frames, a window of {num_frames}{spacing} needs {length}")
    return total_frames - length


def draw_start(last: int, *, seed: int, sample_number: int, start_interval: int = 1) -> int:
    """Draw a start, uniform over 0, start_interval, 2 start_interval, ... up to `last`, which is included."""
    if start_interval < 1:
        raise DataError(f"start_interval must be at least 1, got {start_interval}")
    starts = last // start_interval + 1
    return start_interval * int(numpy_generator(seed, sample_number, "window").integers(0, starts))


def windows_at_fps(times: np.ndarray, starts: Sequence[int], num_frames: int, fps: float) -> np.ndarray:
    """Return windows of a clip with any frame times, resampled to `fps`: frame ids (n, num_frames) int64, ascending.

    Output frame k of a window takes the source frame nearest to `starts`'s time + k / fps, so frames repeat where the source
    is slower than `fps`. times: (N,) seconds, increasing (`video_reader.frame_times`). starts: (n,) frame numbers.
    """
    return nearest_frames(times, times[np.array(starts), None] + np.arange(num_frames) / fps)


def nearest_frames(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the frames (...) int64 whose times (N,), ascending, are nearest to `wanted` (...); of two as near the earlier."""
    after = np.searchsorted(times, wanted).clip(0, len(times) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(wanted - times[before] <= times[after] - wanted, before, after)


def last_start_at_fps(times: np.ndarray, num_frames: int, fps: float) -> int:
    """Return the last frame, INCLUSIVE, of those at `times` (N,) seconds from which `num_frames` at `fps` fit.

    Raises:
        DataError: a clip whose duration is too short, or an fps that is not positive.
    """
    if fps <= 0:
        raise DataError(f"fps must be positive, got {fps}")
    span = (num_frames - 1) / fps
    # The last frame is shown for a while: an output time at most half an output frame behind it still takes it.
    grace = 0.5 / fps if num_frames > 1 else 0.0
    starts = int(np.searchsorted(times, times[-1] - span + grace, side="right"))
    if starts == 0:
        raise DataError(
            f"clip too short: {times[-1] - times[0]:.3f} s between first and last frame, {num_frames} frames at "
            f"{fps:g} fps need {span:.3f} s"
        )
    return starts - 1


def enumerate_windows(total_frames: int, num_frames: int, *, interval: int = 1, start_interval: int = 1) -> np.ndarray:
    """Return the frame ids (n, num_frames) int64 of every complete window with starts 0, start_interval, ...

    The sample list of the Bridge and multi-view datasets; a clip that is too short gives n = 0.
    """
    if start_interval < 1:
        raise DataError(f"start_interval must be at least 1, got {start_interval}")
    count = total_frames - window_length(num_frames, interval) + 1
    starts = np.arange(0, max(count, 0), start_interval, dtype=np.int64)
    return starts[:, None] + interval * np.arange(num_frames, dtype=np.int64)

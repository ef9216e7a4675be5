"""Which frames of a clip make a sample. Stateless: every draw is a function of (seed, global sample number)."""

from __future__ import annotations

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


def sample_window(
    total_frames: int,
    num_frames: int,
    *,
    seed: int,
    sample_number: int,
    interval: int = 1,
    start_interval: int = 1,
) -> np.ndarray:
    """Draw a window's frame ids (num_frames,) int64, its start uniform over 0 .. last start, both included.

    start_interval: only starts that are multiples of it.
    """
    last = last_start(total_frames, num_frames, interval)
    start = draw_start(last, seed=seed, sample_number=sample_number, start_interval=start_interval)
    return start + interval * np.arange(num_frames, dtype=np.int64)


def sample_window_at_fps(
    times: np.ndarray, num_frames: int, fps: float, *, seed: int, sample_number: int, start_interval: int = 1
) -> np.ndarray:
    """Draw a window of a clip with any frame times, resampled to `fps`: frame ids (num_frames,) int64, ascending.

    The start is uniform over the source frames from which the window fits; each output time start + k / fps takes the
    source frame nearest to it, so frames repeat where the source is slower than `fps`.

    Args:
        times: (N,) frame times in seconds, increasing (`video_reader.frame_times`).
        num_frames: length of the window in frames.
        fps: rate wanted, frames per second.
        seed, sample_number: what the draw depends on.
        start_interval: only source frames whose number is a multiple of it are starts.

    Raises:
        DataError: a clip whose duration is too short.
    """
    last = last_start_at_fps(times, num_frames, fps)
    start = draw_start(last, seed=seed, sample_number=sample_number, start_interval=start_interval)
    return window_at_fps(times, start, num_frames, fps)


def window_at_fps(times: np.ndarray, start: int, num_frames: int, fps: float) -> np.ndarray:
    """Return the frame ids (num_frames,) int64 nearest to the times of frame `start` + k / fps, at `times` (N,) seconds."""
    if len(times) == 1:
        return np.zeros(num_frames, dtype=np.int64)
    wanted = times[start] + np.arange(num_frames) / fps
    after = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    nearer_before = wanted - times[after - 1] <= times[after] - wanted
    return np.where(nearer_before, after - 1, after).astype(np.int64)


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
    starts = np.arange(
        0, max(total_frames - window_length(num_frames, interval) + 1, 0), start_interval, dtype=np.int64
    )
    return starts[:, None] + interval * np.arange(num_frames, dtype=np.int64)

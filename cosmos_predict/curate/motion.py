"""How much a clip moves, from the motion vectors of its encoding: nothing is compared, half the clip is decoded at most."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cosmos_predict.errors import DataError

BLOCKS = {(8, 8), (16, 16), (16, 8), (8, 16)}  # width, height of the blocks that count
COLUMNS = ("source", "w", "h", "src_x", "src_y", "dst_x", "dst_y", "flags", "motion_x", "motion_y", "motion_scale")
MIN_SIDE = 256


def motion_field(records: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return how far each pixel moves, (H, W) float64: pixels / (H + W), 0 where no vector is.

    records: (N, 11) int, FFmpeg's motion vectors in the order of `COLUMNS`; where they overlap the last one counts.
    """
    field, rows = np.zeros((height, width)), np.asarray(records, np.int64)
    lengths = np.hypot(rows[:, 8], rows[:, 9]) / np.maximum(rows[:, 10], 1) / (height + width)
    for (w, h, x, y), length in zip(rows[:, [1, 2, 5, 6]].tolist(), lengths.tolist(), strict=True):
        if (w, h) in BLOCKS:
            left, top = x - w // 2, y - h // 2
            field[max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)] = length
    return field


def motion_scores(fields: Iterable[np.ndarray]) -> dict[str, float]:
    """Return the published scores of the fields (H, W) of sampled frames, one in memory at a time.

    `global_mean`: over frames and pixels; `per_patch_min_256`: the smallest over patches of 256 x 256 pixels, each judged by
    the mean of its four middle pixels (published: what a bilinear reduction to 1/256 computes).

    Raises ValueError where there is no field.
    """
    total, count = np.zeros(()), 0
    for field in fields:
        total, count = total + field, count + 1
    if not count:
        raise ValueError("no frame with motion vectors")
    mean = total / count
    # The last patch may lie half outside of the frame, whose border then goes on.
    starts = [256 * np.arange(max(round(side / 256), 1)) for side in mean.shape]
    middles = [
        mean[np.ix_(*(np.minimum(at + k, side - 1) for at, k, side in zip(starts, middle, mean.shape, strict=True)))]
        for middle in itertools.product((127, 128), repeat=2)
    ]
    return {"global_mean": float(mean.mean()), "per_patch_min_256": float(np.mean(middles, axis=0).min())}


def clip_motion(path: Path, target_fps: float = 2.0, ratio: float = 0.5) -> dict[str, float | str]:
    """Return the scores of a clip: about `target_fps` frames a second, of its first `ratio`, at least 10.

    Where there is nothing to measure both scores are -1, and `error` is "resolution_too_small" (a side below 256 pixels) or
    "no_motion_frames". Raises DataError for a clip that cannot be decoded.
    """
    import av
    from av.codec.context import Flags2

    def fields() -> Iterator[np.ndarray]:
        step = max(1, round(rate / target_fps))
        left = max(10, round(target_fps * stream.frames / rate * ratio))
        for index, frame in enumerate(container.decode(stream)):
            vectors = None if index % step else frame.side_data.get("MOTION_VECTORS")
            if vectors is not None:
                table = vectors.to_ndarray()
                yield motion_field(np.stack([table[name] for name in COLUMNS], axis=1), frame.height, frame.width)
                left -= 1
            if not left:
                return

    missing = {"global_mean": -1.0, "per_patch_min_256": -1.0}
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.flags2 |= Flags2.export_mvs
            stream.codec_context.options = {"skip_loop_filter": "all"}  # of the pixels, which nobody sees
            rate = float(stream.average_rate or 24)
            if min(stream.width, stream.height) < MIN_SIDE:
                return {**missing, "error": "resolution_too_small"}
            return {**motion_scores(fields())}
    except av.FFmpegError as error:  # some are ValueErrors, too
        raise DataError(f"{path.name}: its motion vectors cannot be read ({error})") from error
    except ValueError:
        return {**missing, "error": "no_motion_frames"}

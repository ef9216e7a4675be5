"""How much a clip moves, from the motion vectors of its encoding: nothing is compared, of half the clip at most what is
sampled is decoded, and what that refers to."""

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
    table = np.asarray(records, np.int64)
    table = table[np.any([(table[:, 1] == w) & (table[:, 2] == h) for w, h in BLOCKS], axis=0)]
    if not len(table):
        return np.zeros((height, width))
    lengths = np.hypot(table[:, 8], table[:, 9]) / np.maximum(table[:, 10], 1) / (height + width)
    w, h = table[:, 1], table[:, 2]
    left, top = table[:, 5] - w // 2, table[:, 6] - h // 2
    # Blocks lie on a grid, of 8 pixels as a rule: its cells are filled in place of pixels, in the order of the records.
    unit = int(np.gcd.reduce(np.concatenate([left, top, w, h])))
    wide, count = w // unit, w * h // unit**2
    block = np.repeat(np.arange(len(table)), count)
    cell = np.arange(len(block)) - np.repeat(np.cumsum(count) - count, count)
    rows, columns = top[block] // unit + cell // wide[block], left[block] // unit + cell % wide[block]
    grid = np.zeros((-(-height // unit), -(-width // unit)))
    inside = (rows >= 0) & (columns >= 0) & (rows < grid.shape[0]) & (columns < grid.shape[1])
    grid[rows[inside], columns[inside]] = lengths[block[inside]]
    return grid.repeat(unit, axis=0)[:height].repeat(unit, axis=1)[:, :width]


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
        step += step % 16 == 0  # not key frames alone (`media`: one of 16), which have no vectors
        left = max(10, round(target_fps * stream.frames / rate * ratio))
        times = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
        sampled = set(times[::step])
        container.seek(times[0] if times else 0, stream=stream)
        for packet in container.demux(stream):
            needed = packet.pts is None or packet.pts in sampled
            stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"  # what no frame refers to
            for frame in packet.decode():
                vectors = frame.side_data.get("MOTION_VECTORS") if frame.pts in sampled else None
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

"""Videos and images in, videos out: `probe`, `frame_times`, `read_frames`, `read_image`, `write_video`.

Frames are uint8 RGB (T, H, W, 3), turned upright as the file's display rotation says. Frame numbers count the frames
that a player shows, in display order, whatever their times. decord decodes by default (the fastest here), PyAV where
decord is absent or fails, torchcodec when asked; they return identical bytes. All of them are imported on first use.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_predict.errors import DataError, MissingDependencyError
from cosmos_predict.io.atomic import atomic_path

PathLike = str | os.PathLike[str]
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
BACKENDS = ("auto", "decord", "pyav", "torchcodec")
WRITER: dict[str, Any] = {"format": "FFMPEG", "mode": "I", "codec": "libx264", "macro_block_size": 1}
WRITER |= {"ffmpeg_log_level": "error", "output_params": ["-f", "mp4", "-movflags", "+faststart"]}


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds: frames; average frames per second; width and height as shown, in pixels; seconds."""

    frames: int
    fps: float
    width: int
    height: int
    duration: float
    variable_frame_rate: bool


def probe(path: PathLike) -> VideoInfo:
    """Return what the file holds; reads no more than header and first frame where the container has
    a full index (mp4, mov).

    Raises:
        DataError: no such file, no video in it, or a truncated or damaged file; the message says which.
    """
    return _probe(*_file_key(path))


def frame_times(path: PathLike) -> np.ndarray:
    """Return the display times (N,) float64 of all frames in seconds, ascending; reads all packets, decodes nothing.

    Raises:
        DataError: as `probe`, and a file whose frames carry no times.
    """
    times = _display_times(*_file_key(path))
    if times is None:
        raise DataError(f"{path}: the frames carry no times, so the clip cannot be resampled; use fps=None")
    ticks, time_base = times
    return ticks * time_base


def read_frames(path: PathLike, indices: Sequence[int] | np.ndarray, *, backend: str = "auto") -> np.ndarray:
    """Decode the frames numbered `indices`, in the order asked, repeats allowed: uint8 RGB (T, H, W, 3).

    Seeks once, to the key frame before the first of them, and decodes forward.

    Args:
        path: the video file.
        indices: frame numbers in 0 .. frames - 1.
        backend: "auto", "decord", "pyav" or "torchcodec".

    Raises:
        DataError: a number outside the clip (the message names file, number and count), an unreadable, truncated or
            damaged file, an unknown backend.
        MissingDependencyError: the backend asked for is not installed.
    """
    if backend not in BACKENDS:
        raise DataError(f"unknown video backend {backend!r}; known: {', '.join(BACKENDS)}")
    wanted = np.asarray(indices)
    if wanted.ndim != 1 or wanted.size == 0 or not np.issubdtype(wanted.dtype, np.integer):
        raise DataError(f"{path}: frame numbers must be a non-empty list of integers, got {indices!r}")
    count = probe(path).frames
    outside = wanted[(wanted < 0) | (wanted >= count)]
    if outside.size:
        raise DataError(
            f"{path}: frame {int(outside[0])} is outside the clip, which has {count} frames (0..{count - 1})"
        )
    unique, inverse = np.unique(wanted, return_inverse=True)
    frames = _decode(str(path), unique.astype(np.int64), backend)
    return frames if len(unique) == len(wanted) and bool((unique == wanted).all()) else frames[inverse]


def read_image(path: PathLike) -> np.ndarray:
    """Read an image file as uint8 RGB (H, W, 3).

    The kind is taken from the content, not from the suffix. Transparency is composited on white, grey and palette
    images are converted, the EXIF orientation is applied.

    Raises:
        DataError: a file that is missing, or no readable image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image) or image
            if upright.mode.startswith("I;16"):
                return np.repeat((np.asarray(upright, dtype=np.uint16) >> 8).astype(np.uint8)[..., None], 3, axis=2)
            if "A" in upright.getbands() or "transparency" in upright.info:
                layer = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            return np.array(upright.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from error


def write_video(path: PathLike, frames: np.ndarray, fps: float, quality: float = 8.0) -> None:
    """Write uint8 RGB frames (T, H, W, 3) as an H.264 mp4 of exactly that size and length, whole or not at all.

    Args:
        path: the file; an existing one is replaced.
        frames: any size; odd heights or widths are written with full chroma (yuv444p), which some players refuse.
        fps: frames per second.
        quality: 0 (smallest) to 10 (best), as imageio's.

    Raises:
        DataError: frames of another shape or dtype, an fps or quality out of range, or an encoder that fails.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise DataError(f"{path}: a video needs uint8 frames (T, H, W, 3), got {frames.dtype} {frames.shape}")
    if not fps > 0 or not 0 <= quality <= 10:
        raise DataError(f"{path}: fps must be positive and quality in 0..10, got fps={fps}, quality={quality}")
    import imageio.v2 as imageio

    options = {**WRITER, "fps": float(fps), "quality": quality}
    options["pixelformat"] = "yuv444p" if frames.shape[1] % 2 or frames.shape[2] % 2 else "yuv420p"
    with atomic_path(path) as temporary:
        try:
            writer: Any = imageio.get_writer(str(temporary), **options)
            with writer:
                for frame in frames:
                    writer.append_data(np.ascontiguousarray(frame))
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"{path}: ffmpeg could not write the video ({error})") from error


def _file_key(path: PathLike) -> tuple[str, int, int]:
    """Identify a file's content for the caches: path, size, time of change."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "no regular file"
        raise DataError(f"{path}: is {kind}, not a video file")
    return str(path), status.st_size, status.st_mtime_ns


def _open(path: str) -> Any:
    """Open a file that has a video stream with PyAV; the caller closes the container."""
    import av

    try:
        container = av.open(path)
    except (av.FFmpegError, ValueError) as error:
        size = os.path.getsize(path)
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: not a readable video; truncated or damaged? ({reason}; {size} bytes)") from error
    if not container.streams.video:
        container.close()
        raise DataError(f"{path}: the file has no video stream")
    return container


@functools.lru_cache(maxsize=65536)
def _probe(path: str, size: int, changed: int) -> VideoInfo:
    with _open(path) as container:
        stream = container.streams.video[0]
        tick = float(stream.time_base or 0)
        entries = [entry for entry in stream.index_entries if not entry.is_discard]
        # A complete index stands in for reading the file, and tells whether the file ends too early.
        complete = stream.frames > 0 and len(entries) == len(stream.index_entries) == stream.frames
        if complete and "mov" in container.format.name:
            end = max(entry.pos + entry.size for entry in entries)
            if end > size:
                raise DataError(f"{path}: truncated: its index reaches to byte {end}, the file has {size}")
            seconds = np.array([entry.timestamp for entry in entries], dtype=np.int64) * tick
        else:
            times = _display_times(path, size, changed)
            count = _count_packets(path) if times is None else len(times[0])
            seconds = np.zeros(count) if times is None else times[0] * times[1]
        count = len(seconds)
        if count == 0:
            raise DataError(f"{path}: the video has no frames")
        gaps = np.diff(seconds)
        mean_gap = float(gaps.mean()) if count > 1 else 0.0
        rate = float(stream.average_rate or stream.guessed_rate or 0) or (1 / mean_gap if mean_gap > 0 else 0.0)
        if rate <= 0:
            raise DataError(f"{path}: the file does not say its frame rate, and its frames carry no times")
        # Rounding to the container's clock shifts a frame by at most one tick; real variation is larger.
        variable = bool(mean_gap > 0 and np.abs(gaps - mean_gap).max() > 1.5 * tick)
        duration = float(seconds[-1] - seconds[0]) + (mean_gap or 1 / rate)
        width, height = stream.codec_context.width, stream.codec_context.height
        if _quarter_turns(container) % 2:
            width, height = height, width
        return VideoInfo(count, rate, width, height, duration, variable)


def _quarter_turns(container: Any) -> int:
    """Counter-clockwise quarter turns that show the first frame upright (decoding it is the only way PyAV tells)."""
    import av

    try:
        for frame in container.decode(video=0):
            return int(frame.rotation) // 90 % 4
    except av.FFmpegError as error:
        raise DataError(f"{container.name}: the first frame does not decode; damaged? ({error.strerror})") from error
    raise DataError(f"{container.name}: no frame decodes")


@functools.lru_cache(maxsize=256)
def _display_times(path: str, size: int, changed: int) -> tuple[np.ndarray, float] | None:
    """All frames' display times in ticks, ascending, and a tick in seconds; None where the packets carry none."""
    import av

    with _open(path) as container:
        stream = container.streams.video[0]
        try:
            ticks = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
        except av.FFmpegError as error:
            raise DataError(f"{path}: truncated or damaged ({error.strerror})") from error
        if not ticks or any(tick is None for tick in ticks) or len(set(ticks)) != len(ticks):
            return None
        return np.sort(np.array(ticks, dtype=np.int64)), float(stream.time_base or 0)


def _count_packets(path: str) -> int:
    with _open(path) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size and not packet.is_discard)


def _decode(path: str, indices: np.ndarray, backend: str) -> np.ndarray:
    """Frames (T, H, W, 3) of ascending, distinct, valid `indices`."""
    if backend == "auto":
        try:
            return _decode_decord(path, indices)
        except (DataError, MissingDependencyError):
            return _decode_pyav(path, indices)
    decoders = {"pyav": _decode_pyav, "decord": _decode_decord, "torchcodec": _decode_torchcodec}
    return decoders[backend](path, indices)


def _decode_decord(path: str, indices: np.ndarray) -> np.ndarray:
    decord = _import("decord", "pip install decord (Linux x86-64), or use backend='pyav'")
    decord.logging.set_level(decord.logging.QUIET)
    try:
        return decord.VideoReader(path, num_threads=2).get_batch(indices.tolist()).asnumpy()
    except (RuntimeError, IndexError, decord.DECORDError) as error:
        raise DataError(f"{path}: decord cannot decode it ({_last_line(error)})") from error


def _decode_torchcodec(path: str, indices: np.ndarray) -> np.ndarray:
    module = _import("torchcodec.decoders", "pip install torchcodec, with ffmpeg's shared libraries")
    try:
        decoder = module.VideoDecoder(path, dimension_order="NHWC", seek_mode="exact")
        return decoder.get_frames_at(indices.tolist()).data.numpy()
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"{path}: torchcodec cannot decode it ({_last_line(error)})") from error


def _decode_pyav(path: str, indices: np.ndarray) -> np.ndarray:
    import av

    times = _display_times(*_file_key(path))
    try:
        with _open(path) as container:
            found = _forward(container, indices, times, seek=times is not None)
            if len(found) < len(indices) and times is not None:
                # The seek landed behind the first frame wanted (broken index): from the start, then.
                container.seek(0)
                found = _forward(container, indices, times, seek=False)
    except av.FFmpegError as error:
        raise DataError(f"{path}: truncated or damaged, PyAV cannot decode it ({error.strerror})") from error
    missing = [int(index) for index in indices if int(index) not in found]
    if missing:
        raise DataError(f"{path}: frame {missing[0]} could not be decoded; truncated or damaged?")
    return np.stack([found[int(index)] for index in indices])


def _forward(
    container: Any, indices: np.ndarray, times: tuple[np.ndarray, float] | None, seek: bool
) -> dict[int, np.ndarray]:
    """Decode from the key frame before the first wanted frame (`seek`) or from here, up to the last one."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    numbers = None if times is None else {int(tick): number for number, tick in enumerate(times[0])}
    if seek and times is not None:
        container.seek(int(times[0][indices[0]]), stream=stream, backward=True)
    wanted, last = {int(index) for index in indices}, int(indices[-1])
    found: dict[int, np.ndarray] = {}
    for counted, frame in enumerate(container.decode(stream)):
        number = counted if numbers is None else numbers.get(frame.pts)
        if number is None:
            continue
        if number in wanted:
            picture = frame.to_ndarray(format="rgb24")
            found[number] = np.ascontiguousarray(np.rot90(picture, frame.rotation // 90)) if frame.rotation else picture
        if len(found) == len(wanted) or number > last:
            break
    return found


def _import(name: str, hint: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # torchcodec raises RuntimeError without ffmpeg's libraries
        raise MissingDependencyError(
            f"video backend {name.split('.')[0]!r} is not usable here ({_last_line(error)}): {hint}"
        ) from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def is_video(path: Path) -> bool:
    """Tell whether a path has a video's suffix, in any case, and is not hidden."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def is_image(path: Path) -> bool:
    """Tell whether a path has an image's suffix, in any case, and is not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")

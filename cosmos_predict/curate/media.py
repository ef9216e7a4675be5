"""ffmpeg and PyAV for curation: facts of a file, small frames of a whole video, clips cut out.

Decoding and encoding run in ffmpeg processes (the binary that imageio brings): a file that crashes a decoder ends that
process, not the run. Each has a session of its own, so that Ctrl-C lets the clip in hand be finished or dropped cleanly.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_predict.data.video_reader import VideoInfo, frame_times, probe, read_frames
from cosmos_predict.errors import DataError

SMALL = (27, 48)  # height, width of the frames that shot detection looks at
DECODING = ("-threads", "2")  # else a decoder holds frames for every core, in every worker
BIT_RATE = 4000  # kbit/s, published
NVENC = ["-rc:v", "vbr", "-cq:v", "21", "-tune", "hq", "-b_ref_mode", "middle"]  # published
NVENC += ["-temporal-aq", "1", "-rc-lookahead", "20", "-spatial-aq", "1"]
SEEKABLE = ("mov,", "matroska,")  # containers in which ffmpeg finds a frame by its time exactly


@dataclass
class Footage:
    """A video file. facts: published names (width, height, framerate, num_frames, ...).

    times: (N,) float64, seconds of each frame from the start of the container, which is what ffmpeg's `-ss` counts from.
    """

    path: Path = Path()
    facts: dict[str, Any] = field(default_factory=dict)
    times: np.ndarray = field(default_factory=lambda: np.zeros(0))
    variable_rate: bool = False

    @property
    def fps(self) -> float:
        """Average frames per second."""
        return self.facts["framerate"]


def describe(path: Path) -> Footage:
    """Read what a file holds; raises DataError for one that is unreadable, has no video, or is a picture or a text."""
    import av

    info = probe(path)
    with av.open(str(path)) as container:
        codec, kind = container.streams.video[0].codec_context, container.format.name
        if info.frames < 2 or kind in ("tty", "image2") or kind.endswith("_pipe"):
            raise DataError(f"{path}: no video but a single picture or a text ({kind}, {info.frames} frames)")
        origin = (container.start_time or 0) / av.time_base
        audio = [stream.codec_context.name for stream in container.streams.audio]
        rate = container.streams.video[0].bit_rate or container.bit_rate or 0
    facts = {**published_facts(info), "duration": info.duration, "container": kind, "video_codec": codec.name}
    facts |= {"pixel_format": codec.pix_fmt, "audio_format": audio[0] if audio else "", "bit_rate_k": rate // 1024}
    try:
        times = np.maximum(frame_times(path) - origin, 0.0)
    except DataError:  # no times in the file: a constant rate, then
        times = np.arange(info.frames) / info.fps
    return Footage(path, facts, times, info.variable_frame_rate)


def published_facts(info: VideoInfo) -> dict[str, Any]:
    """Return size, rate and length under the names of the published records."""
    return {"width": info.width, "height": info.height, "framerate": info.fps, "num_frames": info.frames}


def video_codec(path: Path) -> str:
    """Return the name of a video's codec."""
    import av

    with av.open(str(path)) as container:
        return container.streams.video[0].codec_context.name


def remux(path: Path, target: Path) -> Path:
    """Copy the packets of a video into `target`.mp4, which has an index to seek by; into an mkv, which takes every codec,
    where an mp4 does not. Return the file. Raises DataError where ffmpeg fails.
    """
    for file, form in ((target.with_suffix(".mp4"), "mp4"), (target.with_suffix(".mkv"), "matroska")):
        try:
            _ffmpeg(["-fflags", "+genpts", "-i", str(path), "-map", "0:v:0", "-c", "copy", "-f", form, str(file)])
            return file
        except DataError as error:
            if form == "matroska":
                advice = "convert it, as with ffmpeg -i IN -c:v libx264 OUT.mp4"
                raise DataError(f"{error}: neither an mp4 nor an mkv takes what is in it; {advice}") from error
    raise AssertionError


def small_frames(path: Path, chunk: int = 256) -> Iterator[np.ndarray]:
    """Yield all frames of a video, uint8 RGB (n, 27, 48, 3), at most `chunk` at a time.

    Raises DataError where ffmpeg gives up or finds no frame.
    """
    size, found = SMALL[0] * SMALL[1] * 3, 0
    options = [*DECODING, "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-sws_flags", "bicubic"]
    options += ["-s", f"{SMALL[1]}x{SMALL[0]}", "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(_command(options), stdout=subprocess.PIPE, stderr=said, start_new_session=True)
        assert process.stdout is not None
        with process.stdout as pipe:
            while frames := len(data := pipe.read(size * chunk)) // size:
                found += frames
                yield np.frombuffer(data[: frames * size], np.uint8).reshape(frames, *SMALL, 3)
        if process.wait() or not found:
            said.seek(0)
            raise DataError(f"{path}: ffmpeg could not decode it ({_told(said.read())})")


def read_parts(path: Path, indices: Sequence[int] | np.ndarray, most: int = 8) -> Iterator[np.ndarray]:
    """Yield what `read_frames` returns, at most so many frames at a time: a clip at full size may not fit into memory."""
    for start in range(0, len(indices), most):
        yield read_frames(path, indices[start : start + most])


def preview(path: Path, target: Path, first: int, end: int, rate: float, height: int) -> Path:
    """Write frames `first` .. `end` - 1 of a video as an animated webp, `rate` a second, so many pixels high."""
    from PIL import Image

    step, images = probe(path).fps / rate, list[Image.Image]()
    chosen = np.unique(np.arange(first, end, step).astype(int))
    for frame in (frame for part in read_parts(path, chosen) for frame in part):
        size = (max(round(frame.shape[1] * height / frame.shape[0]), 1), height)
        images.append(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
    images[0].save(target, save_all=True, append_images=images[1:], duration=round(1000 / rate), loop=0)
    return target


def encoding(options: Mapping[str, Any], footage: Footage) -> dict[str, Any]:
    """Return what `cut` should be told, by the options of `split`."""
    rate = (footage.facts.get("bit_rate_k") or BIT_RATE) if options["transcode_use_input_video_bit_rate"] else 0
    return {"crf": options["transcode_crf"], "encoder": options["transcode_encoder"], "bit_rate": rate}


def cut(
    footage: Footage, target: Path, first: int, end: int, crf: int = 18, encoder: str = "libx264", bit_rate: int = 0
) -> None:
    """Write frames `first` .. `end` - 1 of a video as an H.264 mp4 of constant rate, upright, without sound.

    crf: quality, of libx264 alone; the others have a bit rate (kbit/s; 0: 4000), libx264 where one is given.

    Odd heights and widths lose a row or column, which yuv420p needs. Raises DataError where ffmpeg fails.
    """
    times, gap, rate = footage.times, 1 / footage.fps, Fraction(footage.fps).limit_denominator(1001)
    # Frame number n goes to time n / rate; with a variable rate, each output frame shows what was on screen then.
    filters, count = f"setpts=N/({rate})/TB", end - first
    if footage.variable_rate:
        filters, count = f"fps={rate}", max(round(float(times[end - 1] - times[first] + gap) / gap), 1)
    options = [*DECODING, "-i", str(footage.path), "-map", "0:v:0"]
    options += ["-vf", f"{filters},crop=trunc(iw/2)*2:trunc(ih/2)*2"]
    rated = ["-b:v", f"{bit_rate or BIT_RATE}k"]
    quality = {"libx264": rated if bit_rate else ["-crf", str(crf)], "h264_nvenc": [*rated, *NVENC]}.get(encoder, rated)
    options += ["-frames:v", str(count), "-r", str(rate), "-fps_mode", "cfr", "-c:v", encoder, *quality]
    options += ["-g", "16", "-pix_fmt", "yuv420p", "-threads", "1", "-movflags", "+faststart", "-f", "mp4"]
    if first:  # half a frame early: everything before the first frame is dropped, whatever the rounding
        half = min(gap, float(times[first] - times[first - 1]) or gap) / 2
        options = ["-ss", f"{max(float(times[first]) - half, 0):.6f}", *options]
    _ffmpeg([*options, str(target)])


def _command(options: list[str]) -> list[str]:
    import imageio_ffmpeg

    return [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *options]


def _ffmpeg(options: list[str]) -> None:
    done = subprocess.run(_command(options), capture_output=True, start_new_session=True)
    if done.returncode:
        source, target = Path(options[options.index("-i") + 1]).name, Path(options[-1]).name
        raise DataError(f"{source}: ffmpeg failed ({_told(done.stderr) or done.returncode}) while it made {target}")


def _told(said: bytes) -> str:
    """Return the first line, which as a rule is the cause, and the last one."""
    lines = said.decode(errors="replace").strip().splitlines()
    return " ... ".join(dict.fromkeys(line[:150] for line in (*lines[:1], *lines[-1:])))

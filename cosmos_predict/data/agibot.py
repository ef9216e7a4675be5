"""AgiBotWorld episodes to a video dataset: unpack one camera, cut into windows, write captions.

<data_dir>/observations/<task>/*.tar                                   as downloaded
<data_dir>/observations/<task>/<episode>/videos/<camera>.mp4           unpacked
<parent>/agibot_<camera>/{train,val}/videos/task_<t>_episode_<e>_window_<k>_frame_<first>-<last>.mp4
<parent>/agibot_<camera>.jsonl                                         captions: video_clip, caption, episode_id
<parent>/agibot_<camera>/{train,val}/metas/<video_clip>.txt
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from loguru import logger

from cosmos_predict.data import video_reader
from cosmos_predict.data.bad_items import WriteReport
from cosmos_predict.errors import DataError
from cosmos_predict.io.atomic import atomic_path, atomic_write_text


@dataclass(frozen=True)
class Window:
    """A piece of a clip, in seconds."""

    start: float
    end: float

    @property
    def length(self) -> float:
        return self.end - self.start


def split_windows(duration: float, window_size: float = 5.0, min_last_window: float = 7.5) -> list[Window]:
    """Cut `duration` seconds into windows of `window_size`, in order and without gaps.

    While more than window_size + min_last_window remains, a window is cut off. A rest of at most min_last_window is one
    window; a longer rest is one window of window_size and one of what is left. (The published rule.)

    Raises DataError for a duration or size that is not positive.
    """
    if not (duration > 0 and window_size > 0 and min_last_window >= 0):
        raise DataError(
            f"duration and window_size must be positive and min_last_window not negative, got {duration}, {window_size} "
            f"and {min_last_window} seconds"
        )
    windows, start = [], 0.0
    while duration - start > window_size + min_last_window:
        windows.append(Window(start, start + window_size))
        start += window_size
    rest = duration - start
    if rest > max(min_last_window, window_size):  # a rest below window_size is one window, whatever min_last_window is
        windows.append(Window(start, start + window_size))
        start += window_size
    if start < duration:
        windows.append(Window(start, duration))
    return windows


def window_name(task: int | str, episode: int | str, number: int, window: Window, fps: float) -> str:
    """Return the published file name of a window, with its first and last frame number."""
    first, last = int(window.start * fps), int(window.end * fps) - 1
    return f"task_{task}_episode_{episode}_window_{number}_frame_{first}-{last}.mp4"


def unpack(task_dir: Path, camera: str) -> tuple[int, list[Path]]:
    """Unpack `<episode>/videos/<camera>.mp4` of every tar in `task_dir`; return (videos written, tars read whole).

    Nothing else is written, and nothing outside `task_dir`: a member's place is made of its episode number alone. Videos
    that are there with the right size are kept.

    Raises DataError naming a tar that is damaged.
    """
    written, done = 0, []
    for path in sorted(task_dir.glob("*.tar")):
        try:
            with tarfile.open(path) as archive:
                _check_end(path)
                for member in archive:
                    parts = PurePosixPath(member.name).parts
                    if not member.isfile() or len(parts) < 3 or parts[-2:] != ("videos", f"{camera}.mp4"):
                        continue
                    if not parts[-3].isdigit():
                        logger.warning("{}: {} is not of an episode's folder, left out", path, member.name)
                        continue
                    target = task_dir / parts[-3] / "videos" / f"{camera}.mp4"
                    if target.is_file() and target.stat().st_size == member.size:
                        continue
                    source = archive.extractfile(member)
                    assert source is not None  # a regular file
                    with atomic_path(target) as temporary, temporary.open("wb") as file:
                        shutil.copyfileobj(source, file)
                    written += 1
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"{path}: damaged archive ({error}); download it again") from error
        done.append(path)
    return written, done


def _check_end(path: Path) -> None:
    """An archive ends with empty blocks; one that does not was cut, which reading it need not notice."""
    with path.open("rb") as file:
        file.seek(-1024, 2)
        if file.read().strip(b"\0"):
            raise EOFError("truncated: its end mark is missing")


def superfluous(task_dir: Path, camera: str, *, keep_tar: bool = False) -> list[Path]:
    """Return the files below `task_dir` that are not an episode's video of `camera` (tars among them, unless kept)."""
    wanted = {path for path in task_dir.glob(f"*/videos/{camera}.mp4") if path.parts[-3].isdigit()}
    files = sorted(path for path in task_dir.rglob("*") if path.is_symlink() or path.is_file())
    return [path for path in files if path not in wanted and not (keep_tar and path.suffix == ".tar")]


def delete(files: Sequence[Path], root: Path) -> None:
    """Remove `files` and the folders below `root` that this leaves empty."""
    for path in files:
        path.unlink(missing_ok=True)
    for folder in sorted((path for path in root.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def cut_episodes(
    task_dir: Path,
    camera: str,
    output: Path,
    val_episodes: Sequence[int] = (),
    window_size: float = 5.0,
    min_last_window: float = 7.5,
) -> WriteReport:
    """Cut every episode's video of a task into windows under `output/{train,val}/videos`; existing windows are kept.

    Raises DataError where the task has no video of `camera`.
    """
    videos = sorted(path for path in task_dir.glob(f"*/videos/{camera}.mp4") if path.parts[-3].isdigit())
    if not videos:
        raise DataError(f"{task_dir}: no <episode>/videos/{camera}.mp4; download and unpack the task first")
    report = WriteReport()
    for video in videos:
        episode = int(video.parts[-3])
        folder = output / ("val" if episode in val_episodes else "train") / "videos"
        try:
            info = video_reader.probe(video)
            for number, window in enumerate(split_windows(info.duration, window_size, min_last_window)):
                target = folder / window_name(task_dir.name, episode, number, window, info.fps)
                if target.is_file():
                    report.kept += 1
                else:
                    _cut(video, window, target)
                    report.written += 1
        except (DataError, OSError) as error:
            report.failed[video] = str(error)
    return report


def write_captions(table: Path, output: Path, val_episodes: Sequence[int] = ()) -> tuple[int, list[str]]:
    """Write `output/{train,val}/metas/<video_clip>.txt` from a JSON-lines table; return (captions, what does not match).

    What does not match: captions without a clip, and clips without a caption. Raises DataError naming a line that is not
    an object with `video_clip`, `caption` and `episode_id`.
    """
    clips = {path.stem: path for path in output.glob("*/videos/*.mp4")}
    captioned = set()
    unmatched = []
    for where, name, caption, episode in _captions(table):
        split = clips[name].parts[-3] if name in clips else "val" if episode in val_episodes else "train"
        atomic_write_text(output / split / "metas" / f"{name}.txt", caption + "\n")
        captioned.add(name)
        if name not in clips:
            unmatched.append(f"{where}: no clip {name}.mp4")
    unmatched += [f"{clips[name]}: no caption in {table.name}" for name in sorted(clips.keys() - captioned)]
    return len(captioned), unmatched


def _captions(table: Path) -> Iterator[tuple[str, str, str, int]]:
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name = PurePosixPath(str(entry["video_clip"])).name.removesuffix(".mp4")
            caption, episode = str(entry["caption"]).strip(), int(entry["episode_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{table} line {number}: expected an object with video_clip, caption and episode_id ({error!r})"
            ) from error
        if not name or not caption:
            raise DataError(f"{table} line {number}: video_clip or caption is empty")
        yield f"{table} line {number}", name, caption, episode


def _cut(video: Path, window: Window, target: Path) -> None:
    """Cut a window out of a video with the ffmpeg that imageio brings."""
    import imageio_ffmpeg

    with atomic_path(target) as temporary:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", "-ss", f"{window.start:.6f}"]
        command += ["-i", str(video), "-t", f"{window.length:.6f}", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-an"]
        command += ["-avoid_negative_ts", "make_zero", str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or done.returncode
            raise DataError(f"{target.name}: ffmpeg failed ({reason})")

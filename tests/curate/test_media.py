"""Cutting: the right frames, whatever the file; and what is no video."""

import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from cosmos_predict.curate import media
from cosmos_predict.data.video_reader import probe, read_frames, write_video
from cosmos_predict.errors import DataError
from tests.curate.footage import FPS, film, numbers


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "film.mp4"
    write_video(path, film([60, 70], seed=1), FPS)
    return path


def ffmpeg(*arguments: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True)


def cut(path: Path, target: Path, first: int, end: int) -> np.ndarray:
    media.cut(media.describe(path), target, first, end)
    return read_frames(target, range(probe(target).frames))


@pytest.mark.parametrize(("first", "end"), [(0, 130), (0, 1), (1, 40), (59, 61), (77, 130)])
def test_cut_is_exact(video: Path, tmp_path: Path, first: int, end: int) -> None:
    assert numbers(cut(video, tmp_path / "clip.mp4", first, end)) == list(range(first, end))


@pytest.mark.parametrize("fps", [30000 / 1001, 23.976, 15.0, 59.94])
def test_cut_keeps_odd_rates(tmp_path: Path, fps: float) -> None:
    write_video(tmp_path / "in.mp4", film([130], seed=2), fps)
    assert numbers(cut(tmp_path / "in.mp4", tmp_path / "clip.mp4", 33, 101)) == list(range(33, 101))
    assert probe(tmp_path / "clip.mp4").fps == pytest.approx(fps, rel=1e-4)
    assert not probe(tmp_path / "clip.mp4").variable_frame_rate


def test_key_frames_are_near_and_sound_is_dropped(video: Path, tmp_path: Path) -> None:
    import av

    tone = tmp_path / "tone.mp4"
    ffmpeg(
        "-i", str(video), "-f", "lavfi", "-i", "sine=duration=5", "-shortest", "-c:v", "copy", "-c:a", "aac", str(tone)
    )
    assert media.describe(tone).facts["audio_format"] == "aac"
    assert numbers(cut(tone, tmp_path / "clip.mp4", 20, 90)) == list(range(20, 90))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert not container.streams.audio
        keys = [index for index, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert max(np.diff([*keys, 70])) <= 16


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("film.ts", ["-c", "copy"]),
        ("film.mkv", ["-c", "copy"]),
        ("film.avi", ["-c:v", "mpeg4", "-q:v", "2"]),
        ("ten_bit.mp4", ["-pix_fmt", "yuv420p10le", "-c:v", "libx264"]),
        ("late.mp4", ["-c", "copy", "-output_ts_offset", "3.7"]),
    ],
)
def test_other_containers(video: Path, tmp_path: Path, name: str, options: list[str]) -> None:
    path = tmp_path / name
    ffmpeg("-i", str(video), *options, str(path))
    seekable = media.describe(path).facts["container"].startswith(media.SEEKABLE)
    assert seekable == (path.suffix in (".mp4", ".mkv"))
    if not seekable:
        path = media.remux(path, tmp_path / "remuxed")
    assert numbers(cut(path, tmp_path / "clip.mp4", 25, 75)) == list(range(25, 75))
    assert sum(map(len, media.small_frames(path))) == 130


def test_rotated_and_odd_sizes(video: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.mp4"
    write_video(odd, film([40], seed=3)[:, :95, :159], FPS)
    assert cut(odd, tmp_path / "a.mp4", 3, 30).shape == (27, 94, 158, 3)
    ffmpeg("-display_rotation", "90", "-i", str(video), "-c", "copy", str(tmp_path / "turned.mp4"))
    turned = cut(tmp_path / "turned.mp4", tmp_path / "b.mp4", 10, 20)
    assert turned.shape == (10, 160, 96, 3) and numbers(np.rot90(turned, -1, axes=(1, 2))) == list(range(10, 20))


def test_variable_rate_becomes_constant(video: Path, tmp_path: Path) -> None:
    varying = tmp_path / "varying.mp4"
    # The second half plays at half speed.
    ffmpeg("-i", str(video), "-vf", "setpts='if(lt(N,65),N,2*N-65)/24/TB'", "-fps_mode", "vfr", str(varying))
    footage = media.describe(varying)
    times = footage.times
    assert footage.variable_rate and footage.facts["num_frames"] == 130
    shown = numbers(cut(varying, tmp_path / "clip.mp4", 55, 75))
    made = probe(tmp_path / "clip.mp4")
    assert not made.variable_frame_rate and set(shown) <= set(range(54, 76)) and sorted(shown) == shown
    assert made.duration == pytest.approx(float(times[74] - times[55]) + 1 / made.fps, abs=1.5 / made.fps)


def test_no_video(tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "picture.mp4"
    Image.new("RGB", (64, 48)).save(picture, format="PNG")
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    (tmp_path / "empty.mp4").touch()
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", str(tmp_path / "sound.mp4"))
    for name, message in {
        "picture": "no video but a single picture",
        "text": "text|not a readable video",
        "empty": "not a readable video.*; 0 bytes",
        "sound": "no video stream",
        "missing": "cannot be opened",
    }.items():
        with pytest.raises(DataError, match=rf"{name}\.mp4.*({message})"):
            media.describe(tmp_path / f"{name}.mp4")


def test_undecodable_is_one_message(video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    data = bytearray(video.read_bytes())
    data[48:-4000] = bytes(len(data) - 4048)
    broken.write_bytes(data)
    with pytest.raises(DataError, match=r"broken\.mp4: ffmpeg could not decode it"):
        list(media.small_frames(broken))
    with pytest.raises(DataError, match=r"gone\.mp4: ffmpeg failed \(.+\) while it made clip\.mp4"):
        media.cut(
            media.Footage(tmp_path / "gone.mp4", {"framerate": 24.0}, np.arange(10) / 24), tmp_path / "clip.mp4", 1, 5
        )


@pytest.mark.parametrize(
    ("codec", "suffix"), [("mpeg4", ".mp4"), ("huffyuv", ".mkv"), ("ffv1", ".mp4"), ("utvideo", ".mkv")]
)
def test_packets_are_copied_to_where_they_fit(video: Path, tmp_path: Path, codec: str, suffix: str) -> None:
    """An mp4 does not take every codec of an avi; Matroska does."""
    ffmpeg("-i", str(video), "-c:v", codec, "-q:v", "2", str(tmp_path / "film.avi"))
    path = media.remux(tmp_path / "film.avi", tmp_path / "remuxed")
    assert path.name == f"remuxed{suffix}" and media.video_codec(path) == codec
    assert numbers(cut(path, tmp_path / "clip.mp4", 33, 101)) == list(range(33, 101))
    with pytest.raises(
        DataError, match=r"none\.avi: ffmpeg failed .*: neither an mp4 nor an mkv takes what is in it; convert it"
    ):
        media.remux(tmp_path / "none.avi", tmp_path / "remuxed")


def options(**given: Any) -> dict[str, Any]:
    chosen = {"transcode_crf": 18, "transcode_encoder": "libx264", "transcode_use_input_video_bit_rate": False}
    return {**chosen, **given}


def test_encoders(video: Path, tmp_path: Path) -> None:
    import av
    from av.video.frame import PictureType

    footage, sizes = media.describe(video), dict[str, int]()
    footage.facts["bit_rate_k"] = 20
    for name, given in {
        "x264": {},
        "openh264": {"transcode_encoder": "libopenh264"},
        "rated": {"transcode_use_input_video_bit_rate": True},
        "both": {"transcode_encoder": "libopenh264", "transcode_use_input_video_bit_rate": True},
    }.items():
        path = tmp_path / f"{name}.mp4"
        media.cut(footage, path, 20, 120, **media.encoding(options(**given), footage))
        assert numbers(read_frames(path, range(100))) == list(range(20, 120))
        info, sizes[name] = probe(path), path.stat().st_size
        assert (info.frames, info.fps, info.variable_frame_rate) == (100, FPS, False)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = [*container.decode(stream)]
            assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
            assert max(np.diff([*(n for n, frame in enumerate(frames) if frame.key_frame), 100])) <= 16
            if given.get("transcode_encoder") == "libopenh264":  # as published: motion vectors of the past alone
                assert all(frame.pict_type != PictureType.B for frame in frames)
    assert sizes["both"] < sizes["openh264"] and sizes["rated"] < sizes["x264"]
    with pytest.raises(DataError, match=r"\.mp4: ffmpeg failed .* while it made clip\.mp4"):
        media.cut(footage, tmp_path / "clip.mp4", 0, 9, encoder="no_such_encoder")


def test_preview(video: Path, tmp_path: Path) -> None:
    path = media.preview(video, tmp_path / "p.webp", 24, 100, 2.0, 48)
    with Image.open(path) as picture:
        assert picture.size == (80, 48) and getattr(picture, "n_frames", 1) == 7  # every 12th of 76 frames
        picture.seek(1)
        picture.load()
        assert picture.info["timestamp"] == 500
    with Image.open(media.preview(video, tmp_path / "one.webp", 5, 6, 2.0, 48)) as picture:
        assert getattr(picture, "n_frames", 1) == 1

"""Reading and writing of videos and images: same pixels by every decoder, exact frame numbers, readable refusals."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosmos_predict.data.video_reader import frame_times, probe, read_frames, read_image, write_video
from cosmos_predict.errors import DataError, MissingDependencyError
from tests.data.conftest import counting_frames, frame_numbers

MEDIA = Path(__file__).resolve().parents[3] / "shared" / "media"
needs_decord = pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord is not installed")


def ffmpeg(*arguments: str | Path) -> None:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def test_probe(clip: Path) -> None:
    info = probe(clip)
    assert (info.frames, info.fps, info.width, info.height) == (40, 20.0, 64, 48)
    assert info.duration == pytest.approx(2.0)
    assert not info.variable_frame_rate
    np.testing.assert_allclose(frame_times(clip), np.arange(40) / 20, atol=1e-9)


@pytest.mark.parametrize("backend", ["auto", "pyav", pytest.param("decord", marks=needs_decord)])
@pytest.mark.parametrize("indices", [[0], [39], [7, 8, 9], [30, 3, 3, 17, 39, 0], list(range(40))])
def test_frames_are_the_ones_asked_for(clip: Path, backend: str, indices: list[int]) -> None:
    frames = read_frames(clip, indices, backend=backend)
    assert frames.dtype == np.uint8 and frames.shape == (len(indices), 48, 64, 3)
    assert frame_numbers(frames) == indices


def sample_clips(clip: Path) -> list[Path]:
    found = sorted(MEDIA.glob("*/*.mp4")) + sorted(MEDIA.glob("bridge/videos/val/*/rgb.mp4")) if MEDIA.is_dir() else []
    return [clip, *found]


@needs_decord
def test_decoders_agree_byte_for_byte(clip: Path) -> None:
    for path in sample_clips(clip):
        count = probe(path).frames
        indices = [count - 1, 0, count // 2, count // 2, 5]
        one, other = read_frames(path, indices, backend="decord"), read_frames(path, indices, backend="pyav")
        assert np.array_equal(one, other), path


@pytest.mark.skipif(not MEDIA.is_dir(), reason=f"sample clips not found at {MEDIA}")
def test_variable_frame_rate_and_its_times() -> None:
    path = MEDIA / "clips" / "portrait_vfr.mp4"
    info, gaps = probe(path), np.diff(frame_times(path))
    assert info.variable_frame_rate and info.frames == 120
    assert info.fps == pytest.approx(60.150375939849624)
    assert gaps.min() == pytest.approx(0.010) and gaps.max() == pytest.approx(0.018, abs=5e-4)


@pytest.mark.parametrize(
    "options", [("-movflags", "+frag_keyframe+empty_moov"), ("-f", "matroska")], ids=["fragmented", "mkv"]
)
def test_containers_without_full_index(clip: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    path = tmp_path / "other.mp4"
    ffmpeg("-i", clip, "-c", "copy", *options, path)
    assert probe(path).frames == 40
    assert frame_numbers(read_frames(path, [31, 2], backend="pyav")) == [31, 2]


@needs_decord
def test_rotated_clip_is_upright(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.mp4", tmp_path / "phone.mp4"
    write_video(plain, counting_frames(10, 64, 128), fps=10)
    ffmpeg("-display_rotation", "90", "-i", plain, "-c", "copy", path)
    info = probe(path)
    assert (info.width, info.height) == (64, 128)
    one, other = read_frames(path, [4, 9], backend="decord"), read_frames(path, [4, 9], backend="pyav")
    assert one.shape == (2, 128, 64, 3) and np.array_equal(one, other)
    # Counter-clockwise: the ramp that brightened to the right now brightens upwards.
    assert one[0, :20].mean() > one[0, -20:].mean()


@needs_decord
def test_what_decord_refuses_is_left_to_pyav(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"  # decord 0.6.0 fails on turned pictures whose rows are not a multiple of 64 bytes
    ffmpeg("-display_rotation", "90", "-i", clip, "-c", "copy", path)
    with pytest.raises(DataError, match=r"phone\.mp4: decord cannot decode it"):
        read_frames(path, [4], backend="decord")
    assert read_frames(path, [4]).shape == (1, 64, 48, 3)


def test_index_outside_names_file_index_and_count(clip: Path) -> None:
    with pytest.raises(
        DataError, match=r"counting\.mp4: frame 40 is outside the clip, which has 40 frames \(0\.\.39\)"
    ):
        read_frames(clip, [3, 40])
    with pytest.raises(DataError, match="frame -1 is outside"):
        read_frames(clip, [-1])
    with pytest.raises(DataError, match="non-empty list of integers"):
        read_frames(clip, [])


def test_unreadable_files_are_named_with_reason(clip: Path, tmp_path: Path) -> None:
    data = clip.read_bytes()
    cases = {
        "missing.mp4": (None, "No such file"),
        "empty.mp4": (b"", "truncated or damaged.*0 bytes"),
        "text.mp4": (b"not a video", "not a readable video"),
        # The index of our files is at their start, so a cut loses frames that it still names.
        "cut.mp4": (data[: len(data) * 2 // 3], f"truncated: its index reaches to byte {len(data)}"),
        "zeros.mp4": (data[:-2000] + bytes(2000), "damaged"),
    }
    for name, (content, reason) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}.*{reason}"):
            read_frames(path, range(40))
    with pytest.raises(DataError, match="is a folder"):
        probe(tmp_path)


def test_audio_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", path)
    with pytest.raises(DataError, match="no video stream"):
        probe(path)


def test_unknown_and_missing_backends(clip: Path) -> None:
    with pytest.raises(DataError, match="unknown video backend 'opencv'; known: auto, decord, pyav, torchcodec"):
        read_frames(clip, [0], backend="opencv")
    if importlib.util.find_spec("torchcodec") is None:
        with pytest.raises(MissingDependencyError, match="torchcodec.*pip install torchcodec"):
            read_frames(clip, [0], backend="torchcodec")


@pytest.mark.parametrize("size", [(32, 48), (31, 48), (32, 47), (33, 35), (2, 2)])
def test_written_videos_have_the_asked_size(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "new" / "out.mp4"
    frames = counting_frames(7, *size)
    write_video(path, frames, fps=12.5, quality=9)
    info = probe(path)
    assert (info.frames, info.height, info.width, info.fps) == (7, *size, 12.5)
    assert np.abs(read_frames(path, range(7)).astype(int) - frames).mean() < 3
    assert np.array_equal(read_frames(path, range(7)), read_frames(path, range(7), backend="pyav"))
    assert [entry.name for entry in path.parent.iterdir()] == ["out.mp4"]


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    with pytest.raises(DataError, match=r"needs uint8 frames \(T, H, W, 3\), got float32"):
        write_video(path, np.zeros((2, 8, 8, 3), np.float32), 8)
    with pytest.raises(DataError, match="fps must be positive"):
        write_video(path, np.zeros((2, 8, 8, 3), np.uint8), 0)
    assert path.read_bytes() == b"old"


def test_images(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 3), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (4, 3), 77).save(tmp_path / "grey.png")
    Image.fromarray(np.full((3, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()
    assert (read_image(tmp_path / "grey.png") == 77).all()
    assert (read_image(tmp_path / "deep.png") == 40000 >> 8).all()
    turned = Image.new("RGB", (4, 3))
    turned.putpixel((0, 0), (255, 255, 255))
    exif = turned.getexif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "turned.png")
    assert upright.shape == (4, 3, 3) and (upright[0, 2] == 255).all()
    (tmp_path / "broken.png").write_bytes((tmp_path / "grey.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"broken\.png: not a readable image"):
        read_image(tmp_path / "broken.png")
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")

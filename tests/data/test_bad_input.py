"""Everything a dataset folder can have wrong, each by its message; and the unusual files that must work all the same."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger

from cosmos_predict.config.compose import compose
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.data.loader import build_dataloader
from cosmos_predict.data.video_folder import VideoFolderDataset
from cosmos_predict.data.video_reader import frame_times, probe, read_frames
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.embeddings import write_embedding
from cosmos_predict.models.fit_data import check_data
from cosmos_predict.training.trainer import Trainer
from tests.data.conftest import frame_numbers

Folder = Callable[..., Path]
PATTERN = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=20:duration=1")

NOISE = ("-vf", "noise=alls=40:allf=t", "-pix_fmt", "yuv420p")  # frames of some size


def ffmpeg(*arguments: str | Path) -> None:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def make_clip(path: Path, kind: str, source: Path) -> None:
    """Write one of the bad clips, from a good one where it is part of one."""
    data = source.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>404 Not Found</html>")
    elif kind == "truncated":
        path.write_bytes(data[: len(data) * 2 // 3])
    elif kind == "corrupt":
        ffmpeg(*PATTERN, *NOISE, "-movflags", "+faststart", path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    elif kind == "without index":  # a recording or download that broke off: the index comes last
        ffmpeg(*PATTERN, *NOISE, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "zero frames":
        ffmpeg(*PATTERN, "-frames:v", "0", path)
    elif kind == "sound":
        ffmpeg("-f", "lavfi", "-i", "sine=duration=0.3", path)
    elif kind == "too short":
        ffmpeg(*PATTERN, "-frames:v", "7", "-pix_fmt", "yuv420p", path)


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []
    handle = logger.add(lambda message: lines.append(str(message)), level="INFO", format="{level}: {message}")
    yield lines
    logger.remove(handle)


def open_folder(folder: Path, **options: Any) -> VideoFolderDataset:
    return VideoFolderDataset(folder, **{"num_frames": 9, "video_size": (32, 32), **options})


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", r"not a readable video; truncated or damaged\? \(.*0 bytes\)"),
        ("text", "not a readable video"),
        ("without index", "not a readable video; truncated or damaged"),
        ("truncated", r"truncated: its index reaches to byte \d+, the file has \d+"),
        ("zero frames", "the file has no video stream"),
        ("sound", "the file has no video stream"),
        ("too short", "clip too short: 7 frames, a window of 9 needs 9"),
    ],
)
def test_bad_clips_are_named_at_start(make_folder: Folder, log: list[str], kind: str, reason: str) -> None:
    folder = make_folder({"good": 20, "bad": 20})
    make_clip(folder / "videos" / "bad.mp4", kind, folder / "videos" / "good.mp4")
    dataset = open_folder(folder)
    assert [clip.name for clip in dataset.clips] == ["good"]
    (name, why), *more = dataset.report.skipped
    assert name == "bad.mp4" and not more
    assert re.search(reason, why), why
    assert any("WARNING" in line and "1 of 2 clips usable" in line and "bad.mp4 (" in line for line in log)


def test_a_corrupt_clip_is_named_when_read(make_folder: Folder, log: list[str]) -> None:
    folder = make_folder({"good": 20, "bad": 20})
    make_clip(folder / "videos" / "bad.mp4", "corrupt", folder / "videos" / "good.mp4")
    dataset = open_folder(folder, num_frames=17)
    assert all("good.mp4" in dataset[n]["video_name"]["video_path"] for n in range(4))
    assert any("bad.mp4: replaced by another clip (1 failed so far)" in line and "damaged" in line for line in log)


def test_folders_that_hold_nothing(make_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/videos: no such folder; a dataset is DIR/videos/\*\.mp4"):
        open_folder(tmp_path / "nowhere")
    folder = make_folder({"a": 20})
    (folder / "t5_xxl" / "a.pickle").rename(tmp_path / "a.pickle")
    with pytest.raises(DataError, match="t5_xxl: no text embeddings; make them with: python scripts/get_t5_embeddings"):
        open_folder(folder)
    (folder / "metas" / "a.txt").unlink()
    write_embedding(folder / "t5_xxl" / "another.pickle", np.ones((2, 1024), np.float16))
    with pytest.raises(DataError, match=r"a.mp4 \(no caption metas/a.txt and no embedding t5_xxl/a.\*"):
        open_folder(folder)
    (folder / "videos" / "a.mp4").unlink()
    with pytest.raises(DataError, match=r"videos: no video in it \(.mp4, .mov"):
        open_folder(folder)


def test_embeddings_of_the_wrong_width(make_folder: Folder, log: list[str]) -> None:
    folder = make_folder({"a": 20, "b": 20})
    for name in "ab":
        (folder / "t5_xxl" / f"{name}.pickle").unlink()
        np.save(folder / "t5_xxl" / f"{name}.npy", np.ones((5, 4096), np.float16))
    with pytest.raises(
        DataError, match=r"2 of 2 clips cannot be read.*shape \(5, 4096\), expected floats of shape \(n, 1024"
    ):
        open_folder(folder)[0]
    assert any("a.npy" in line or "b.npy" in line for line in log)


def test_too_many_broken_files_stop_the_start(make_folder: Folder) -> None:
    folder = make_folder(dict.fromkeys("abcdef", 12))
    for name in "abc":
        (folder / "videos" / f"{name}.mp4").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"3 of 6 clips cannot be read, more than max_bad_share=0\.1: a\.mp4 \("):
        open_folder(folder)
    assert len(open_folder(folder, max_bad_share=0.5)) == 3


def test_bad_clips_are_counted_over_all_workers(make_folder: Folder, log: list[str]) -> None:
    """Each of two workers reads half of the clips: none of them alone sees more than max_bad_share of all."""
    names = [f"c{k:02d}" for k in range(12)]
    folder = make_folder(dict.fromkeys(names, 9))
    dataset = open_folder(folder, max_bad_share=0.17, shuffle=False)
    for name in names[2:5]:
        (folder / "videos" / f"{name}.mp4").write_bytes(b"nothing")
    with pytest.raises(DataError) as stopped:
        for _ in zip(range(12), build_dataloader(dataset, 1, num_workers=2), strict=False):
            pass
    message = str(stopped.value)
    assert message.startswith(f"{folder}: 3 of 12 clips cannot be read, more than max_bad_share=0.17: c0")
    assert "Traceback" not in message and "worker process" not in message


@pytest.mark.parametrize(
    "codec",
    [
        pytest.param(("-c:v", "libx264", "-pix_fmt", "yuv420p10le"), id="h264-10-bit"),
        pytest.param(
            ("-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none"), id="hevc-10-bit"
        ),
        pytest.param(("-c:v", "libaom-av1", "-cpu-used", "8", "-pix_fmt", "yuv420p10le"), id="av1-10-bit"),
    ],
)
def test_clips_of_10_bits_are_read(clip: Path, tmp_path: Path, codec: tuple[str, ...]) -> None:
    deep = tmp_path / "deep.mp4"
    ffmpeg("-i", clip, *codec, "-crf", "4", deep)
    frames = read_frames(deep, [0, 7, 19])
    assert probe(deep).frames == 40 and frames.dtype == np.uint8 and frame_numbers(frames) == [0, 7, 19]
    assert np.abs(frames.astype(int) - read_frames(clip, [0, 7, 19])).mean() < 1.5


def test_a_portrait_clip_is_read_upright(make_folder: Folder) -> None:
    folder = make_folder({"a": 20})
    path = folder / "videos" / "a.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=48x80:rate=20:duration=1", "-pix_fmt", "yuv420p", path)
    info = probe(path)
    assert (info.width, info.height) == (48, 80)
    assert open_folder(folder)[0]["video"].shape == (3, 9, 32, 32)
    assert open_folder(folder, fit="crop", video_size=(64, 64), aspect_buckets=True)[0]["video"].shape[2:] == (80, 48)


def test_a_clip_of_variable_rate_is_read_by_its_times(make_folder: Folder) -> None:
    folder = make_folder({"a": 20})
    path = folder / "videos" / "a.mp4"
    timing = "settb=1/1000,setpts='N*50+20*mod(N,2)'"  # gaps of 70 and 30 ms
    ffmpeg(*PATTERN, "-vf", timing, "-fps_mode", "passthrough", "-enc_time_base", "1/1000", "-pix_fmt", "yuv420p", path)
    info, gaps = probe(path), np.diff(frame_times(path))
    assert info.variable_frame_rate and info.frames == 20
    assert sorted(set(np.round(gaps, 3))) == [0.03, 0.07]
    dataset = open_folder(folder, fps=10.0)
    assert dataset.frame_ids(dataset.clips[0], 0).tolist()[:2] != [0, 1] and dataset[0]["fps"] == 10.0
    assert set(np.diff(dataset.frame_ids(dataset.clips[0], 0))) == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 10}, r"num_frames=10 does not fit: T = 10 frames: expected 1 \+ 4 k, such as 9 or 13"),
        (
            {"video_size": (40, 64)},
            r"video_size=\[40, 64\]: .* multiples of 16; nearest heights: 32 and 48, widths: 64",
        ),
        ({"video_size": (8, 100)}, r"video_size=\[8, 100\]: .* nearest heights: 16, widths: 96 and 112"),
        ({"length_buckets": [6]}, r"num_frames=6 does not fit: T = 6 frames: expected 1 \+ 4 k, such as 5 or 9"),
    ],
)
def test_frames_and_sizes_that_do_not_fit_the_model(make_folder: Folder, options: dict[str, Any], message: str) -> None:
    folder = make_folder({"a": 20, "b": 7})
    config = compose(["experiment=tiny_video2world", "data=synthetic", "debug=true"])
    model = instantiate(config.model, device="meta")
    check_data(model, open_folder(folder))
    with pytest.raises(ConfigError, match=message):
        check_data(model, open_folder(folder, **options))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataloader_train.dataset.num_frames=10", "num_frames=10 does not fit: T = 10 frames"),
        ("dataloader_train.dataset.video_size=[40,64]", r"video_size=\[40, 64\]: .* nearest heights: 32 and 48"),
    ],
)
def test_a_run_that_does_not_fit_ends_before_it_reads_weights(tmp_path: Path, override: str, message: str) -> None:
    settings = ["experiment=tiny_video2world", "data=synthetic", "debug=true", override]
    config = compose([*settings, f"checkpoint.load_path={tmp_path}/no_such_weights.pt"], report=[])
    with pytest.raises(ConfigError, match=message):
        Trainer(config).build()


def test_embeddings_of_another_encoder_are_refused(make_folder: Folder) -> None:
    folder = make_folder({"a": 20})
    model = instantiate(compose(["experiment=tiny_video2world", "debug=true"]).model, device="meta")
    check_data(model, open_folder(folder))  # of an unknown encoder
    (folder / "t5_xxl.json").write_text('{"text_encoder": "t5"}')
    with pytest.raises(DataError, match=r"dataset/t5_xxl were made by the text encoder 't5', .*text_encoder is 'tiny'"):
        check_data(model, open_folder(folder))
    model.config.pipe_config.text_encoder = "checkpoints/google-t5/t5-11b"
    check_data(model, open_folder(folder))

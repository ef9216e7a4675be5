"""`scripts/prepare_dataset.py` where something goes wrong: bad input, other settings, kills, a full disk."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from loguru import logger

from cosmos_predict.cli import convert_cache
from cosmos_predict.data import video_reader
from cosmos_predict.data.nemo_cache import NemoCacheDataset, read_settings, write_settings
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.lock import hold
from tests.cli.preparing import OFFLINE, call, contents, load, moving, write_videos

REPOSITORY = Path(__file__).parents[2]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path)


# ---- bad input ---------------------------------------------------------------------------------------------------------


def test_unusable_videos_are_left_out_and_named(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (videos / "one.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    video_reader.write_video(videos / "short.mp4", moving(120), fps=24)
    assert call(videos, tmp_path / "out", "--num_chunks", "2") == 1
    captured = capsys.readouterr()
    assert re.search(r"failed: .*cut.mp4: .*(truncated|damaged)", captured.err) and not re.search(
        r"failed: .*short.mp4", captured.err
    )
    assert "2 samples written, 0 kept (already there), 1 videos failed" in captured.out
    assert len(NemoCacheDataset(tmp_path / "out", 121, (48, 64))) == 2
    for name in ("one", "two"):
        (videos / f"{name}.mp4").unlink()
    short = r"short.mp4 \(120 frames, a chunk needs 121; use --num_frames or a longer video\)"
    with pytest.raises(DataError, match=rf"videos: no usable video: {short}; cut.mp4 \("):
        call(videos, tmp_path / "other")


def test_a_video_damaged_inside_is_left_out(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((videos / "one.mp4").read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)  # the index in front stays, so that the file looks whole
    (videos / "one.mp4").write_bytes(bytes(data))
    assert call(videos, tmp_path / "out", "--num_chunks", "6") == 1
    captured = capsys.readouterr()
    assert re.search(r"failed: .*one.mp4: ", captured.err) and ", 1 videos failed" in captured.out
    kept = {json.loads(path.read_text())["video_path"] for path in (tmp_path / "out").glob("*.info.json")}
    assert kept == {"two.mp4"} and len(NemoCacheDataset(tmp_path / "out", 121, (48, 64))) > 0


def test_bad_flags_are_named(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the prompt is empty; give the text that describes every video: --prompt"):
        call(videos, tmp_path / "out", "--prompt", " ")
    with pytest.raises(DataError, match=r"nowhere: no video in it \(.mp4, .*\), but: no such folder"):
        call(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "clip.gif").write_bytes(b"GIF")
    with pytest.raises(
        DataError, match=r"others: no video in it \(.mp4, .*\), but: clip.gif; give the folder of the videos"
    ):
        call(tmp_path / "others", tmp_path / "out")
    with pytest.raises(ConfigError, match="--width 70: the tokenizer needs a multiple of 8, such as 64 or 72"):
        call(videos, tmp_path / "out", "--width", "70")
    with pytest.raises(ConfigError, match="T = 120 frames: expected 1 . 8 k, such as 113 or 121"):
        call(videos, tmp_path / "out", "--num_frames", "120")
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_videos_are_named(videos: Path, tmp_path: Path) -> None:
    for name in ("clip.gif", "tape.MPG", ".hidden"):
        (videos / name).write_bytes(b"GIF")
    lines = list[str]()
    handle = logger.add(lambda line: lines.append(str(line)), level="WARNING", format="{message}")
    try:
        assert call(videos, tmp_path / "out", "--num_frames", "9", "--num_chunks", "1") == 0
    finally:
        logger.remove(handle)
    (line,) = lines
    assert f"{videos}: not read, for no name of a video (.mp4, " in line and line.endswith(
        "2 files: clip.gif, tape.MPG\n"
    )


def test_a_size_that_no_published_network_takes_is_told(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num_frames", "9", "--num_chunks", "1"]
    assert call(videos, tmp_path / "out", *flags) == 0 and "warning" not in capsys.readouterr().err
    assert call(videos, tmp_path / "odd", *flags, "--height", "56") == 0
    assert "warning: --height 56 --width 64: the published networks need multiples of 16" in capsys.readouterr().err


def test_one_folder_has_one_run(videos: Path, tmp_path: Path) -> None:
    out, flags = tmp_path / "out", ["--num_frames", "9", "--num_chunks", "1"]
    with hold(tmp_path / ".out.lock", ""), pytest.raises(ConfigError, match="out: another process is writing it; wait"):
        call(videos, out, *flags)
    assert not list(out.iterdir()) and call(videos, out, *flags) == 0


def test_the_conversion_says_how_to_train_on_it(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(videos, tmp_path / "theirs", "--num_frames", "9", "--num_chunks", "1") == 0
    with pytest.raises(SystemExit) as ended:
        convert_cache.main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    words = f"train with: data=latent_cache data.path={tmp_path / 'ours'} dataloader_train.dataset.fit=published"
    assert not ended.value.code and capsys.readouterr().out.splitlines()[-1].endswith(
        f"1 windows of {tmp_path / 'theirs'}; {words}"
    )


def test_other_settings_are_refused(videos: Path, tmp_path: Path) -> None:
    out, flags = tmp_path / "out", ["--num_frames", "9", "--num_chunks", "2"]
    assert call(videos, out, *flags) == 0
    before = contents(out)
    with pytest.raises(ConfigError) as caught:
        call(videos, out, *flags, "--prompt", "another", "--width", "56")
    assert f"{out}: width is 64 in the cache, 56 in this run; give the same flags, choose another" in str(caught.value)
    assert "prompt is 'a video of sks.' in the cache, 'another' in this run" in str(caught.value)
    (videos / "two.mp4").unlink()
    with pytest.raises(ConfigError, match="windows is '2 of hash"):  # of other videos
        call(videos, out, *flags)
    assert contents(out) == before
    (tmp_path / "out.json").unlink()
    with pytest.raises(DataError, match="out: holds 2 samples of unknown make; choose another folder"):
        call(videos, out, *flags)


# ---- interruptions -----------------------------------------------------------------------------------------------------


def command(videos: Path, out: Path, *flags: str) -> list[str]:
    script = [sys.executable, str(REPOSITORY / "scripts" / "prepare_dataset.py")]
    return [*script, "--dataset_path", str(videos), "--output_path", str(out), *OFFLINE, *flags]


def assert_no_half_sample(out: Path) -> int:
    """Every sample that has an info.json has readable files; return how many there are."""
    infos = list(out.glob("*.info.json"))
    for path in infos:
        name = path.name.partition(".")[0]
        assert load(out / f"{name}.video_latent.pth").shape == load(out / f"{name}.conditioning_latent.pth").shape
        assert load(out / f"{name}.t5_text_embeddings.pth").shape == (512, 1024)
    for path in out.glob("*.pth"):  # and there is no half file at all
        load(path)
    return len(infos)


@pytest.mark.slow
def test_kill_and_resume(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, flags = tmp_path / "out", ["--num_frames", "57", "--num_chunks", "40", "--num_workers", "2"]
    env = {**ENV, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # another number rounds otherwise
    process = subprocess.Popen(command(videos, out, *flags), env=env, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 120
        while not (out / "2.info.json").exists() and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    whole = assert_no_half_sample(out)
    assert 3 <= whole < 40
    with pytest.raises(DataError, match="out: the cache is not finished; run the command that makes it again"):
        NemoCacheDataset(out, 57, (48, 64))
    assert call(videos, out, *flags) == 0
    assert f"{40 - whole} samples written, {whole} kept (already there)" in capsys.readouterr().out
    assert call(videos, tmp_path / "uninterrupted", *flags) == 0
    assert (
        contents(out) == contents(tmp_path / "uninterrupted") and len(contents(out)) == 200
    )  # what the kill left is gone
    made = read_settings(out)
    assert made is not None
    write_settings(out, made["settings"], finished=False)  # as a kill behind the last sample leaves it
    assert call(videos, out, *flags) == 0 and len(NemoCacheDataset(out, 57, (48, 64))) == 40
    assert "0 windows encoded" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_a_full_disk(videos: Path, tmp_path: Path) -> None:
    """Files may have 0.5 MB at most, so that the system refuses the rest of a text embedding."""
    out, flags = tmp_path / "out", ["--num_frames", "9", "--num_chunks", "3"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))  # noqa: E731
    done = subprocess.run(command(videos, out, *flags), env=ENV, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search(
        r"error: .*out: sample 0 could not be written \(.*\); those before it are complete, and the same", done.stderr
    )
    assert list(out.iterdir()) == []
    again = subprocess.run(command(videos, out, *flags), env=ENV, capture_output=True, text=True)
    assert again.returncode == 0 and "3 samples written, 0 kept" in again.stdout
    assert assert_no_half_sample(out) == 3


def test_bad_input_is_status_two_without_a_traceback(videos: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(videos, tmp_path / "out", "--num_frames", "129"), env=ENV, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no usable video: one.mp4 (125 frames, a chunk needs 129; use --num_frames or a longer video)" in done.stderr

"""`scripts/prepare_dataset.py` and `prepare_instruction_dataset.py` as users run them: files, windows, resume, bad input."""

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

import numpy as np
import pytest
import torch
from loguru import logger
from safetensors.torch import save_file

from cosmos_predict.cli import convert_cache
from cosmos_predict.cli.prepare_dataset import build_parser, latent_shape, prepare
from cosmos_predict.data import transforms, video_reader
from cosmos_predict.data.nemo_cache import NemoCacheDataset, read_settings, write_settings
from cosmos_predict.data.video_folder import VideoFolderDataset
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.embeddings import write_embedding
from cosmos_predict.io.lock import hold
from cosmos_predict.text_encoders.tiny import TinyTextEncoder
from cosmos_predict.tokenizers.cosmos_video import CosmosVideoTokenizer
from cosmos_predict.tokenizers.dct import DCTTokenizer
from cosmos_predict.tokenizers.load import build_tokenizer

REPOSITORY = Path(__file__).parents[2]
PUBLISHED_CLIP = REPOSITORY.parent / "shared" / "media" / "clips" / "test_clip_10s.mp4"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
OFFLINE = ["--tokenizer", "dct", "--text_encoder", "tiny", "--height", "48", "--width", "64", "--device", "cpu"]
KINDS = ["conditioning_latent.pth", "info.json", "t5_text_embeddings.pth", "t5_text_mask.pth", "video_latent.pth"]


def moving(count: int, height: int = 40, width: int = 56) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 of a picture that moves to the right, each unlike the others."""
    ramp = (np.arange(height)[:, None, None] + 2 * np.arange(width)[None, :, None] + 40 * np.arange(3)).astype(np.uint8)
    return np.stack([np.roll(ramp, shift, axis=1) + np.uint8(shift) for shift in range(count)])


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A flat folder with clips of 125 and 123 frames of 40 x 56, so with five and three windows of 121 frames."""
    for name, count in (("one", 125), ("two", 123)):
        video_reader.write_video(tmp_path / "videos" / f"{name}.mp4", moving(count), fps=24)
    return tmp_path / "videos"


def call(dataset: Path, output: Path, *flags: str, prog: str = "prepare_dataset.py") -> int:
    where = ["--dataset_path", str(dataset), "--output_path", str(output)]
    return prepare(build_parser(prog).parse_args([*where, *OFFLINE, *flags]))


def call_instructions(dataset: Path, output: Path, *flags: str) -> int:
    return call(dataset, output, *flags, prog="prepare_instruction_dataset.py")


def load(path: Path) -> torch.Tensor:
    return torch.load(path, weights_only=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def reference(video: Path, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of a window and of its given frames, straight from the published rules."""
    frames = torch.from_numpy(video_reader.read_frames(video, np.arange(start, start + 121))).permute(0, 3, 1, 2)
    pixels = torch.nn.functional.interpolate(frames.float(), (48, 64), mode="bilinear", antialias=True)
    clip = (pixels.clamp(0, 255).round() / 127.5 - 1).transpose(0, 1)[None]
    given = torch.cat([clip[:, :, :9], torch.zeros_like(clip[:, :, 9:])], dim=2)
    tokenizer = DCTTokenizer(16, 8)
    return tokenizer.encode(clip)[0].bfloat16(), tokenizer.encode(given)[0].bfloat16()


def test_names_shapes_dtypes_and_values(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cached"
    assert call(videos, out, "--num_chunks", "12", "--prompt", "A video of sks arm.") == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{i}.{kind}" for i in range(12) for kind in KINDS)
    text, mask = TinyTextEncoder().encode(["A video of sks arm."])
    windows = dict[tuple[str, int], list[int]]()
    for number in range(12):
        info = json.loads((out / f"{number}.info.json").read_text())
        windows.setdefault((info["video_path"], info["start_frame"]), []).append(number)
        assert (info["height"], info["width"], info["fps"], info["num_frames"]) == (40, 56, 24.0, 121)
        assert set(info) == {"height", "width", "fps", "num_frames", "video_path", "start_frame", "caption"}
        assert 0 <= info["start_frame"] <= {"one.mp4": 4, "two.mp4": 2}[info["video_path"]]
        embeddings, ones = load(out / f"{number}.t5_text_embeddings.pth"), load(out / f"{number}.t5_text_mask.pth")
        assert (embeddings.dtype, embeddings.shape) == (torch.bfloat16, (512, 1024))
        assert torch.equal(embeddings, text[0].bfloat16()) and not embeddings[int(mask.sum()) :].any()
        assert ones.dtype == torch.bfloat16 and torch.equal(ones.float(), torch.ones(512))
        latent, given = load(out / f"{number}.video_latent.pth"), load(out / f"{number}.conditioning_latent.pth")
        assert latent.dtype == given.dtype == torch.bfloat16 and latent.shape == given.shape == (16, 16, 6, 8)
        expected = reference(videos / info["video_path"], info["start_frame"])
        assert torch.equal(latent, expected[0]) and torch.equal(given, expected[1])
        assert torch.equal(latent[:, :2], given[:, :2]) and not torch.equal(latent[:, 2:], given[:, 2:])
    printed = capsys.readouterr().out
    assert 1 < len(windows) < 12, "the clips should give repeated windows and different ones"
    assert f"12 samples written, 0 kept (already there), 0 videos failed; {len(windows)} windows encoded" in printed
    assert f"{12 - len(windows)} saved (the same window again); 1 texts encoded, 11 saved" in printed
    dataset = NemoCacheDataset(out, 121, (48, 64))
    assert len(dataset) == 12 and dataset.text_encoders == {"tiny": out}


def test_the_first_frame_is_coded_on_its_own(videos: Path, tmp_path: Path) -> None:
    assert call(videos, tmp_path / "long", "--num_chunks", "1") == 0
    assert call(videos, tmp_path / "one", "--num_chunks", "1", "--num_frames", "1") == 0
    info = json.loads((tmp_path / "long" / "0.info.json").read_text())
    clip = reference(videos / info["video_path"], info["start_frame"])[0]
    frame = video_reader.read_frames(videos / info["video_path"], [info["start_frame"]])
    pixels = transforms.resize_uint8(torch.from_numpy(frame).permute(0, 3, 1, 2), (48, 64), "bilinear")
    alone = DCTTokenizer(16, 8).encode(pixels.transpose(0, 1)[None])[0].bfloat16()
    assert torch.equal(clip[:, :1], alone) and load(tmp_path / "one" / "0.video_latent.pth").shape == (16, 1, 6, 8)


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_latents_are_those_of_training_on_clips(videos: Path, tmp_path: Path, fit: str) -> None:
    assert call(videos, tmp_path / "out", "--num_chunks", "1", "--num_frames", "17", "--fit", fit) == 0
    sample = NemoCacheDataset(tmp_path / "out", 17, (48, 64))[0]
    for path in videos.iterdir():
        write_embedding(videos.parent / "t5_xxl" / f"{path.stem}.pickle", np.ones((3, 1024), np.float16))
    dataset = VideoFolderDataset(videos.parent, 17, (48, 64), fit=fit)
    info = json.loads((tmp_path / "out" / "0.info.json").read_text())
    clip = next(clip for clip in dataset.clips if clip.video.name == info["video_path"])
    video = dataset.read(clip, info["start_frame"] + np.arange(17)).frames.transpose(0, 1)[None]
    assert torch.equal(sample["latent"], DCTTokenizer(16, 8).encode(video.contiguous())[0].bfloat16())
    assert sample["fps"] == dataset.clip_fps(clip)


def test_latent_shapes_of_published_sizes() -> None:
    cosmos = build_tokenizer("cosmos_cv8x8x8", device="meta")
    assert latent_shape(cosmos, 121, 704, 1280) == (16, 16, 88, 160)
    assert latent_shape(cosmos, 57, 704, 1280) == (16, 8, 88, 160) and latent_shape(cosmos, 1, 480, 640) == (
        16,
        1,
        60,
        80,
    )
    assert latent_shape(DCTTokenizer(16, 8), 121, 704, 1280) == (16, 16, 88, 160)
    with pytest.raises(ConfigError, match="--height 700: the tokenizer needs a multiple of 8, such as 696 or 704"):
        latent_shape(cosmos, 121, 700, 1280)
    with pytest.raises(ConfigError, match=r"T = 120 frames: expected 1 \+ 8 k, such as 113 or 121"):
        latent_shape(cosmos, 120, 704, 1280)


def test_windows_are_a_function_of_the_seed(videos: Path, tmp_path: Path) -> None:
    def windows(name: str, *flags: str) -> list[tuple[str, int]]:
        assert call(videos, tmp_path / name, "--num_chunks", "6", "--num_frames", "9", *flags) == 0
        infos = [json.loads((tmp_path / name / f"{number}.info.json").read_text()) for number in range(6)]
        return [(info["video_path"], info["start_frame"]) for info in infos]

    first = windows("first", "--no_conditioning_latent")
    assert first == windows("workers", "--num_workers", "3", "--fit", "crop") != windows("other", "--seed", "1")
    assert {name for name, _ in first} == {"one.mp4", "two.mp4"}
    assert not list((tmp_path / "first").glob("*.conditioning_latent.pth"))
    assert len(NemoCacheDataset(tmp_path / "first", 9, (48, 64))) == 6


def test_a_cosmos_tokenizer_from_a_folder(videos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"channels": 8, "channels_mult": (1, 1, 1), "num_res_blocks": 1, "attn_resolutions": ()}
    tokenizer = CosmosVideoTokenizer(**small)
    (tmp_path / "tokenizer").mkdir()
    save_file(
        {name: value.contiguous() for name, value in tokenizer.state_dict().items()},
        tmp_path / "tokenizer" / "m.safetensors",
    )
    flags = ["--tokenizer_dir", str(tmp_path / "tokenizer"), "--num_frames", "17", "--num_chunks", "1", "--dtype"]
    assert call(videos, tmp_path / "out", *flags, "float32") == 0
    latent = load(tmp_path / "out" / "0.video_latent.pth")
    assert latent.shape == (16, 3, 6, 8) and bool(latent.float().std() > 0)
    made = read_settings(tmp_path / "out")
    assert made is not None and made["settings"]["tokenizer"] == "cosmos_cv8x8x8" and made["finished"]
    with pytest.raises(
        ConfigError, match=r"tokenizer_dtype is None in the cache, 'bfloat16' in this run; give the same flags"
    ):
        call(videos, tmp_path / "out", *flags, "bfloat16")


def test_the_published_clip(tmp_path: Path) -> None:
    if not PUBLISHED_CLIP.is_file():
        pytest.skip("the published clip is not there; the generated ones above stand in for it")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "clip.mp4").symlink_to(PUBLISHED_CLIP)
    assert call(tmp_path / "videos", tmp_path / "out", "--num_chunks", "1") == 0
    info = json.loads((tmp_path / "out" / "0.info.json").read_text())
    expected = reference(PUBLISHED_CLIP, info["start_frame"])
    assert torch.equal(load(tmp_path / "out" / "0.video_latent.pth"), expected[0])
    assert (info["height"], info["width"], info["fps"]) == (480, 854, 24.0)


# ---- instructions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def instructions(videos: Path) -> Path:
    root = videos.parent
    (root / "instructions").mkdir()
    for name in ("one", "two"):
        (root / "instructions" / f"{name}.json").write_text(json.dumps({"language_instruction_0": f" lift {name} "}))
    return root


def test_every_video_has_its_instruction(instructions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = instructions / "cached"
    assert call_instructions(instructions, out, "--num_chunks", "4") == 0
    infos = [json.loads((out / f"{number}.info.json").read_text()) for number in range(7)]
    assert [info["video_path"] for info in infos] == ["one.mp4"] * 4 + ["two.mp4"] * 3  # which has no more than three
    assert [info["start_frame"] for info in infos[4:]] == [0, 1, 2]
    assert [info["caption"] for info in infos] == ["lift one"] * 4 + ["lift two"] * 3
    encoder = TinyTextEncoder()
    for number, info in enumerate(infos):
        text = encoder.encode([info["caption"]])[0][0].bfloat16()
        assert torch.equal(load(out / f"{number}.t5_text_embeddings.pth"), text)
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{i}.{kind}" for i in range(7) for kind in KINDS)
    assert "2 texts encoded, 5 saved" in capsys.readouterr().out
    (instructions / "instructions" / "one.json").write_text(json.dumps({"language_instruction_0": "drop one"}))
    with pytest.raises(ConfigError, match=r"windows is '7 of hash \w+' in the cache, '7 of hash \w+' in this run"):
        call_instructions(instructions, out, "--num_chunks", "4")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"one.json: expected a JSON object with the key language_instruction_0 \(.*No such file"),
        (
            '{"instruction": "lift"}',
            r'one.json: no text under the key language_instruction_0; it holds {"instruction": "lift"}',
        ),
        ('{"language_instruction_0": "  "}', "one.json: no text under the key language_instruction_0"),
        ('{"language_instruction_0": ["lift"]}', "one.json: no text under the key language_instruction_0"),
        ('["lift"]', r'one.json: no text under the key language_instruction_0; it holds \["lift"\]'),
        ('{"language', r"one.json: expected a JSON object with the key language_instruction_0 \(Unterminated"),
    ],
)
def test_bad_instructions_are_named(
    instructions: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    path = instructions / "instructions" / "one.json"
    path.unlink() if content is None else path.write_text(content)
    flags = ["--num_frames", "9", "--num_chunks", "1"]
    assert call_instructions(instructions, instructions / "cached", *flags) == 1  # the other video is prepared
    captured = capsys.readouterr()
    assert re.search(rf"failed: .*one.mp4: .*{message}", captured.err) and "1 samples written" in captured.out
    (instructions / "videos" / "two.mp4").unlink()
    with pytest.raises(DataError, match=rf"no usable video: one.mp4 \(.*{message}"):
        call_instructions(instructions, instructions / "other", *flags)


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

"""`scripts/prepare_dataset.py` and `prepare_instruction_dataset.py` as users run them: files, windows, values."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cosmos_predict.cli.prepare_dataset import latent_shape
from cosmos_predict.data import transforms, video_reader
from cosmos_predict.data.nemo_cache import NemoCacheDataset, read_settings
from cosmos_predict.data.video_folder import VideoFolderDataset
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.embeddings import write_embedding
from cosmos_predict.text_encoders.tiny import TinyTextEncoder
from cosmos_predict.tokenizers.cosmos_video import CosmosVideoTokenizer
from cosmos_predict.tokenizers.dct import DCTTokenizer
from cosmos_predict.tokenizers.load import build_tokenizer
from tests.cli.preparing import KINDS, call, call_instructions, load, write_videos

REPOSITORY = Path(__file__).parents[2]
PUBLISHED_CLIP = REPOSITORY.parent / "shared" / "media" / "clips" / "test_clip_10s.mp4"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path)


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

"""Filters on generated clips: motion, aesthetics with small random models, limits applied again without decoding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cosmos_predict.curate import aesthetic, media
from cosmos_predict.curate.filters import AestheticFilter, MotionFilter
from cosmos_predict.curate.motion import BLOCKS, clip_motion, motion_field, motion_scores
from cosmos_predict.curate.records import DATASET
from cosmos_predict.curate.stage import Clip, Video
from cosmos_predict.data.video_reader import probe, read_frames, write_video
from cosmos_predict.errors import CheckpointError, ConfigError, DataError
from tests.curate.running import options_of, run_command, run_split

FPS = 24.0


def big_shot(seed: int, frames: int, *, moving: bool, noise: int = 0) -> np.ndarray:
    """Return uint8 RGB (frames, 256, 320, 3): coloured blocks that stand still or drift by 3 pixels a frame."""
    generator = np.random.default_rng(seed)
    scene = np.kron(generator.integers(30, 225, (8, 10, 3)), np.ones((32, 32, 1)))
    scene = scene + generator.normal(0, 12, scene.shape)  # texture to follow
    picture = np.stack([np.roll(scene, -3 * step if moving else 0, axis=1) for step in range(frames)])
    picture += generator.integers(-noise, noise + 1, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def transcoded(folder: Path, frames: np.ndarray, fps: float = FPS) -> Clip:
    write_video(folder / "in.mp4", frames, fps)
    footage = media.describe(folder / "in.mp4")
    media.cut(footage, folder / "clip.mp4", 0, len(frames))
    video = Video(str(folder / "in.mp4"), "in.mp4", folder, footage=footage)
    span = (0.0, len(frames) / fps)
    return Clip(video, 0, len(frames), "id", span, path=folder / "clip.mp4", frames=probe(folder / "clip.mp4").frames)


@pytest.mark.parametrize(("moving", "noise"), [(True, 0), (True, 3), (False, 0), (False, 3)])
def test_still_clips_are_rejected_and_moving_ones_kept(tmp_path: Path, moving: bool, noise: int) -> None:
    clip = transcoded(tmp_path, big_shot(1, 96, moving=moving, noise=noise))
    MotionFilter(options_of("--motion-filter", "enable")).process(clip)
    score = clip.scores["motion_score"]
    assert clip.alive == moving and clip.rejected == ("" if moving else "motion"), score
    if moving:  # 3 pixels a frame, one to a few frames back
        assert 2.5 / (256 + 320) < score["global_mean"] < 12 / (256 + 320)


def test_scores_stay_and_limits_are_applied_again(tmp_path: Path) -> None:
    clip = transcoded(tmp_path, big_shot(2, 96, moving=False))
    MotionFilter(options_of("--motion-filter", "score-only")).process(clip)
    assert clip.alive and clip.scores["motion_score"]["global_mean"] < 0.00098
    clip.path.unlink()  # nothing is decoded again
    MotionFilter(options_of("--motion-filter", "enable", "--motion-global-mean-threshold", "-1")).decide(clip)
    assert clip.rejected == ("motion" if clip.scores["motion_score"]["per_patch_min_256"] < 1e-6 else "")
    moving = Clip(
        clip.video, 0, 1, "id", (0, 1), scores={"motion_score": {"global_mean": 0.1, "per_patch_min_256": 0.1}}
    )
    for threshold, rejected in (("0.05", ""), ("0.2", "motion")):
        MotionFilter(options_of("--motion-filter", "enable", "--motion-global-mean-threshold", threshold)).decide(
            moving
        )
        assert moving.rejected == rejected


def test_nothing_to_measure(tmp_path: Path) -> None:
    small = transcoded(tmp_path, big_shot(3, 20, moving=True)[:, :254])
    MotionFilter(options_of("--motion-filter", "enable")).process(small)
    assert small.rejected == "resolution_too_small"
    assert small.scores["motion_score"] == {"global_mean": -1, "per_patch_min_256": -1, "error": small.rejected}
    write_video(tmp_path / "one.mp4", big_shot(3, 1, moving=True), FPS)
    assert clip_motion(tmp_path / "one.mp4")["error"] == "no_motion_frames"
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"text\.mp4: its motion vectors cannot be read"):
        clip_motion(tmp_path / "text.mp4")


def test_fields() -> None:
    def record(w: int, h: int, x: int, y: int, motion: tuple[int, int], scale: int = 4) -> list[int]:
        return [-1, w, h, 0, 0, x, y, 0, *motion, scale]

    rows = [record(16, 16, 0, 0, (12, 16)), record(8, 8, 4, 4, (0, -40)), record(4, 4, 100, 100, (9, 9))]
    field = motion_field(np.array(rows), 256, 256) * 512
    assert field[7, 7] == 10 and field[0, 0] == 10 and field[8, 8] == 0 and field[100, 100] == 0
    assert (
        motion_field(np.array([*rows[1:2], rows[0]]), 256, 256)[0, 0] * 512 == 5
    )  # the last one counts, cut at the edge
    assert motion_field(np.zeros((0, 11)), 256, 256).sum() == 0
    with pytest.raises(ValueError, match="no frame with motion vectors"):
        motion_scores([])


def one_by_one(records: np.ndarray, height: int, width: int) -> np.ndarray:
    """What `motion_field` says, written down block after block."""
    field = np.zeros((height, width))
    for record in records.tolist():
        w, h, x, y, motion_x, motion_y, scale = *record[1:3], *record[5:7], *record[8:]
        left, top = x - w // 2, y - h // 2
        if (w, h) in BLOCKS:
            length = np.hypot(motion_x, motion_y) / max(scale, 1) / (height + width)
            field[max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)] = length
    return field


@pytest.mark.parametrize("step", [1, 3, 4, 8])
def test_fields_of_many_blocks_that_overlap(step: int) -> None:
    """On the grid of encoders (multiples of 4 or 8 from the middle) and off it, over every border, the last one on top."""
    generator = np.random.default_rng(step)
    for height, width in ((70, 45), (64, 64), (33, 129)):
        rows = generator.integers(-60, 60, (200, 11))
        rows[:, 1:3] = generator.choice([[8, 8], [16, 16], [16, 8], [8, 16], [4, 4], [8, 4], [32, 32]], 200)
        corners = step * generator.integers(-30 // step, 150 // step, (200, 2))
        rows[:, 5:7] = corners + rows[:, 1:3] // 2
        rows[:, 10] = generator.integers(0, 5, 200)
        np.testing.assert_array_equal(motion_field(rows, height, width), one_by_one(rows, height, width))


def test_a_rate_at_which_every_sample_would_be_a_key_frame(tmp_path: Path) -> None:
    """32 frames a second, two of them looked at: one of 16, as key frames, which have no vectors."""
    clip = transcoded(tmp_path, big_shot(4, 96, moving=True), fps=32.0)
    score = clip_motion(clip.path)
    assert "error" not in score and 2.5 / (256 + 320) < float(score["global_mean"]) < 12 / (256 + 320)


@pytest.mark.parametrize(
    ("height", "width", "beyond"),
    [
        (1080, 1920, True),
        (1920, 1080, True),
        (384, 640, True),
        (896, 1408, True),
        (256, 256, False),
        (720, 1280, False),
    ],
)
def test_patches_at_the_border(height: int, width: int, beyond: bool) -> None:
    """Sides that are no multiple of 256: the middle of the last patch may lie on the border, and then counts as that."""
    field = np.ones((height, width))
    assert motion_scores([field]) == {"global_mean": 1.0, "per_patch_min_256": 1.0}
    field[:, width - 1] = field[height - 1] = 0.0
    assert motion_scores([field])["per_patch_min_256"] == (0.0 if beyond else 1.0)


def test_frames_come_in_parts(tmp_path: Path) -> None:
    write_video(tmp_path / "in.mp4", big_shot(9, 21, moving=True), FPS)
    parts = [*media.read_parts(tmp_path / "in.mp4", np.arange(0, 21), most=8)]
    assert [len(part) for part in parts] == [8, 8, 5]
    np.testing.assert_array_equal(np.concatenate(parts), read_frames(tmp_path / "in.mp4", range(21)))


@pytest.mark.slow
def test_split_counts_what_filters_reject(tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "still.mp4", big_shot(5, 125, moving=False), FPS)
    write_video(tmp_path / "in" / "moving.mp4", big_shot(6, 125, moving=True), FPS)
    summary = run_split(
        tmp_path / "in", tmp_path / "out", "--motion-filter", "enable", "--captioning-algorithm", "template"
    )
    assert summary["num_clips_passed"] == 1 and summary["num_clips_filtered_by"] == {"motion": 1}
    (meta,) = (
        json.loads(path.read_text())
        for path in (tmp_path / "out" / "metas" / "v0").iterdir()
        if "still" in path.read_text()
    )
    assert meta["rejected"] == "motion" and meta["motion_score"]["global_mean"] < 0.00098 and not meta["valid"]


@pytest.mark.slow
def test_the_filter_command_decodes_no_footage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor any clip, but for the report's pictures: the footage is gone, the clips are empty files, ffmpeg cannot run."""
    for seed, moving in ((5, False), (6, True)):
        write_video(tmp_path / "in" / f"{seed}.mp4", big_shot(seed, 125, moving=moving), FPS)
    output, flags = tmp_path / "out", ["--motion-filter", "score-only", "--captioning-algorithm", "template"]
    assert run_split(tmp_path / "in", output, *flags)["num_clips_passed"] == 2
    shutil.rmtree(tmp_path / "in")
    for path in (output / "clips").iterdir():
        path.unlink()  # its window in the dataset is the same file
        path.touch()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    before = {path.name for path in (output / DATASET / "videos").iterdir()}
    for mode, rejected, counted in (("enable", 1, "{'motion': 1}"), ("score-only", 0, "{}")):
        status, out, err = run_command("filter", str(output), "--motion-filter", mode)
        assert status == 0 and f"num_clips_passed                 {2 - rejected}" in out, err
        assert f"num_clips_filtered_by            {counted}" in out
        assert len({path.name for path in (output / DATASET / "videos").iterdir()} & before) == 2 - rejected


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the download command fills it, with a small random CLIP and a random head."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = CLIPVisionConfig(**size, num_attention_heads=2, image_size=28, patch_size=14, projection_dim=768)
    CLIPVisionModelWithProjection(config).save_pretrained(folder / aesthetic.CLIP)
    (folder / aesthetic.HEAD).mkdir(parents=True)
    save_file(aesthetic.AestheticHead().state_dict(), folder / aesthetic.HEAD / "model.safetensors")
    return folder


def test_aesthetic_filter(weights: Path, tmp_path: Path) -> None:
    frames = np.concatenate([big_shot(7, 48, moving=True), 255 - big_shot(8, 48, moving=True)])
    clip, scores = transcoded(tmp_path, frames), {}
    for reduction in ("min", "mean"):
        flags = [
            "--model-weights-path",
            str(weights),
            "--aesthetic-reduction",
            reduction,
            "--aesthetic-filter",
            "score-only",
        ]
        stage = AestheticFilter(options_of(*flags, "--aesthetic-threshold", "1e9"))
        stage.setup()
        stage.process(clip)
        scores[reduction] = clip.scores["aesthetic_score"]
        assert clip.alive and stage.limits() == {"aesthetic_score": 1e9}
    scorer = aesthetic.AestheticScorer(weights)
    expected = scorer(frames[[0, 24, 48, 72]])  # a frame a second, as decoded but for the encoding
    assert scores["min"] == pytest.approx(float(expected.min()), abs=2e-3)
    assert scores["mean"] == pytest.approx(float(expected.mean()), abs=2e-3) and scores["min"] < scores["mean"]
    for threshold, rejected in ((scores["mean"] - 1, ""), (scores["mean"] + 1, "aesthetic")):
        AestheticFilter(options_of("--aesthetic-threshold", str(threshold))).decide(clip)
        assert clip.rejected == rejected


def test_aesthetic_weights_that_are_absent_or_wrong(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"clip-vit-large-patch14: no weights there; .*models\.py --models aesthetic "
    ):
        AestheticFilter(options_of("--aesthetic-threshold", "3.5", "--model-weights-path", str(tmp_path))).setup()
    (tmp_path / "openai").symlink_to(weights / "openai")
    (tmp_path / aesthetic.HEAD).mkdir(parents=True)
    save_file({"layers.0.weight": torch.zeros(3, 3)}, tmp_path / aesthetic.HEAD / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not the weights of the aesthetic head\nmissing from the file: 9"):
        aesthetic.AestheticScorer(tmp_path)


def test_clip_pixels_are_the_middle_square() -> None:
    frames = np.full((2, 300, 500, 3), 255, np.uint8)
    frames[:, :, :90] = frames[:, :, 410:] = 0  # outside of it
    pixels = aesthetic.clip_pixels(frames)
    assert pixels.shape == (2, 3, 224, 224)
    white = (1 - np.array(aesthetic.MEAN)) / np.array(aesthetic.STD)
    np.testing.assert_allclose(pixels[0].mean(dim=(1, 2)).numpy(), white, rtol=1e-4)


@pytest.mark.parametrize("shape", [(300, 450), (271, 481), (480, 641), (1080, 607), (225, 224), (97, 341)])
def test_clip_pixels_are_those_of_torchvision(shape: tuple[int, int]) -> None:
    from torchvision.transforms import v2

    frames = np.random.default_rng(1).integers(0, 256, (1, *shape, 3), np.uint8)
    steps = [v2.Resize(224, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(224)]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(aesthetic.MEAN, aesthetic.STD)]
    expected = v2.Compose(steps)(torch.from_numpy(frames).permute(0, 3, 1, 2))
    torch.testing.assert_close(aesthetic.clip_pixels(frames), expected)

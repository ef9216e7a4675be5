"""Robot episodes with instructions: reading, what is unusable and why, embeddings by their script, training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cosmos_predict.data.bridge import BridgeInstructionDataset
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import DataError
from cosmos_predict.io.embeddings import read_embedding
from cosmos_predict.text_encoders.tiny import TinyTextEncoder
from tests.data.conftest import counting_frames, frame_numbers
from tests.data.test_captions import run
from tests.goldens.run_case import DEFAULT_MEDIA
from tests.training.tiny_run import run as train

SCRIPT = "get_t5_embeddings_from_bridge.py"


def make_bridge(folder: Path, episodes: dict[str, tuple[int, str]], split: str = "train") -> Path:
    """Write a split: {id: (frames, instruction)}."""
    for name, (count, text) in episodes.items():
        video = f"videos/{split}/{name}/rgb.mp4"
        write_video(folder / video, counting_frames(count), fps=3, quality=9)
        annotation = folder / "annotation" / split / f"{name}.json"
        annotation.parent.mkdir(parents=True, exist_ok=True)
        content = {"texts": [text, "another"], "videos": [{"video_path": video}], "state": [[0.0] * 7] * count}
        annotation.write_text(json.dumps(content))
    return folder


def embed(folder: Path, *flags: str) -> Any:
    return run(SCRIPT, "--dataset_path", str(folder), "--text_encoder", "tiny", *flags)


def test_samples_of_a_split(tmp_path: Path) -> None:
    episodes = {"10": (20, "open the drawer"), "9": (17, "put it back"), "8": (7, "too short")}
    folder = make_bridge(tmp_path, episodes)
    make_bridge(folder, {"77": (20, "wave")}, split="val")
    for subset in ("train", "val"):
        done = embed(folder, "--subset", subset)
        assert done.returncode == 0, done.stderr
    assert f"{folder}/annotation/val: 1 written, 0 skipped" in done.stdout
    assert read_embedding(folder / "annotation" / "train" / "9.pickle").shape == (len("put it back") + 1, 1024)
    dataset = BridgeInstructionDataset(folder, 9, (24, 32), seed=3)
    assert {clip.name for clip in dataset.clips} == {"9", "10"}
    assert dict(dataset.report.skipped) == {"train/8/rgb.mp4": "clip too short: 7 frames, a window of 9 needs 9"}
    seen = set()
    for number in range(12):
        sample = dataset[number]
        name, start = sample["__key__"], int(sample["video_name"]["start_frame_id"])
        assert sample["video_name"]["video_path"] == str(folder / f"videos/train/{name}/rgb.mp4")
        assert frame_numbers(sample["video"].permute(1, 2, 3, 0).numpy()) == list(range(start, start + 9))
        assert sample["fps"] == 3.0 and sample["image_size"].tolist() == [24, 32, 24, 32]
        assert int(sample["t5_text_mask"].sum()) == len(episodes[name][1]) + 1
        seen.add((name, start))
    assert len(seen) > 6
    assert [clip.name for clip in BridgeInstructionDataset(folder, 9, (24, 32), split="val").clips] == ["77"]
    windows = dataset.windows(next(clip for clip in dataset.clips if clip.name == "9"))
    assert windows[:, 0].tolist() == list(range(9))


def test_text_is_made_at_the_start_where_files_are_missing(tmp_path: Path) -> None:
    folder = make_bridge(tmp_path, {"1": (9, "lift")})
    dataset = BridgeInstructionDataset(folder, 9, (24, 32), text_encoder=TinyTextEncoder())
    assert int(dataset[0]["t5_text_mask"].sum()) == len("lift") + 1


def test_unusable_annotations_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotation/train: no annotations; expected annotation/train/ID.json"):
        BridgeInstructionDataset(tmp_path, 9, (24, 32))
    with pytest.raises(DataError, match="unknown split 'dev'; known: train, val, test"):
        BridgeInstructionDataset(tmp_path, 9, (24, 32), split="dev")
    folder = make_bridge(tmp_path, {name: (12, f"episode {name}") for name in "abcdefg"})
    with pytest.raises(DataError, match=r"no text embeddings; make them with: python scripts/get_t5_embeddings_from_b"):
        BridgeInstructionDataset(folder, 9, (24, 32))
    broken = {
        "b": ("{", "cannot be read as JSON"),
        "c": ("[]", "expected a mapping with the keys texts and videos, got a list"),
        "d": ('{"texts": []}', "no instruction: expected `texts`"),
    }
    for name, (content, _) in broken.items():
        (folder / "annotation" / "train" / f"{name}.json").write_text(content)
    (folder / "videos" / "train" / "e" / "rgb.mp4").unlink()
    done = embed(folder)
    assert done.returncode == 1 and "4 written" in done.stdout
    assert all(f"{name}.json: {reason}" in done.stderr for name, (_, reason) in broken.items())
    (folder / "annotation" / "train" / "f.pickle").unlink()
    dataset = BridgeInstructionDataset(folder, 9, (24, 32), max_bad_share=0.7)
    reasons = dict(dataset.report.skipped)
    assert {clip.name for clip in dataset.clips} == {"a", "g"}
    assert "cannot be read as JSON" in reasons["train/b.json"] and "no video of camera 0" in reasons["train/d.json"]
    assert "no such file" in reasons["train/e/rgb.mp4"].lower()
    assert "no embedding annotation/train/f.*: python scripts/" in reasons["train/f/rgb.mp4"]
    with pytest.raises(DataError, match=r"4 of 7 clips cannot be read, more than max_bad_share=0.1: train/b.json"):
        BridgeInstructionDataset(folder, 9, (24, 32))


def test_training_on_it(tmp_path: Path) -> None:
    folder = make_bridge(tmp_path / "data", {"1": (20, "lift"), "2": (18, "drop")})
    assert embed(folder).returncode == 0
    dataset = "dataloader_train.dataset"
    target = "cosmos_predict.data.bridge.BridgeInstructionDataset"
    options = [f"{dataset}._target_={target}", f"+{dataset}.dataset_dir={folder}", f"+{dataset}.split=train"]
    trainer = train(tmp_path, *options, "trainer.max_iter=2")
    assert trainer.progress.iteration == 2 and type(trainer.dataset) is BridgeInstructionDataset


@pytest.mark.skipif(not DEFAULT_MEDIA.is_dir(), reason=f"sample clips not found at {DEFAULT_MEDIA}")
def test_a_real_episode() -> None:
    """The published sample 2 of an episode, but for its size and its stated rate (see the golden bridge_sample)."""
    encoder = TinyTextEncoder()
    dataset = BridgeInstructionDataset(DEFAULT_MEDIA / "bridge", 13, (64, 80), text_encoder=encoder, shuffle=False)
    clip = next(clip for clip in dataset.clips if clip.name == "5873")
    windows = dataset.windows(clip)
    assert len(windows) == 4 and windows[2].tolist() == list(range(2, 15))
    assert dataset.load(clip, windows[2])["video"].shape == (3, 13, 64, 80)

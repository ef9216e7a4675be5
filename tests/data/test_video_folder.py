"""The video folder dataset on real small mp4s: a sample's contents, determinism, what is skipped, replaced, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loguru import logger

from cosmos_predict.data import probe_index, video_folder
from cosmos_predict.data.loader import build_dataloader
from cosmos_predict.data.video_folder import VideoFolderDataset
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import DataError, UnsafeFileError
from cosmos_predict.io.embedding_index import EmbeddingIndex, fingerprint
from cosmos_predict.io.embeddings import write_embedding
from tests.data.conftest import counting_frames, frame_numbers

Folder = Callable[..., Path]


def open_folder(folder: Path, **options: Any) -> VideoFolderDataset:
    return VideoFolderDataset(folder, **{"num_frames": 9, "video_size": (24, 32), **options})


def shown(sample: dict[str, Any]) -> list[int]:
    return frame_numbers(sample["video"].permute(1, 2, 3, 0).numpy())


def damage(path: Path) -> None:
    path.write_bytes(b"not a video any more")


@pytest.fixture
def log() -> Any:
    lines: list[str] = []
    handle = logger.add(lambda message: lines.append(str(message)), level="INFO", format="{level}: {message}")
    yield lines
    logger.remove(handle)


def test_a_sample_has_the_published_keys(make_folder: Folder) -> None:
    dataset = open_folder(make_folder({"a": 20}, tokens=5))
    sample = dataset[17]
    assert sample["video"].shape == (3, 9, 24, 32) and sample["video"].dtype == torch.uint8
    assert sample["video"].is_contiguous()
    start = int(sample["video_name"]["start_frame_id"])
    assert shown(sample) == list(range(start, start + 9))
    text, mask = sample["t5_text_embeddings"], sample["t5_text_mask"]
    assert text.shape == (512, 1024) and text.dtype == torch.float32
    assert (text[:5] == 1).all() and (text[5:] == 0).all()
    assert mask.dtype == torch.int64 and mask.tolist() == [1] * 5 + [0] * 507
    assert sample["fps"] == 10.0 and sample["num_frames"] == 9
    assert sample["image_size"].tolist() == [24, 32, 24, 32] and sample["image_size"].dtype == torch.int64
    assert sample["padding_mask"].shape == (1, 24, 32) and sample["padding_mask"].sum() == 0
    assert sample["sample_number"].dtype == torch.int64 and int(sample["sample_number"]) == 17


def test_samples_depend_on_seed_and_number_only(make_folder: Folder) -> None:
    folder = make_folder({"a": 20, "b": 25, "c": 30})
    one, again, other = (open_folder(folder, seed=seed) for seed in (1, 1, 2))
    _ = again[5], again[0]  # what was read before must not matter
    assert all(torch.equal(one[n]["video"], again[n]["video"]) for n in range(6))
    assert any(one[n]["video_name"] != other[n]["video_name"] for n in range(6))
    epoch = [one[n]["video_name"]["video_path"] for n in range(3)]
    assert len(set(epoch)) == 3


def test_batches_of_workers_equal_those_of_one_process(make_folder: Folder) -> None:
    dataset = open_folder(make_folder({"a": 20, "b": 25}))
    one, two = (iter(build_dataloader(dataset, 2, start_sample=4, num_workers=workers)) for workers in (0, 2))
    for _ in range(2):
        a, b = next(one), next(two)
        assert a["video"].shape == (2, 3, 9, 24, 32) and torch.equal(a["video"], b["video"])
        assert a["video_name"] == b["video_name"] and torch.equal(a["sample_number"], b["sample_number"])


def test_fps_and_interval(make_folder: Folder) -> None:
    folder = make_folder({"a": 33})
    half = open_folder(folder, fps=5)[0]
    assert half["fps"] == 5.0 and set(np.diff(shown(half))) == {2}
    third = open_folder(folder, sequence_interval=3)[0]
    assert third["fps"] == pytest.approx(10 / 3) and set(np.diff(shown(third))) == {3}
    with pytest.raises(DataError, match="excludes sequence_interval"):
        open_folder(folder, fps=5, sequence_interval=2)


def test_pad_marks_its_padding(make_folder: Folder) -> None:
    sample = open_folder(make_folder({"a": 9}), video_size=(24, 48), fit="pad")[0]
    assert sample["image_size"].tolist() == [24, 48, 24, 32]
    assert sample["padding_mask"].sum() == 24 * 16 and sample["padding_mask"][0, 0, 0] == 1


def test_unusable_clips_are_skipped_and_named(make_folder: Folder, log: list[str]) -> None:
    folder = make_folder({"good": 20, "short": 8, "silent": 20, "wordless": 20, "broken": 20})
    (folder / "t5_xxl" / "silent.pickle").unlink()
    (folder / "t5_xxl" / "wordless.pickle").unlink()
    (folder / "metas" / "wordless.txt").unlink()
    (folder / "videos" / "broken.mp4").write_bytes(b"nothing")
    (folder / "videos" / "GOOD2.MP4").write_bytes((folder / "videos" / "good.mp4").read_bytes())
    write_embedding(folder / "t5_xxl" / "GOOD2.safetensors", np.ones((3, 1024), np.float16))
    (folder / "videos" / "notes.txt").write_text("not a video")
    dataset = open_folder(folder)
    assert [clip.name for clip in dataset.clips] == ["GOOD2", "good"]
    report = dataset.report
    assert (report.found, report.usable, report.frames) == (6, 2, 40) and report.hours == pytest.approx(4 / 3600)
    reasons = dict(report.skipped)
    assert "clip too short: 8 frames, a window of 9 needs 9" in reasons["short.mp4"]
    assert "no embedding t5_xxl/silent.*: python scripts/get_t5_embeddings.py --dataset_path" in reasons["silent.mp4"]
    assert reasons["wordless.mp4"].startswith("no caption metas/wordless.txt and no embedding")
    assert "not a readable video" in reasons["broken.mp4"]
    assert any(line.startswith("WARNING") and "2 of 6 clips usable" in line and "short.mp4" in line for line in log)
    with pytest.raises(DataError, match=r"strict=True refuses an incomplete folder.*short\.mp4"):
        open_folder(folder, strict=True)


def test_folders_that_cannot_be_used(make_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/videos: no such folder; a dataset is DIR/videos/\*\.mp4"):
        open_folder(tmp_path / "nowhere")
    folder = make_folder({"a": 8})
    with pytest.raises(DataError, match=rf"no such folder; .*; is {folder} meant\?"):
        open_folder(folder.parent)
    with pytest.raises(DataError, match=r"no usable clip.*a\.mp4 \(clip too short"):
        open_folder(folder)
    (folder / "t5_xxl" / "a.pickle").unlink()
    with pytest.raises(DataError, match=f"make them with: python scripts/get_t5_embeddings.py --dataset_path {folder}"):
        open_folder(folder)
    (folder / "videos" / "a.mp4").unlink()
    with pytest.raises(DataError, match="no video in it"):
        open_folder(folder)
    with pytest.raises(DataError, match="unknown fit policy"):
        open_folder(folder, fit="zoom")
    with pytest.raises(DataError, match=r"video_size must be \[height, width\]"):
        open_folder(folder, video_size=(24,))


def test_a_clip_that_fails_later_is_replaced_the_same_way_every_time(make_folder: Folder, log: list[str]) -> None:
    folder = make_folder(dict.fromkeys("abcd", 20))
    datasets = [open_folder(folder) for _ in range(2)]
    damage(folder / "videos" / "b.mp4")
    names = [[Path(dataset[n]["video_name"]["video_path"]).stem for n in range(8)] for dataset in datasets]
    assert names[0] == names[1] and "b" not in names[0]
    bad = [clip.name for clip in datasets[0].clips].index("b")
    assert list(datasets[0].bad.reasons) == [bad]
    warnings = [line for line in log if "replaced by another clip" in line]
    assert len(warnings) == 2 and all("b.mp4" in line and "not a readable video" in line for line in warnings)
    assert int(datasets[0][3]["sample_number"]) == 3


def test_too_many_failures_are_an_error(make_folder: Folder) -> None:
    folder = make_folder(dict.fromkeys("abcd", 20))
    dataset = open_folder(folder)
    for name in "abc":
        damage(folder / "videos" / f"{name}.mp4")
    with pytest.raises(DataError, match=r"2 of 4 clips cannot be read, more than max_bad_share=0\.1: .*\.mp4 \("):
        for number in range(4):
            dataset[number]
    dataset.bad.strict = True
    with pytest.raises(DataError, match=r"\.mp4: not a readable video"):
        for number in range(4):
            dataset[number]


def test_a_bad_embedding_is_replaced_but_an_unsafe_one_is_an_error(make_folder: Folder) -> None:
    folder = make_folder({"a": 12, "b": 12, "c": 12})
    np.save(folder / "t5_xxl" / "b.npy", np.ones((3, 7), np.float32))
    (folder / "t5_xxl" / "b.pickle").unlink()
    dataset = open_folder(folder)
    assert all("b.mp4" not in dataset[n]["video_name"]["video_path"] for n in range(3))
    assert "(3, 7)" in next(iter(dataset.bad.reasons.values()))
    (folder / "t5_xxl" / "a.pickle").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UnsafeFileError):
        for number in range(3):
            dataset[number]


def test_large_folders_keep_an_index(make_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder({"a": 12, "b": 12})
    assert not (folder / probe_index.INDEX_NAME).exists()
    monkeypatch.setattr(probe_index, "INDEX_FROM", 2)
    first = open_folder(folder)
    assert (folder / probe_index.INDEX_NAME).is_file()
    monkeypatch.setattr(video_folder.video_reader, "probe", lambda path: pytest.fail(f"{path} was opened again"))
    assert open_folder(folder).clips == first.clips
    monkeypatch.undo()
    monkeypatch.setattr(probe_index, "INDEX_FROM", 2)
    write_video(folder / "videos" / "a.mp4", counting_frames(15), fps=10)
    assert [clip.info.frames for clip in open_folder(folder).clips] == [15, 12]
    (folder / probe_index.INDEX_NAME).write_text("{ not json")
    assert [clip.info.frames for clip in open_folder(folder).clips] == [15, 12]


def test_captions_that_changed_after_their_embedding_are_named(make_folder: Folder, log: list[str]) -> None:
    folder = make_folder({"a": 12, "b": 12, "c": 12})
    for name in "abc":
        (folder / "metas" / f"{name}.txt").touch()
    index = EmbeddingIndex("", {name: fingerprint(f"clip {name}") for name in "abc"})
    index.write(folder / "t5_xxl")
    open_folder(folder)
    assert not any("changed after" in line for line in log)
    (folder / "metas" / "b.txt").write_text("another text\n")
    (folder / "metas" / "c.txt").write_text("")
    open_folder(folder)
    (line,) = [line for line in log if "changed after" in line]
    assert "2 caption(s)" in line and "(b, c)" in line and "get_t5_embeddings.py --dataset_path" in line
    assert "--text_encoder" not in line
    EmbeddingIndex("tiny", index.captions).write(folder / "t5_xxl")
    (folder / "metas" / "b.txt").write_text("yet another text\n")
    open_folder(folder)
    assert any(f"get_t5_embeddings.py --dataset_path {folder} --text_encoder tiny" in line for line in log)

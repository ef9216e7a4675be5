"""What cases of area data state beside their tensors: names, counts, shapes and digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cosmos_predict.data.agibot import split_windows, window_name
from tests.goldens.adapters.data import multiview_dataset, multiview_windows
from tests.goldens.run_case import DEFAULT_MEDIA, Case
from tests.goldens.test_goldens import CASES


def test_names_of_agibot_windows() -> None:
    case = Case.read(CASES / "data" / "agibot_windows")
    task, episode = case.config["task_id"], case.config["episode_id"]
    for row in case.call["rows"]:
        windows = split_windows(row["duration"], row["window_size"], row["min_last_window"])
        found = [window_name(task, episode, number, window, row["fps"]) for number, window in enumerate(windows)]
        assert found == [window["name"] for window in row["windows"]]


@pytest.mark.skipif(not DEFAULT_MEDIA.is_dir(), reason=f"sample clips not found at {DEFAULT_MEDIA}")
def test_multiview_counts_shapes_and_bytes(tmp_path: Path) -> None:
    case = Case.read(CASES / "data" / "multiview_sample")
    call, parts = case.call, {split: multiview_dataset(case, tmp_path, split) for split in ("train", "val")}
    for split, dataset in parts.items():
        assert len(dataset.clips) == call[f"n_{split}_videos"]
        assert len(multiview_windows(dataset)) == call[f"n_{split}_samples"]
    clip, ids = multiview_windows(parts["train"])[call["sample_index"]]
    assert str(ids[0]) == call["start_frame_id"]
    sample = parts["train"].load(clip, ids)
    video, text = sample["video"], sample["t5_text_embeddings"]
    assert list(video.shape) == call["video_shape"]
    assert hashlib.sha256(video.contiguous().numpy().tobytes()).hexdigest() == call["video_sha256"]
    assert (list(text.shape), str(text.dtype)) == (call["t5_shape"], call["t5_dtype"])
    assert (sample["fps"], sample["num_frames"]) == (call["fps"], call["num_frames_value"])
    assert sample["sample_n_views"] == call["sample_n_views"] and sample["image_size"].tolist() == call["image_size"]
    assert list(sample["padding_mask"].shape) == call["padding_mask_shape"]
    position = sample["ref_cam_view_idx_sample_position"]
    assert position.flatten().tolist() == call["ref_cam_view_idx_sample_position"]

"""Span rules against the golden cases of the published tool, ids included."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cosmos_predict.curate.spans import caption_windows, clip_uuid, fixed_stride, limit_scenes, scenes
from tests.goldens.run_case import Case, compute

CASES = Path(__file__).parents[1] / "goldens" / "cases" / "curate"
RULES = {"min_length_s": 0, "min_length_frames": 0, "max_length_s": 0, "max_length_mode": "stride", "crop_s": 0}


@pytest.mark.parametrize("name", ["scenes", "fixed_stride"])
def test_golden(name: str) -> None:
    outputs = compute(Case.read(CASES / name))
    expected = load_file(CASES / name / "data.safetensors")
    for key, value in expected.items():
        if key.startswith("out."):
            np.testing.assert_array_equal(outputs[key[4:]].numpy(), value, err_msg=key)


def test_ids_of_scenes_and_strides() -> None:
    for k, row in enumerate(Case.read(CASES / "scenes").call["cases"]):
        clips = load_file(CASES / "scenes" / "data.safetensors")[f"out.clips_{k}"]
        assert [clip_uuid(row["input_video"], int(a), int(b)) for a, b in clips] == row["uuids"]
    for row in Case.read(CASES / "fixed_stride").call["cases"]:
        spans = fixed_stride(
            row["duration_s"], row["clip_len_s"], row["stride_s"], row["min_clip_length_s"], row["limit_clips"]
        )
        assert [clip_uuid(row["session_id"], *span) for span in spans] == row["uuids"]


def test_caption_windows() -> None:
    case = Case.read(CASES / "caption_windows")
    expected = load_file(CASES / "caption_windows" / "data.safetensors")
    for k, row in enumerate(case.call["windows"]):
        found = caption_windows(row["total_frames"], row["window_size"], row["remainder_threshold"])
        np.testing.assert_array_equal(np.array(found).reshape(-1, 2), expected[f"out.windows_{k}"])


def test_edges() -> None:
    assert scenes(np.zeros(0, bool)) == [] and scenes(np.zeros(5, bool), entire_scene=False) == []
    assert scenes(np.array([1, 0, 0], bool)) == [(1, 2)]  # a run at the very start closes nothing
    assert scenes(np.ones(3, bool)) == [(0, 3)]
    assert limit_scenes([(0, 10)], 10.0, RULES | {"crop_s": 0.6}) == []

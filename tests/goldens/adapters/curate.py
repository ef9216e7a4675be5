"""Adapters of curation: span rules."""

from __future__ import annotations

from typing import Any

import numpy as np

from cosmos_predict.curate import spans
from tests.goldens.run_case import Case, adapter


@adapter("curate", "scenes")
def curate_scenes(case: Case) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    for k, row in enumerate(case.call["cases"]):
        found = spans.scenes(case.inputs[f"predictions_{k}"].numpy() > 0, row["entire_scene_as_clip"])
        clips = spans.limit_scenes(found, row["fps"], row)
        outputs[f"scenes_{k}"] = np.array(found, np.int32).reshape(-1, 2)
        outputs[f"clips_{k}"] = np.array(clips, np.int32).reshape(-1, 2)
        outputs[f"spans_s_{k}"] = np.array(clips, np.float64).reshape(-1, 2) / row["fps"]
    return outputs


@adapter("curate", "fixed_stride")
def curate_fixed_stride(case: Case) -> dict[str, Any]:
    outputs = {}
    for k, row in enumerate(case.call["cases"]):
        sizes = (row["clip_len_s"], row["stride_s"], row["min_clip_length_s"], row["limit_clips"])
        found = spans.fixed_stride(row["duration_s"], *sizes)
        outputs[f"spans_{k}"] = np.array(found, np.float64).reshape(-1, 2)
    return outputs

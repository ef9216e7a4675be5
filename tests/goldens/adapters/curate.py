"""Adapters of curation: span rules, shot network, motion, aesthetic score, caption windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosmos_predict.curate import aesthetic, motion, spans
from cosmos_predict.curate.filters import MotionFilter
from cosmos_predict.curate.stage import Clip, Video
from cosmos_predict.curate.transnet import TransNetV2, transition_probabilities
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


@adapter("curate", "caption_windows")
def curate_caption_windows(case: Case) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    for k, row in enumerate(case.call["windows"]):
        windows = spans.caption_windows(row["total_frames"], row["window_size"], row["remainder_threshold"])
        shown = [spans.shown_frames(window, row["video_fps"], row["sampling_fps"]) for window in windows]
        outputs[f"windows_{k}"] = np.array(windows, np.int32).reshape(-1, 2)
        outputs[f"frame_ids_{k}"] = np.concatenate([np.zeros(0, np.int64), *shown]).astype(np.int32)
    for k, row in enumerate(case.call["sampling"]):
        frames, counts = spans.sample_closest(case.inputs[f"timestamps_{k}"].numpy(), row["rate"])
        outputs |= {f"sample_ids_{k}": frames.astype(np.int32), f"sample_counts_{k}": counts.astype(np.int32)}
    return outputs


@adapter("curate", "motion_filter")
def curate_motion_filter(case: Case) -> dict[str, Any]:
    scores = []
    for k, row in enumerate(case.call["cases"]):
        records = (case.inputs[f"mv_{k}_{j}"].numpy() for j in range(row["frames"]))
        scores.append(motion.motion_scores(motion.motion_field(r, row["height"], row["width"]) for r in records))
    limits = {f"motion_{name}": value for name, value in case.config.items()}
    clips = [Clip(Video("", "", Path()), 0, 1, "", (0.0, 1.0), scores={"motion_score": score}) for score in scores]
    for clip in clips:
        MotionFilter({"motion_filter": "enable", **limits}).decide(clip)
    names = ("global_mean", "per_patch_min_256")
    columns = {name: np.array([score[name] for score in scores]) for name in names}
    return {**columns, "is_small_motion": np.array([not clip.alive for clip in clips], np.uint8)}


@adapter("curate", "aesthetic_head")
@torch.inference_mode()
def curate_aesthetic_head(case: Case) -> dict[str, Any]:
    head = aesthetic.AestheticHead(case.config["dims"])
    head.load_state_dict(case.weights())
    scores = head(case.inputs["embedding"])
    reduced = {f"reduced_{name}": aesthetic.reduce_scores(scores, name) for name in ("min", "mean")}
    return {"scores": scores, **reduced}


def transnet(case: Case) -> TransNetV2:
    network = TransNetV2(**{name: case.config[name] for name in ("rf", "rl", "rs", "rd")})
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    network.load_state_dict({**case.weights(), **counters})
    return network


@adapter("curate", "transnetv2_forward")
@torch.inference_mode()
def curate_transnetv2_forward(case: Case) -> dict[str, Any]:
    network, frames = transnet(case), case.inputs["frames"][None]
    levels = network.features(frames)
    return {
        "probabilities": network(frames)[0, :, None],
        "color_hist_features": network.color_hist_layer(frames)[0],
        "frame_sim_features": network.frame_sim_layer(levels)[0],
        "block2_mean": levels[-1].mean(dim=(3, 4))[0],
    }


@adapter("curate", "transnetv2_windows")
def curate_transnetv2_windows(case: Case) -> dict[str, Any]:
    return {"probabilities": transition_probabilities(transnet(case), [case.inputs["frames"].numpy()])[:, None]}

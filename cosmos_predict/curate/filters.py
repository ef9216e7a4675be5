"""Stages that score clips and reject some: by motion, by aesthetics, by what a vision language model says of them.

What is scored is kept with the clip, so that limits can be changed later without looking at it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cosmos_predict.curate.media import read_parts
from cosmos_predict.curate.motion import clip_motion
from cosmos_predict.curate.spans import sample_closest
from cosmos_predict.curate.stage import Clip, Resources, Stage
from cosmos_predict.curate.vlm import Model, cut_windows, needed_by, prompts, require_weights, watch, yes_or_no
from cosmos_predict.data.video_reader import frame_times
from cosmos_predict.errors import DataError

Options = Mapping[str, Any]


class Filter(Stage):
    """A stage with a mode: "enable" rejects, "score-only" scores and lets everything pass."""

    scope, mode = "clip", "enable"
    score: ClassVar[str]  # the name of what it judges by

    def decide(self, item: Clip) -> None:
        if self.mode == "enable":
            super().decide(item)


class MotionFilter(Filter):
    """Rejects clips in which, or in a part of which, next to nothing moves; and those too small to say (below 256 pixels)."""

    name, score = "motion", "motion_score"

    def __init__(self, options: Options) -> None:
        self.options, self.mode = options, options["motion_filter"]

    def limits(self) -> dict[str, float]:
        least = (self.options["motion_global_mean_threshold"], self.options["motion_per_patch_min_256_threshold"])
        return {"motion_score.global_mean": least[0], "motion_score.per_patch_min_256": least[1]}

    def process(self, item: Clip) -> None:
        sampling = (self.options["motion_decode_target_fps"], self.options["motion_decode_target_duration_ratio"])
        item.scores["motion_score"] = clip_motion(item.path, *sampling)
        self.decide(item)

    def decide(self, item: Clip) -> None:
        super().decide(item)
        if item.rejected == self.name and (reason := item.scores["motion_score"].get("error")):
            item.reject(reason)


class AestheticFilter(Filter):
    """Rejects clips by the lowest, or mean, aesthetic score of a frame a second."""

    name, score, resources = "aesthetic", "aesthetic_score", Resources(gpus=0.25)

    def __init__(self, options: Options) -> None:
        self.mode, self.threshold = options["aesthetic_filter"], options["aesthetic_threshold"]
        self.reduction, self.weights = options["aesthetic_reduction"], Path(options["model_weights_path"])

    def setup(self) -> None:
        from cosmos_predict.curate import aesthetic

        for name in (aesthetic.CLIP, aesthetic.HEAD):
            require_weights(self.weights / name)
        self.scorer, self.reduce = aesthetic.AestheticScorer(self.weights, self.context.device), aesthetic.reduce_scores
        self.workers = 1 if self.context.device == "cpu" else None  # there a network keeps all cores busy

    def limits(self) -> dict[str, float]:
        return {} if self.threshold is None else {"aesthetic_score": self.threshold}

    def process(self, item: Clip) -> None:
        frames, _ = sample_closest(frame_times(item.path).astype(np.float32), 1.0)
        scores = np.concatenate([self.scorer(part).numpy() for part in read_parts(item.path, frames)])
        item.scores["aesthetic_score"] = self.reduce(scores, self.reduction)
        self.decide(item)


class SemanticFilter(Filter):
    """Rejects clips with more than a part of their windows showing what is not wanted, or without a readable answer."""

    name, score = "qwen_semantic", "filtered_windows"

    def __init__(self, options: Options, model: Model) -> None:
        self.options, self.models, self.mode = options, [model], options["vlm_filter"]
        self.resources = needed_by(self.models)
        asked = prompts()
        own = [name.strip() for name in options["vlm_filter_categories"].split(",") if name.strip()]
        self.unwanted = {name: asked["category"].format(category=name) for name in own} or asked["filter"]
        self.questions = self.unwanted if own else {**self.unwanted, **asked["filter-unused"]}

    def setup(self) -> None:
        super().setup()
        self.workers = self.models[0].workers

    def process(self, item: Clip) -> None:
        answers = ask(self.models[0], item, self.questions, self.options)
        reasons = [found if found is None else [name for name in found if name in self.unwanted] for found in answers]
        notes = [{"start_frame": window.start, "end_frame": window.end} for window in item.windows]
        for note, found in zip(notes, reasons, strict=True):
            note |= {"errors": ["malformed_model_output"]} if found is None else {"qwen_rejection_reasons": found}
        item.scores["filtered_windows"] = notes
        self.decide(item)

    def decide(self, item: Clip) -> None:
        windows = item.scores.get("filtered_windows") or []
        found = [window["qwen_rejection_reasons"] for window in windows if "errors" not in window]
        bad = sum(map(bool, found)) > self.options["vlm_filter_rejection_threshold"] * len(windows)
        if self.mode == "enable" and windows and (bad or not found):
            item.reject(self.name)


def ask(model: Model, item: Clip, questions: Mapping[str, str], options: Options) -> list[list[str] | None]:
    """Return, for each window of a clip, the names of the questions that a model answers with yes; None: unreadable."""
    rate, tokens = options["captioning_sampling_fps"], options["captioning_max_output_tokens"]
    prompt = prompts()["questions"].format(questions="\n".join(f"{name}: {text}" for name, text in questions.items()))
    item.windows, found = cut_windows(item, options), list[list[str] | None]()
    for window in item.windows:
        said = model.answer(prompt, watch(item, window, rate), rate, "", tokens)
        try:
            yes = yes_or_no(said.text)
            found.append([name for name in questions if yes.get(name.replace(" ", "_"))])
        except DataError:
            found.append(None)
    return found

"""The last stage: a video's results in their places."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cosmos_predict.curate import media
from cosmos_predict.curate.records import DATASET, Records
from cosmos_predict.curate.stage import Clip, Stage, Video, Window
from cosmos_predict.data.video_reader import probe


class Write(Stage):
    """Puts a video's results in their places: first the record says which files, then they appear.

    A clip that is in its place already (`curate filter` and the like) stays there, and so do its windows,
    and a caption that was edited in the dataset, unless it has just been captioned again.
    """

    name = "write"

    def __init__(self, options: Mapping[str, Any], records: Records) -> None:
        self.options, self.records = options, records

    def process(self, item: Video) -> None:
        made: dict[str, Path | str | None] = {}
        for clip in item.clips:
            if clip.error or not (clip.place or clip.path.name):  # or rejected before it was made
                continue
            place = clip.place or f"{'filtered_clips' if clip.rejected else 'clips'}/{clip.uuid}.mp4"
            meta = json.dumps(self._meta(clip, place), indent=1)
            made |= {place: None if clip.place else clip.path, f"metas/v0/{clip.uuid}.json": meta}
            for window in clip.windows if clip.alive else ():
                made |= self._sample(clip, window)
        self.records.publish(item, made)

    def _sample(self, clip: Clip, window: Window) -> dict[str, Path | str | None]:
        """Return the dataset's files of a window, which is cut out of the clip where that has several."""
        if self.options["generate_cosmos_predict_dataset"] == "disable":
            return {}
        stem, path = f"{clip.uuid}_{window.start}_{window.end}", None
        video, scratch = f"{DATASET}/videos/{stem}.mp4", clip.video.scratch
        if not (clip.place and video in clip.video.outputs):
            path = self.records.output.fetch(clip.place, scratch / f"{clip.uuid}.mp4") if clip.place else clip.path
            if len(clip.windows) > 1:
                whole, path = media.describe(path), scratch / f"{stem}.mp4"
                scratch.mkdir(parents=True, exist_ok=True)
                media.cut(whole, path, window.start, window.end + 1, self.options["transcode_crf"])
        text = window.enhanced if self.options["dataset_caption"] == "enhanced" else window.caption
        if not text:
            return {video: path}
        place = f"{DATASET}/metas/{stem}.txt"
        written = clip.place and clip.texts_stay and place in clip.video.outputs
        edited = written and self.records.output.read(place) not in (None, window.caption, window.enhanced or None)
        return {video: path, place: None if edited else text}

    def _meta(self, clip: Clip, place: str) -> dict[str, Any]:
        """Return what the published tool notes of a clip, and which captioner wrote."""
        model = clip.meta.get("caption_source", self.options["captioning_algorithm"])
        facts, windows, known = clip.video.footage.facts, clip.windows, list(clip.meta)
        meta = {key: clip.meta[key] for key in known[: known.index("num_bytes") + 1]} if known else {}
        if not meta:
            meta = {"span_uuid": clip.uuid, "source_video": clip.video.identity, "duration_span": list(clip.span)}
            meta |= {f"{key}_source": facts[key] for key in ("width", "height", "framerate")}
            meta |= {"clip_location": place, **media.published_facts(probe(clip.path))}
            meta |= {"num_bytes": clip.path.stat().st_size}
        meta = {**meta, **clip.scores, "rejected": clip.rejected}
        texts = [{"start_frame": w.start, "end_frame": w.end, f"{model}_caption": w.caption} for w in windows]
        for text, window in zip(texts, windows, strict=True):
            text |= (
                {f"{self.options['enhance_captions_lm_variant']}_enhanced_caption": window.enhanced}
                if window.enhanced
                else {}
            )
        if clip.rejected.startswith("qwen_"):
            meta["qwen_rejection_stage"] = clip.rejected.removeprefix("qwen_")
        meta |= {"windows": texts, "caption_source": model, "valid": bool(windows) and clip.alive}
        return {**meta, "has_caption": any(window.caption for window in windows)}

"""The last stage: a video's results in their places."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cosmos_predict.curate import media
from cosmos_predict.curate.engine import reason
from cosmos_predict.curate.records import DATASET, EDITED, Records
from cosmos_predict.curate.stage import Clip, Stage, Video, Window
from cosmos_predict.curate.summary import chunk_place, chunk_record
from cosmos_predict.data.video_reader import probe

Made = dict[str, Path | str | None]  # place below the output folder: file, text, or None: it is there already


class Write(Stage):
    """Puts a video's results in their places: first the record says which files, then they appear.

    A clip that is in its place already (`curate filter` and the like) stays there, and so do its windows,
    and a caption that was edited in the dataset, unless it has just been captioned again.
    """

    name = "write"

    def __init__(self, options: Mapping[str, Any], records: Records) -> None:
        self.options, self.records = options, records

    def process(self, item: Video) -> None:
        made, metas = Made(), list[str]()
        for clip in item.clips:
            if clip.lost or not (clip.place or clip.path.name):  # or rejected before it was made
                continue
            try:
                files, meta = self._results(clip)
            except Exception as error:  # of whatever kind: the other clips go on
                if clip.place:  # the video stays as it was written
                    raise
                clip.error = {"stage": self.name, "type": type(error).__name__, "message": reason(error)}
                continue
            made |= files
            metas.append(f"{json.dumps(meta)}\n")
        if metas and self.options["upload_clip_info_in_chunks"]:
            made[f"metas_jsonl/v0/{item.uuid}_0.jsonl"] = "".join(metas)
        made[chunk_place(item.relative)] = json.dumps(chunk_record(item, made), indent=1)
        self.records.publish(item, made)

    def _results(self, clip: Clip) -> tuple[Made, dict[str, Any]]:
        """Return the files of a clip, and its meta."""
        place = clip.place or f"{'filtered_clips' if clip.rejected else 'clips'}/{clip.uuid}.mp4"
        leave_out = self.options["no_upload_clips"]
        made: Made = {} if leave_out else {place: None if clip.place else clip.path}
        edits = list[str | None]()  # of captions that leave the dataset, or have left it
        for window in clip.windows:
            made |= (self._sample(clip, window) | self._preview(clip, window)) if clip.alive else {}
            text = f"{DATASET}/metas/{_stem(clip, window)}.txt"
            now = self._edited(clip, window, text) if text not in made else None
            edits.append(window.edited if text not in made and now is None else now)
        meta = self._meta(clip, "" if leave_out else place, edits)
        made[f"metas/v0/{clip.uuid}.json"] = json.dumps(meta, indent=1)
        return made, meta

    def _edited(self, clip: Clip, window: Window, place: str) -> str | None:
        """Return the caption in the dataset where it was edited there and is to stay, else None."""
        if not (clip.place and clip.texts_stay and place in clip.video.outputs):
            return None
        text = self.records.output.read(place)
        return None if text in (window.caption, window.enhanced or None) else text

    def _fetched(self, clip: Clip) -> Path:
        """Return the clip's mp4 on this machine."""
        clip.video.scratch.mkdir(parents=True, exist_ok=True)
        if clip.place and not clip.path.name:
            clip.path = self.records.output.fetch(clip.place, clip.video.scratch / f"{clip.uuid}.mp4")
        return clip.path

    def _sample(self, clip: Clip, window: Window) -> Made:
        """Return the dataset's files of a window, which is cut out of the clip where that has several.

        A window without a caption has none, unless nobody asked for captions.
        """
        text = window.enhanced if self.options["dataset_caption"] == "enhanced" else window.caption
        text = text if window.edited is None else window.edited
        if self.options["generate_cosmos_predict_dataset"] == "disable" or (clip.error and not text):
            return {}
        stem, path = _stem(clip, window), None
        video, scratch = f"{DATASET}/videos/{stem}.mp4", clip.video.scratch
        if not (clip.place and video in clip.video.outputs):
            path = self._fetched(clip)
            if len(clip.windows) > 1:
                whole, path = media.describe(path), scratch / f"{stem}.mp4"
                encoding = media.encoding(self.options, clip.video.footage)
                media.cut(whole, path, window.start, window.end + 1, **encoding)
        if not text:
            return {video: path}
        place = f"{DATASET}/metas/{stem}.txt"
        return {video: path, place: text if self._edited(clip, window, place) is None else None}

    def _preview(self, clip: Clip, window: Window) -> Made:
        """Return the moving picture of a window, where it is asked for."""
        place = f"previews/{clip.uuid}/{window.start}_{window.end}.webp"
        if not self.options["generate_previews"]:
            return {}
        if clip.place and place in clip.video.outputs:
            return {place: None}
        path, target = self._fetched(clip), clip.video.scratch / f"{clip.uuid}_{window.start}_{window.end}.webp"
        size = (self.options["preview_target_fps"], self.options["preview_height"])
        return {place: media.preview(path, target, window.start, window.end + 1, *size)}

    def _meta(self, clip: Clip, place: str, edits: Sequence[str | None]) -> dict[str, Any]:
        """Return what the published tool notes of a clip, and which captioner wrote. edits: a caption, or None, a window."""
        model = clip.meta.get("caption_source", self.options["captioning_algorithm"])
        rewriter = self.options["enhance_captions_lm_variant"]
        facts, windows, known = clip.video.footage.facts, clip.windows, list(clip.meta)
        meta = {key: clip.meta[key] for key in known[: known.index("num_bytes") + 1]} if known else {}
        if not meta:
            meta = {"span_uuid": clip.uuid, "source_video": clip.video.identity, "duration_span": list(clip.span)}
            meta |= {f"{key}_source": facts[key] for key in ("width", "height", "framerate")}
            meta |= {"clip_location": place, **media.published_facts(probe(clip.path))}
            meta |= {"video_codec": media.video_codec(clip.path), "num_bytes": clip.path.stat().st_size}
        meta |= {"filtered_windows": [], **clip.scores, "rejected": clip.rejected}
        if clip.rejected.startswith("qwen_"):
            meta["qwen_rejection_stage"] = clip.rejected.removeprefix("qwen_")
        errors = ["motion_decode"] if "error" in clip.scores.get("motion_score", {}) else []
        if errors := [*errors, *(["caption"] if clip.error else [])]:
            meta["errors"] = errors
        texts = [{"start_frame": w.start, "end_frame": w.end, f"{model}_caption": w.caption} for w in windows]
        for text, window, edit in zip(texts, windows, edits, strict=True):
            if window.prompt_tokens or window.output_tokens:
                text[f"{model}_prompt_tokens"] = window.prompt_tokens
                text[f"{model}_output_tokens"] = window.output_tokens
            if window.enhanced:
                text[f"{rewriter}_enhanced_caption"] = window.enhanced
            if edit is not None:
                text[EDITED] = edit
        meta |= {"windows": texts, "caption_source": model, "valid": bool(windows) and clip.alive}
        meta["has_caption"] = any(window.caption for window in windows)
        meta["total_prompt_tokens"] = sum(window.prompt_tokens for window in windows)
        return {**meta, "total_output_tokens": sum(window.output_tokens for window in windows)}


def _stem(clip: Clip, window: Window) -> str:
    """Return the name of a window's sample in the dataset."""
    return f"{clip.uuid}_{window.start}_{window.end}"

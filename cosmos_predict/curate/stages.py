"""The stages of `split`: ingest, shots, transcode, captions, write."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cosmos_predict.curate import media, spans
from cosmos_predict.curate.captions import sidecar, template
from cosmos_predict.curate.records import DATASET, Records
from cosmos_predict.curate.shots import content_transitions
from cosmos_predict.curate.stage import Clip, Stage, Video, Window
from cosmos_predict.data.video_reader import probe
from cosmos_predict.io.atomic import atomic_write_text

Options = Mapping[str, Any]  # names as in `options.yaml`, with underscores


class Ingest(Stage):
    """Reads what the file holds; copies what ffmpeg cannot seek in exactly (transport streams, avi) into an mp4."""

    name = "ingest"

    def process(self, item: Video) -> None:
        item.scratch.mkdir(parents=True, exist_ok=True)
        item.footage = media.describe(Path(item.identity))
        if not item.footage.facts["container"].startswith(media.SEEKABLE):
            item.footage = media.describe(media.remux(item.footage.path, item.scratch / "remuxed.mp4"))


class Split(Stage):
    """Finds the clips of a video: by shots, or at a fixed stride. None is shorter than a training sample plus one frame."""

    name = "split"

    def __init__(self, options: Options) -> None:
        self.options = options

    def process(self, item: Video) -> None:
        options, fps, count = self.options, item.footage.fps, item.footage.facts["num_frames"]
        shortest = options["num_frames"] + 1
        if options["splitting_algorithm"] == "fixed-stride":
            length = options["fixed_stride_split_duration"]
            found = spans.fixed_stride(count / fps, length, length, options["fixed_stride_min_clip_length_s"])
            named = [(span, round(span[0] * fps), min(round(span[1] * fps), count), span) for span in found]
            shots = [(start, end) for _, start, end, _ in named]
        else:
            rules = {key.removeprefix("transnetv2_"): value for key, value in options.items()}
            rules["min_length_frames"] = max(rules["min_length_frames"], shortest)
            transitions = content_transitions(media.small_frames(item.footage.path), options["content_threshold"])
            shots = spans.scenes(transitions[:count])
            clips = spans.limit_scenes(shots, fps, rules)
            named = [((start, end), start, end, (start / fps, end / fps)) for start, end in clips]
        made = [Clip(item, start, end, spans.clip_uuid(item.identity, *name), span) for name, start, end, span in named]
        item.clips = [clip for clip in made if clip.end - clip.start >= shortest][: options["limit_clips"] or None]
        if not item.clips:
            longest = max((end - start for start, end in shots), default=0)
            item.footage.facts["no_clips"] = f"{len(shots)} shots, the longest of {longest} frames, before cropping"


class Transcode(Stage):
    """Writes each clip as an mp4 of constant rate, without sound, into the video's scratch folder."""

    name, scope = "transcode", "clip"

    def __init__(self, options: Options) -> None:
        self.crf, self.shortest = options["transcode_crf"], options["num_frames"] + 1

    def process(self, item: Clip) -> None:
        item.path = item.video.scratch / f"{item.uuid}.mp4"
        media.cut(item.video.footage, item.path, item.start, item.end, self.crf)
        item.frames = probe(item.path).frames
        if item.frames < self.shortest:
            item.reject("too short")


class Caption(Stage):
    """Divides each clip into windows and captions them."""

    name, scope = "caption", "clip"

    def __init__(self, options: Options) -> None:
        self.size, self.rest = options["captioning_window_size"], options["captioning_remainder_threshold"]
        captioners = {"sidecar": sidecar, "template": template(options["caption_template"])}
        self.captioner = captioners.get(options["captioning_algorithm"], lambda clip, window: "")

    def process(self, item: Clip) -> None:
        item.windows = [Window(*span) for span in spans.caption_windows(item.frames, self.size, self.rest)]
        for window in item.windows:
            window.caption = self.captioner(item, window)


class Write(Stage):
    """Puts a video's results in their places: first the record says which files, then they appear."""

    name = "write"

    def __init__(self, options: Options, records: Records) -> None:
        self.options, self.records = options, records

    def process(self, item: Video) -> None:
        made: dict[str, Path | str] = {}  # place below the output folder: the file, or its text
        for clip in (clip for clip in item.clips if not clip.error):
            place = f"{'filtered_clips' if clip.rejected else 'clips'}/{clip.uuid}.mp4"
            made |= {place: clip.path, f"metas/v0/{clip.uuid}.json": json.dumps(self._meta(clip, place), indent=1)}
            for window in clip.windows if clip.alive else ():
                made |= self._sample(clip, window)
        self.records.begin_writing(item, list(made))
        for place, source in made.items():
            target = self.records.output / place
            if isinstance(source, str):
                atomic_write_text(target, source)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(source, target)
            except OSError:  # a file system without links
                shutil.copyfile(source, target)

    def _sample(self, clip: Clip, window: Window) -> dict[str, Path | str]:
        """Return the dataset's files of a window, which is cut out of the clip where that has several."""
        if self.options["generate_cosmos_predict_dataset"] == "disable":
            return {}
        stem, path = f"{clip.uuid}_{window.start}_{window.end}", clip.path
        if len(clip.windows) > 1:
            path = clip.video.scratch / f"{stem}.mp4"
            media.cut(media.describe(clip.path), path, window.start, window.end + 1, self.options["transcode_crf"])
        text = {f"{DATASET}/metas/{stem}.txt": window.caption} if window.caption else {}
        return {f"{DATASET}/videos/{stem}.mp4": path, **text}

    def _meta(self, clip: Clip, place: str) -> dict[str, Any]:
        """Return what the published tool notes of a clip, and which captioner wrote."""
        model, facts, windows = self.options["captioning_algorithm"], clip.video.footage.facts, clip.windows
        meta = {"span_uuid": clip.uuid, "source_video": clip.video.identity, "duration_span": list(clip.span)}
        meta |= {f"{key}_source": facts[key] for key in ("width", "height", "framerate")}
        meta |= {"clip_location": place, **media.published_facts(probe(clip.path))}
        meta |= {"num_bytes": clip.path.stat().st_size, **clip.scores, "rejected": clip.rejected}
        texts = [{"start_frame": w.start, "end_frame": w.end, f"{model}_caption": w.caption} for w in windows]
        meta |= {"windows": texts, "caption_source": model, "valid": bool(windows) and clip.alive}
        return {**meta, "has_caption": any(window.caption for window in windows)}

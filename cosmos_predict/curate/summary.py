"""The published records of what was made: of each video's clips, and of all videos.

    OUT/processed_clip_chunks/<path of the video>_0.json   counts and captions of its clips, which are one chunk
    OUT/summary.json                                       totals, and the clips of each video
    OUT/v0/all_window_captions.json                        {video: {clip: {"START_END": caption}}}

All follow from what is recorded and from what lies in the input folder, whoever made it, and when: no time of a run is in them.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cosmos_predict.curate.listing import Inputs
from cosmos_predict.curate.records import AT_ONCE, BATCH, Records
from cosmos_predict.curate.stage import Video, Window, is_lost, score
from cosmos_predict.curate.storage import DATASET, Store
from cosmos_predict.errors import CorruptFileError

SUMMARY, CAPTIONS = "summary.json", "v0/all_window_captions.json"
FILTERS = ("motion", "aesthetic", "qwen_classifier", "qwen_semantic", "artificial_text")
COUNTERS = [*(f"filtered_by_{name}" for name in FILTERS), "passed", "transcoded", "with_embeddings", "with_caption"]
COUNTERS = [f"num_clips_{name}" for name in (*COUNTERS, "with_webp")]
TOKENS = ("total_prompt_tokens", "total_output_tokens")


def chunk_place(relative: str) -> str:
    """Return where the chunk record of a video is."""
    return f"processed_clip_chunks/{relative}_0.json"


def chunk_record(video: Video, outputs: Collection[str]) -> dict[str, Any]:
    """Return the published record of a video's clips; those that failed are not in it. outputs: the files that it has."""
    clips = [clip for clip in video.clips if not clip.lost]
    kept, rejected = [clip for clip in clips if clip.alive], Counter(clip.rejected_by for clip in clips)
    seconds, windows = [clip.span[1] - clip.span[0] for clip in clips], [w for clip in clips for w in clip.windows]
    counts = {f"num_clips_filtered_by_{name}": rejected[name] for name in FILTERS}
    counts |= {"num_clips_passed": len(kept), "num_clips_with_embeddings": 0}
    counts["num_clips_transcoded"] = sum(f"metas/v0/{clip.uuid}.json" in outputs for clip in clips)
    counts["num_clips_with_caption"] = sum(any(window.caption for window in clip.windows) for clip in kept)
    counts["num_clips_with_webp"] = len({place.split("/")[1] for place in outputs if place.startswith("previews/")})

    def texts(of: str) -> dict[str, dict[str, str]]:
        found = {c.uuid: {_name(w): text for w in c.windows if (text := getattr(w, of))} for c in kept}
        return {uuid: named for uuid, named in found.items() if named}

    return {
        **{"video": video.identity, "clip_chunk_index": 0},
        **{name: counts[name] for name in COUNTERS},
        **{"total_clip_duration": sum(seconds), "max_clip_duration": max(seconds, default=0.0)},
        **{"total_prompt_tokens": sum(window.prompt_tokens for window in windows)},
        **{"total_output_tokens": sum(window.output_tokens for window in windows)},
        **{"clips": [c.uuid for c in kept], "filtered_clips": [c.uuid for c in clips if c.rejected]},
        **{"all_windows": texts("caption"), "all_windows_enhanced_caption": texts("enhanced")},
    }


def summarise(
    records: Records, of: Collection[str] | None = None, inputs: Inputs | None = None, captions: bool | None = None
) -> dict[str, Any]:
    """Write `summary.json` and the captions of all videos; return some totals, `errors` {place: message}, `empty` {video without
    a clip: why}, `bare`, `uncaptioned`, the number of kept clips without a caption for some window, and `unscored` {score with a
    limit: kept clips that lack it, or have no number (NaN)}.

    of: the videos whose errors are returned, and of which something should have been kept (`bare`: there are some, and
    nothing is); None: all, and there should be some. inputs: None: as the present summary has them. captions: whether to write
    them; None: where they have been written before.
    """
    totals, rejected, errors, videos = Counter[str](), Counter[str](), {}, dict[str, Any]()
    published, longest, spoken, samples, uncaptioned, left = Counter[str](), 0.0, dict[str, Any](), 0, 0, 0.0
    unscored = Counter[str]()
    told, empty, bare = dict[str, str](), dict[str, str](), of is None or bool(of)
    inputs = present(records) if inputs is None else inputs
    captions = records.output.has(CAPTIONS) if captions is None else captions
    for relative, record, chunk in _chunks(records):
        clips: dict[str, Any] = {} if record["error"] else record["clips"]
        kept = {uuid: clip for uuid, clip in clips.items() if not (clip["rejected"] or is_lost(clip["error"]))}
        dropped = {uuid: clip["rejected"] for uuid, clip in clips.items() if clip["rejected"]}
        values = [(name, score(clip["scores"], name)) for clip in kept.values() for name in record.get("limits", ())]
        unscored.update(name for name, value in values if value is None or value != value)
        seconds = [clips[uuid]["duration"] for uuid in (*kept, *dropped)]
        totals.update({f"num_videos_{record['status']}": 1, "num_clips_passed": len(kept)})
        totals["total_clip_duration"] += sum(seconds)
        longest = max([longest, *seconds])
        rejected.update(dropped.values())
        problems = {relative: record["error"], **{f"{relative} {uuid}": clip["error"] for uuid, clip in clips.items()}}
        found = {where: f"{error['stage']}: {error['message']}" for where, error in problems.items() if error}
        errors |= found
        if of is None or relative in of:
            told, bare = {**told, **found}, bare and not kept
            empty |= {relative: record.get("no_clips", "")} if record["status"] == "empty" else {}
        videos[relative] = {"source_video": record["video"], "processed": False}
        if record["status"] not in ("done", "empty"):
            continue
        counts = {name: chunk.get(name, 0) for name in (*COUNTERS, *TOKENS)}
        published.update({**counts, "num_processed_videos": 1, "num_remuxed_videos": record.get("was_remuxed", False)})
        published["total_video_duration"] += record.get("duration", 0)
        published["total_video_bytes"] += (record.get("input") or [0])[0]
        spoken[relative] = chunk.get("all_windows", {})
        uncaptioned += sum(bool(clip["error"]) or uuid not in spoken[relative] for uuid, clip in kept.items())
        samples += sum(place.startswith(f"{DATASET}/videos/") for place in record.get("outputs", ()))
        left += sum(clip["duration"] for clip in kept.values())
        facts = {key: record[key] for key in ("video_uuid", "num_clip_chunks", "num_total_clips")}
        videos[relative] = {"source_video": record["video"], **facts, "clips": [*kept], "filtered_clips": [*dropped]}
        videos[relative] |= {name: counts[name] for name in COUNTERS}
    if captions:
        records.output.write(CAPTIONS, json.dumps({name: texts for name, texts in spoken.items() if texts}, indent=1))
    waiting = {name: {"source_video": uri, "processed": False} for name, uri in inputs.videos.items()}
    videos = {**waiting, **videos}
    names = ("num_processed_videos", "total_video_duration", "total_video_bytes", "num_remuxed_videos", *TOKENS)
    counts = {"num_input_videos": len(videos), **{name: published[name] for name in names}, "embedding_algorithm": ""}
    counts |= {"max_clip_duration": longest, **{f"total_{name}": published[name] for name in COUNTERS}}
    shown = {**{"num_processed_videos": published["num_processed_videos"]}, **totals, "num_clips_filtered_by": rejected}
    own = {"errors": errors, "num_ignored_files": inputs.num_ignored, "ignored_files": [*inputs.ignored.items()]}
    summary = {**counts, **shown, **own, **{name: videos[name] for name in sorted(videos)}}
    records.output.write(SUMMARY, json.dumps(summary, indent=1))
    shown |= {"num_clips_filtered_by": dict(rejected), "num_samples": samples}
    shown["minutes_kept"] = f"{left / 60:.1f} of {published['total_video_duration'] / 60:.1f}"
    shown |= {"errors": told, "empty": empty, "bare": bare}
    return {**shown, "uncaptioned": uncaptioned, "unscored": dict(unscored)}


class Performance:
    """How long the stages of one run took; several threads may add to it."""

    def __init__(self) -> None:
        self.started, self.videos, self.tokens, self.lock = time.monotonic(), 0, 0, threading.Lock()
        self.stages = defaultdict[str, dict[str, float]](lambda: {"process_time": 0.0, "num_items": 0})

    def add(self, video: Video) -> None:
        """Count a video that is through."""
        with self.lock:
            self.videos += 1
            self.tokens += sum(w.output_tokens for clip in video.clips for w in clip.windows)
            for name, seconds in video.seconds:
                self.stages[name]["process_time"] += seconds
                self.stages[name]["num_items"] += 1

    def write(self, output: Store) -> None:
        """Write `performance_stats_N.json` with the first N that is free."""
        run = time.monotonic() - self.started
        facts = {"num_input_videos_selected": self.videos, "pipeline_run_time": run / 60}
        facts |= {"total_output_tokens": self.tokens, "output_tokens_per_s": self.tokens / run, "stages": self.stages}
        free = (f"performance_stats_{n}.json" for n in itertools.count())
        output.write(next(place for place in free if not output.has(place)), json.dumps(facts, indent=1))


def _chunks(records: Records) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield (video, record, chunk record) of all videos that have a record; {} where the last one is not there."""
    scan = records.scan()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while batch := [*itertools.islice(scan, BATCH)]:
            texts = pool.map(lambda row: records.output.read(chunk_place(row[0])), batch)
            for (name, row), text in zip(batch, texts, strict=True):
                try:
                    yield name, row, dict(json.loads(text or "{}"))
                except (ValueError, TypeError) as error:
                    where = records.output.uri(chunk_place(name))
                    repair = "remove it; curate.py filter, or split --redo all, writes it again"
                    raise CorruptFileError(f"{where}: not a chunk record ({error}); {repair}") from error


def _name(window: Window) -> str:
    return f"{window.start}_{window.end}"


def present(records: Records) -> Inputs:
    """Return the inputs that the present summary names and that have no record; none where there is no summary."""
    try:
        summary: Mapping[str, Any] = json.loads(records.output.read(SUMMARY) or "{}")
        rows: Iterable[tuple[str, Any]] = [row for row in summary.items() if isinstance(row[1], dict)]
        waiting = {name: row["source_video"] for name, row in rows if row.get("processed") is False}
        ignored, count = dict(summary.get("ignored_files", [])), int(summary.get("num_ignored_files", 0))
        return Inputs(waiting, ignored=ignored, num_ignored=count)
    except (ValueError, TypeError, KeyError, AttributeError):  # made again, then
        return Inputs()

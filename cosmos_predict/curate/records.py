"""What was done: one JSON record per video, written last and whole; resume, redo and the summary follow from them.

    OUT/processed_videos/<path of the video>.json     status, options, input, clips with their outcome, outputs
    OUT/summary.json                                  counts over all records, of all shards
    OUT/.work/shard-<I>-<N>/                          scratch of a running process, which holds its lock

status: "done"; "empty" (no clip found); "failed" (or none of its clips came through); "writing" (its process ended while
files were moved: done again).
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cosmos_predict.curate.media import Footage
from cosmos_predict.curate.stage import Clip, Video, Window
from cosmos_predict.curate.storage import DATASET, Store
from cosmos_predict.errors import ConfigError, CorruptFileError
from cosmos_predict.io.embedding_index import EMBEDDING_SUFFIXES
from cosmos_predict.io.lock import hold

FOLDER = "processed_videos"
OWN_KEYS = {"video", "video_uuid", "status", "num_total_clips", "num_clip_chunks", "error", "attempts", "clips"}
OWN_KEYS |= {"input", "options", "limits", "outputs"}  # of a record; the others are facts of the video


class Records:
    """The records of an output folder. options: those that results depend on. shard: I/N. work: scratch, on this machine."""

    def __init__(
        self, output: Store | Path, options: Mapping[str, Any], shard: str = "1/1", work: str | Path = ""
    ) -> None:
        self.output, self.options = output if isinstance(output, Store) else Store(output), dict(options)
        remote = f"curate-{zlib.crc32(self.output.root.encode()):08x}"  # the same one next time
        here = Path(tempfile.gettempdir(), remote) if self.output.remote else Path(self.output.root, ".work")
        self.limits: dict[str, float] = {}  # of scores, in force when a clip was judged
        self.work = Path(os.path.abspath(work or here)) / f"shard-{shard.replace('/', '-')}"

    def read(self, relative: str) -> dict[str, Any]:
        """Return the record of a video, {} where there is none; raises CorruptFileError where it is no JSON object."""
        place = f"{FOLDER}/{relative}.json"
        try:
            text = self.output.read(place)
            return {} if text is None else dict(json.loads(text))
        except (ValueError, TypeError) as error:
            where = self.output.uri(place)
            raise CorruptFileError(
                f"{where}: not a record ({error}); remove it, and its video is done again"
            ) from error

    def videos(self) -> list[str]:
        """Return the relative paths of all videos that have a record."""
        found = (place for place in self.output.files(FOLDER) if place.endswith(".json"))
        return [place.removeprefix(f"{FOLDER}/").removesuffix(".json") for place in found]

    @contextlib.contextmanager
    def lock(self, videos: Iterable[Video]) -> Iterator[None]:
        """Hold the shard's lock, with its scratch folder empty at first and removed in the end.

        Where the last process crashed (a signal of its own, not one that was sent to kill it), the videos that it was at
        count as failed once more, so that one that crashes every time is given up in the end.

        Raises ConfigError where another process has the lock.
        """
        crash, handled = self.work.with_suffix(".crash"), faulthandler.is_enabled()
        refusal = f"{self.output.root}: another process works on it; wait, or give each its --shard"
        with hold(self.work.with_suffix(".lock"), refusal):
            crashed = crash.is_file() and crash.stat().st_size
            for video in videos:
                if crashed and video.scratch.is_dir():
                    video.error = {"stage": "any", "type": "Crash", "message": "the process crashed while it was at it"}
                    self.finish(video)
                    video.error = {}
            shutil.rmtree(self.work, ignore_errors=True)
            with crash.open("w") as stream:
                faulthandler.enable(stream)
                try:
                    yield
                finally:
                    faulthandler.enable() if handled else faulthandler.disable()
            shutil.rmtree(self.work, ignore_errors=True)

    @contextlib.contextmanager
    def lock_all(self) -> Iterator[None]:
        """`lock`, and every shard's that has ever worked in this scratch folder; what their processes left stays."""
        refusal = f"{self.output.root}: another process works on it; wait until split has ended"
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.lock([]))
            for path in {self.work.with_name("shard-1-1.lock"), *self.work.parent.glob("shard-*-*.lock")}:
                stack.enter_context(hold(path, refusal))
            yield

    def todo(self, videos: Iterable[Video], redo: str, max_attempts: int) -> tuple[list[Video], Counter[str]]:
        """Return the videos to work on, and how many others there are by reason.

        A failed video is tried again up to `max_attempts` times. redo: "changed": also those of other options or of a file
        that has changed, which are refused otherwise; "failed": all that failed or have a failed clip; "all".

        Raises ConfigError where options or a file have changed, with the differences.
        """
        chosen, others, changes, there = [], Counter[str](), list[str](), set(self.videos())
        for video in videos:
            record = self.read(video.relative) if video.relative in there else {}
            status = record.get("status", "writing")
            changed = self._changes(video, record) if status != "writing" else []
            failed = status == "failed" or any(clip["error"] for clip in record.get("clips", {}).values())
            again = {"all": True, "changed": bool(changed), "failed": failed}.get(redo, False)
            if changed and not again:
                changes.append(f"{video.relative}: {'; '.join(changed)}")
            elif again or status == "writing" or (status == "failed" and record["attempts"] < max_attempts):
                chosen.append(video)
            else:
                others["given up after repeated failures" if status == "failed" else "done before"] += 1
        if changes:
            shown = "\n  ".join(changes[:5] + ([f"and {len(changes) - 5} more"] if len(changes) > 5 else []))
            raise ConfigError(
                f"{self.output.root} holds results of other options or files:\n  {shown}\n"
                "--redo changed makes those again; or choose another output folder"
            )
        return chosen, others

    def _changes(self, video: Video, record: Mapping[str, Any]) -> list[str]:
        old, new = record["options"], self.options
        keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        found = [f"--{key.replace('_', '-')} was {old.get(key)}, is {new.get(key)}" for key in keys]
        same = (record["video"], record["input"]) == (video.identity, video.stamp)
        return found + ([] if same else [f"the file has changed, or was {record['video']}"])

    def publish(self, video: Video, made: Mapping[str, Path | str | None]) -> None:
        """Bring a video's results to their places; what an earlier run left of it and is no longer made goes first.

        made: place below the output folder: the file, its text, or None where it is there already.
        """
        old, video.outputs = set(self.read(video.relative).get("outputs", [])), sorted(made)
        self._write(video, "writing", sorted(old | set(video.outputs)))
        self._remove(old - set(video.outputs))
        for place, source in made.items():
            if isinstance(source, str):
                self.output.write(place, source)
            elif source is not None:
                self.output.put(place, source)

    def finish(self, video: Video) -> None:
        """Write the record of a video whose stages are through, and remove its scratch folder."""
        failed = video.error or (video.clips and all(clip.error for clip in video.clips))
        outputs = [] if video.error else video.outputs
        self._remove(set(self.read(video.relative).get("outputs", [])) - set(outputs))
        self._write(video, "failed" if failed else "done" if video.clips else "empty", outputs)
        shutil.rmtree(video.scratch, ignore_errors=True)

    def _write(self, video: Video, status: str, outputs: list[str]) -> None:
        attempts = int(self.read(video.relative).get("attempts", 0))
        record = {
            **{"video": video.identity, "video_uuid": video.uuid, "status": status, **video.footage.facts},
            **{"num_total_clips": len(video.clips), "num_clip_chunks": 1, "error": video.error},
            "attempts": attempts + 1 if status == "failed" else 0 if status == "done" else attempts,
            "clips": {clip.uuid: clip.outcome() for clip in video.clips},
            **{"input": video.stamp, "options": self.options, "limits": self.limits, "outputs": outputs},
        }
        self.output.write(f"{FOLDER}/{video.relative}.json", json.dumps(record, indent=1))

    def _remove(self, outputs: Iterable[str]) -> None:
        for place in outputs:
            self.output.remove(place)
            if place.startswith(f"{DATASET}/videos/"):  # and what was embedded of it
                for suffix in EMBEDDING_SUFFIXES:
                    self.output.remove(f"{DATASET}/t5_xxl/{Path(place).stem}{suffix}")

    def restore(self, relative: str) -> Video:
        """Return a video as its record and its clips' metas say; their files stay where they are (`Clip.place`)."""
        record = self.read(relative)
        facts = {key: value for key, value in record.items() if key not in OWN_KEYS}
        video = Video(record["video"], relative, self.work, record["input"], footage=Footage(facts=facts))
        video.outputs, video.error = list(record["outputs"]), record["error"]
        for name, known in record["clips"].items():
            start, end = known["frames"]
            clip = Clip(video, start, end, name, (0.0, 0.0), scores=known["scores"], error=known["error"])
            clip.rejected, clip.rejected_by = known["rejected"], known.get("rejected_by", "")
            video.clips.append(clip)
            if text := self.output.read(f"metas/v0/{name}.json"):
                try:
                    self._restore_meta(clip, text)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    meta, made = self.output.uri(f"metas/v0/{name}.json"), self.output.uri(f"{FOLDER}/{relative}.json")
                    repair = f"remove {made}, and split makes the video again"
                    raise CorruptFileError(f"{meta}: not a clip's meta ({error!r}); {repair}") from error
            clip.span = (clip.meta or {"duration_span": (0.0, known["duration"])})["duration_span"]
        return video

    @staticmethod
    def _restore_meta(clip: Clip, text: str) -> None:
        clip.meta = json.loads(text)
        clip.place, clip.frames = clip.meta["clip_location"], clip.meta["num_frames"]
        for row in clip.meta["windows"]:
            caption = row.get(f"{clip.meta['caption_source']}_caption", "")
            enhanced = [text for key, text in row.items() if key.endswith("_enhanced_caption")]
            clip.windows.append(Window(row["start_frame"], row["end_frame"], caption, *enhanced))

    def summarise(self, of: Collection[str] | None = None) -> dict[str, Any]:
        """Write `summary.json`: totals, and the clips of each video; return the totals, `errors` {place: message}, `bare`.

        of: the videos whose errors are returned, and of which something should have been kept (`bare`: there are some, and
        nothing is); None: all, and there should be some.
        """
        totals, rejected, errors, videos = Counter[str](), Counter[str](), {}, {}
        told, bare = dict[str, str](), of is None or bool(of)
        for relative in self.videos():
            record = self.read(relative)
            clips: dict[str, Any] = {} if record["error"] else record["clips"]
            kept = {uuid: clip for uuid, clip in clips.items() if not clip["rejected"] and not clip["error"]}
            dropped = {uuid: clip["rejected"] for uuid, clip in clips.items() if clip["rejected"]}
            totals.update({f"num_videos_{record['status']}": 1, "num_clips_passed": len(kept)})
            totals["total_clip_duration"] += sum(clip["duration"] for clip in kept.values())
            rejected.update(dropped.values())
            problems = {
                relative: record["error"],
                **{f"{relative} {uuid}": clip["error"] for uuid, clip in clips.items()},
            }
            found = {where: f"{error['stage']}: {error['message']}" for where, error in problems.items() if error}
            errors |= found
            if of is None or relative in of:
                told, bare = {**told, **found}, bare and not kept
            videos[relative] = {key: record[key] for key in ("video_uuid", "num_total_clips", "num_clip_chunks")}
            videos[relative] |= {"source_video": record["video"], "clips": [*kept], "filtered_clips": [*dropped]}
        counts = {"num_processed_videos": len(videos), **totals, "num_clips_filtered_by": dict(rejected)}
        self.output.write("summary.json", json.dumps({**counts, "errors": errors, **videos}, indent=1))
        return {**counts, "errors": told, "bare": bare}

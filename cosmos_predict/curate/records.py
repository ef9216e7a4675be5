"""What was done: one JSON record per video, written last and whole; resume, redo and `summary` follow from them.

    OUT/processed_videos/<path of the video>.json     status, options, input, clips with their outcome, outputs
    OUT/.work/shard-<I>-<N>/                          scratch of a running process, which holds its lock
    OUT/.work/in-hand/<path of the video>.json        while a process works on it; what one that was killed leaves

status: "done"; "empty" (no clip found); "failed" (or none of its clips came through); "writing" (its process ended while
files were moved: done again); "revising" (`filter`, `caption` or `dedup` ended so; it says what was before: the next one of these goes on).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from cosmos_predict.curate.changes import Changes, differences
from cosmos_predict.curate.media import Footage
from cosmos_predict.curate.stage import Clip, Video, Window
from cosmos_predict.curate.storage import DATASET, Store
from cosmos_predict.errors import ConfigError, CorruptFileError
from cosmos_predict.io.embedding_index import EMBEDDING_SUFFIXES
from cosmos_predict.io.lock import hold

FOLDER = "processed_videos"
OWN_KEYS = {"video", "video_uuid", "status", "num_total_clips", "num_clip_chunks", "error", "attempts", "clips"}
OWN_KEYS |= {"input", "options", "limits", "outputs"}  # of a record; the others are facts of the video
EDITED = "edited_caption"  # key of a window's row in a clip's meta
AT_ONCE, BATCH = 16, 512  # records that are read at a time; that are held
CRASH = "Crash"  # type of the error of a video whose process died: it is tried in a process of its own from then on
_NOTING = threading.RLock()


class Records:
    """The records of an output folder. options: those that results depend on. shard: I/N. work: scratch, on this machine."""

    def __init__(
        self, output: Store | Path, options: Mapping[str, Any], shard: str = "1/1", work: str | Path = ""
    ) -> None:
        self.output, self.options = output if isinstance(output, Store) else Store(output), dict(options)
        remote = f"curate-{zlib.crc32(self.output.root.encode()):08x}"  # the same one next time
        self.locks = Path(tempfile.gettempdir(), remote) if self.output.remote else Path(self.output.root, ".work")
        self.in_hand = Store(self.output.uri(".work/in-hand"), self.output.profile)
        self.left = set[str]()  # videos that were in hand when a process died
        self.crashed = set[str]()  # those of `todo` whose process died the last time
        self.before: dict[str, Any] = {}  # options of results that `todo` has met
        self.marked = dict[str, bool]()  # those in hand of this process: whether it was one alone
        self.limits: dict[str, float] = {}  # of scores, in force when a clip was judged
        self.work = Path(os.path.abspath(work or self.locks)) / f"shard-{shard.replace('/', '-')}"

    def read(self, relative: str) -> dict[str, Any]:
        """Return the record of a video, {} where there is none; raises CorruptFileError where it is no JSON object."""
        place = f"{FOLDER}/{relative}.json"
        try:
            text = self.output.read(place)
            return {} if text is None else dict(json.loads(text))
        except (ValueError, TypeError) as error:
            repair = "remove it, and its video is done again"
            raise CorruptFileError(f"{self.output.uri(place)}: not a record ({error}); {repair}") from error

    def videos(self) -> list[str]:
        """Return the relative paths of all videos that have a record."""
        found = (place for place in self.output.files(FOLDER) if place.endswith(".json"))
        return [place.removeprefix(f"{FOLDER}/").removesuffix(".json") for place in found]

    def scan(self, of: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (video, record) of all videos that have a record, or of those asked for; {} where there is none."""
        known = dict.fromkeys(self.videos())
        names = [*known] if of is None else of
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for start in range(0, len(names), BATCH):
                batch = names[start : start + BATCH]
                found = pool.map(lambda name: self.read(name) if name in known else {}, batch)
                yield from (row for row in zip(batch, found, strict=True) if row[1] or of is not None)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the shard's lock, with its scratch folder empty at first and removed in the end.

        Raises ConfigError where another process has the lock, or one holds `lock_all`.
        """
        refusal = f"{self.output.root}: another process works on it; wait, or give each its --shard"
        with self.share(), hold(self.locks / f"{self.work.name}.lock", refusal), self._scratch():
            main = threading.current_thread() is threading.main_thread()
            before = signal.signal(signal.SIGTERM, self._terminate) if main else None
            try:
                yield
            finally:
                if main:
                    signal.signal(signal.SIGTERM, before)
                self._clear()

    def _clear(self) -> None:
        """Remove the notes of videos in hand: the process ends, it is not killed, so none of them is to blame."""
        for relative, alone in [*self.marked.items()]:
            self._unmark(relative, keep=alone)

    def _terminate(self, *_: object) -> NoReturn:
        """End the process at once, as SIGTERM does (schedulers send it), but for the notes."""
        try:
            _NOTING.acquire(timeout=5)  # no thread writes a note behind this
            self._clear()
        finally:
            os._exit(128 + signal.SIGTERM)

    @contextlib.contextmanager
    def lock_all(self) -> Iterator[None]:
        """Keep every shard away, and whoever else revises; their scratch folders and what they left stay."""
        refusal = f"{self.output.root}: another process works on it; wait until split, filter, ... has ended"
        with hold(self.locks / "all.lock", refusal), self._scratch():
            yield

    @contextlib.contextmanager
    def share(self) -> Iterator[None]:
        """Keep those away that hold `lock_all`, but no shard. Raises ConfigError where there is one."""
        refusal = f"{self.output.root}: another process (filter, caption, dedup) works on it; wait until that has ended"
        with contextlib.ExitStack() as stack:
            if self.locks.parent.is_dir():  # else there is nothing to keep away from
                stack.enter_context(hold(self.locks / "all.lock", refusal, shared=True))
            yield

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[None]:
        folders = {self.work} if self.output.remote else {self.work, self.locks / self.work.name}
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        if not self.output.remote:
            self.output.staging = self.in_hand.staging = self.locks / self.work.name / "staging"
        try:
            yield
        finally:
            self.output.staging = self.in_hand.staging = None
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    def mark(self, video: Video, alone: bool = False) -> Video:
        """Note that a video is in hand, until `finish` or the end of `lock`; a process that is killed leaves the note."""
        with _NOTING:
            self.marked[video.relative] = alone
            self.in_hand.write(f"{video.relative}.json", json.dumps({"alone": alone, "machine": memory_kills()}))
        return video

    def _unmark(self, relative: str, keep: bool = False) -> None:
        self.marked.pop(relative, None)
        if keep:
            self.in_hand.write(f"{relative}.json", "{}")
        else:
            self.left.discard(relative)
            self.in_hand.remove(f"{relative}.json")

    def blame(self, videos: Iterable[Video]) -> None:
        """Find out which videos were in hand when a process died; the one that was alone in hand has failed once more.

        But not where that process was killed on purpose: on this machine, which has not run out of memory since.
        """
        found = {place.removesuffix(".json") for place in self.in_hand.files()}
        for video in (video for video in videos if video.relative in found):
            self.left.add(video.relative)
            note = json.loads(self.in_hand.read(f"{video.relative}.json") or "{}")
            if note.get("alone") and note["machine"] != memory_kills():
                message = "the process died while it was at this video alone (out of memory?)"
                video.error = {"stage": "any", "type": CRASH, "message": message}
                self.finish(video)
                video.error, video.recorded = {}, None
                self.left.add(video.relative)

    def todo(self, videos: Sequence[Video], redo: str, max_attempts: int) -> tuple[list[Video], Counter[str]]:
        """Return the videos to work on, and how many others there are by reason.

        A failed video is tried again up to `max_attempts` times. redo: "changed": also those of other options or of a file
        that has changed, which are refused otherwise; "failed": all that failed or have a failed clip; "all".

        Raises ConfigError where options or a file have changed, with the differences.
        """
        chosen, others, changes = [], Counter[str](), Changes(self.options)
        for video, (_, record) in zip(videos, self.scan([video.relative for video in videos]), strict=True):
            video.recorded = None if record else _past(record)  # names of all files of all videos would be many
            status, self.before = record.get("status", "writing"), record.get("options", self.before)
            changed = differences(record, self.options, video) if status != "writing" else {}
            changed = changes.of_making(changed) if status == "empty" else changed
            failed = status == "failed" or any(clip["error"] for clip in record.get("clips", {}).values())
            again = {"all": True, "changed": bool(changed), "failed": failed}.get(redo, False)
            if changed and not again and changes.refuse(video.relative, record, changed):
                continue
            if again or status == "writing" or (status == "failed" and record["attempts"] < max_attempts):
                chosen.append(video)
                self.crashed |= {video.relative} if _past(record)["crashed"] else set()
            else:
                how = "half revised (the filter, caption or dedup that was killed ends it, or curate.py filter OUT)"
                reasons = {"failed": "given up after repeated failures", "revising": how}
                others[reasons.get(status, "done before")] += 1
                if video.relative in self.left:
                    self._unmark(video.relative)
        changes.tell(self.output.root)
        return chosen, others

    def suspects(self, videos: Iterable[Video]) -> list[Video]:
        """Return those of `todo` that may kill the process: it died while they were in hand."""
        return [video for video in videos if video.relative in self.left | self.crashed]

    def publish(self, video: Video, made: Mapping[str, Path | str | None]) -> None:
        """Bring a video's results to their places; what an earlier run left of it and is no longer made goes last, by `finish`.

        made: place below the output folder: the file, its text, or None where it is there already. A caption that was edited
        is in the dataset, in its clip's meta or in both, at whatever moment the process is killed: metas follow the dataset,
        and what leaves it goes after that. One that was made anew is in the meta first, so that it is not taken for edited.
        """
        past = self._past_of(video)
        outputs = sorted({*past["outputs"], *made})
        if any(clip.place for clip in video.clips):
            whole = past.get("whole") or self.read(video.relative)
            self._put(video, {**whole, "status": "revising", "outputs": outputs})
        else:
            self._write(video, "writing", outputs)

        def bring(place: str) -> None:
            if isinstance(source := made[place], str):
                self.output.write(place, source)
            elif source is not None:
                self.output.put(place, source)

        metas = {place for place in made if place.startswith("metas/")}
        anew = {clip.uuid for clip in video.clips if clip.place and not clip.texts_stay}
        texts = (place for place in outputs if place.startswith(f"{DATASET}/metas/"))
        texts = {place for place in texts if Path(place).name.partition("_")[0] in anew}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self.output.remove, texts))
            for places in (made.keys() - metas - texts, metas, made.keys() & texts):
                list(pool.map(bring, places))
        video.outputs = sorted(made)

    def finish(self, video: Video) -> None:
        """Write the record of a video whose stages are through, and remove its scratch folder."""
        failed = video.error or (video.clips and all(clip.lost for clip in video.clips))
        outputs = [] if video.error else video.outputs
        self._remove(set(self._past_of(video)["outputs"]) - set(outputs))
        self._write(video, "failed" if failed else "done" if video.clips else "empty", outputs)
        if video.relative in self.marked or video.relative in self.left:
            self._unmark(video.relative)
        shutil.rmtree(video.scratch, ignore_errors=True)

    def _write(self, video: Video, status: str, outputs: list[str]) -> None:
        attempts = self._past_of(video)["attempts"]
        record = {
            **{"video": video.identity, "video_uuid": video.uuid, "status": status, **video.footage.facts},
            **{"num_total_clips": len(video.clips), "num_clip_chunks": 1, "error": video.error},
            "attempts": attempts + 1 if status == "failed" else 0 if status == "done" else attempts,
            "clips": {clip.uuid: clip.outcome() for clip in video.clips},
            **{"input": video.stamp, "options": self.options, "limits": self.limits, "outputs": outputs},
        }
        self._put(video, record)

    def _put(self, video: Video, record: dict[str, Any]) -> None:
        self.output.write(f"{FOLDER}/{video.relative}.json", json.dumps(record, indent=1))
        video.recorded = _past(record)
        video.recorded |= {"whole": record} if record["status"] == "revising" else {}

    def _past_of(self, video: Video) -> dict[str, Any]:
        if video.recorded is None:
            video.recorded = _past(self.read(video.relative))
        return video.recorded

    def _remove(self, outputs: Iterable[str]) -> None:
        for place in outputs:
            self.output.remove(place)
            if place.startswith(f"{DATASET}/videos/"):  # and what was embedded of it
                for suffix in EMBEDDING_SUFFIXES:
                    self.output.remove(f"{DATASET}/t5_xxl/{Path(place).stem}{suffix}")

    def outline(self, relative: str, record: Mapping[str, Any]) -> Video:
        """Return a video as its record says. Raises ConfigError where its clips were not kept."""
        if record["options"].get("no_upload_clips"):
            advice = "split without it makes them (--redo changed)"
            raise ConfigError(f"{self.output.root}: made with --no-upload-clips, so there are no clips; {advice}")
        facts = {key: value for key, value in record.items() if key not in OWN_KEYS}
        video = Video(record["video"], relative, self.work, record["input"], footage=Footage(facts=facts))
        video.outputs, video.error, video.recorded = list(record["outputs"]), record["error"], _past(record)
        for name, known in record["clips"].items():
            (start, end), span = known["frames"], (0.0, known["duration"])
            clip = Clip(video, start, end, name, span, scores=known["scores"], error=known["error"])
            clip.rejected, clip.rejected_by = known["rejected"], known.get("rejected_by", "")
            video.clips.append(clip)
        return video

    def restore(self, relative: str) -> Video:
        """Return a video as its record and its clips' metas say; their files stay where they are (`Clip.place`)."""
        video = self.outline(relative, record := self.read(relative))
        video.recorded = {**_past(record), "whole": record}
        if record["status"] == "revising":  # some are still to come, some have gone
            video.outputs = [place for place in video.outputs if self.output.has(place)]
        for clip in video.clips:
            if text := self.output.read(f"metas/v0/{clip.uuid}.json"):
                try:
                    self._restore_meta(clip, text)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    meta = self.output.uri(f"metas/v0/{clip.uuid}.json")
                    repair = f"remove {self.output.uri(f'{FOLDER}/{relative}.json')}, and split makes the video again"
                    raise CorruptFileError(f"{meta}: not a clip's meta ({error!r}); {repair}") from error
            if record["status"] == "revising" and clip.windows and all(window.caption for window in clip.windows):
                clip.error = {} if clip.error.get("stage") == "caption" else clip.error  # it was captioned, then
        return video

    def restored(self, names: Sequence[str]) -> Iterator[Video]:
        """Yield `restore` of each."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for start in range(0, len(names), AT_ONCE):
                yield from pool.map(self.restore, names[start : start + AT_ONCE])

    @staticmethod
    def _restore_meta(clip: Clip, text: str) -> None:
        clip.meta = json.loads(text)
        clip.place, clip.frames = clip.meta["clip_location"], clip.meta["num_frames"]
        clip.span = clip.meta["duration_span"]
        for row in clip.meta["windows"]:
            caption = row.get(f"{clip.meta['caption_source']}_caption", "")
            enhanced = [text for key, text in row.items() if key.endswith("_enhanced_caption")]
            window = Window(row["start_frame"], row["end_frame"], caption, *enhanced)
            tokens = [row.get(f"{clip.meta['caption_source']}_{kind}_tokens", 0) for kind in ("prompt", "output")]
            window.prompt_tokens, window.output_tokens = tokens
            window.edited = row.get(EDITED)
            clip.windows.append(window)


def _past(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what counts of a record when it is written again."""
    crashed = (record.get("error") or {}).get("type") == CRASH
    return {"attempts": int(record.get("attempts", 0)), "outputs": record.get("outputs", []), "crashed": crashed}


def memory_kills() -> list[str]:
    """Return a name of this machine since it was started, and how many processes it has killed for want of memory (Linux)."""
    found = ["", ""]
    with contextlib.suppress(OSError):
        found[0] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        lines = Path("/proc/vmstat").read_text().splitlines()
        found[1] = "".join(line for line in lines if line.startswith("oom_kill"))
    return found

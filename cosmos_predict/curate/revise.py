"""Change what is recorded: `filter` (other limits, no filter looks at a clip again), `caption`, and `dedup`.

No clip moves: clips stay in `clips/` or `filtered_clips/`, where `split` put them; records, metas and the dataset say which
ones are kept now. The windows of a clip that comes back into the dataset are cut out of it again where it has several.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loguru import logger

from cosmos_predict.curate import engine, own
from cosmos_predict.curate.changes import captioned_clips, idle_limits, kept_clips, words
from cosmos_predict.curate.fetch import Fetch
from cosmos_predict.curate.filters import Filter
from cosmos_predict.curate.records import Records
from cosmos_predict.curate.report import conclude
from cosmos_predict.curate.stage import Clip, Stage, Video
from cosmos_predict.curate.stages import Caption, build_stages, defaults, settle_backend
from cosmos_predict.curate.storage import DATASET, Store
from cosmos_predict.curate.write import Write
from cosmos_predict.errors import ConfigError, DataError, UnavailableError

DUPLICATE = "duplicate"
REVISION = "all"  # in place of I/N: scratch of its own, so that the next split still finds what a crashed one left
# From options and records, the stages that a restored video goes through.
Choose = Callable[[dict[str, Any], Records], list[Stage]]


class Judge(Stage):
    """Lets the filters decide anew, by the scores that each clip has. Other rejections stay (too short, duplicate)."""

    name = "filter"

    def __init__(self, filters: list[Stage]) -> None:
        self.filters = filters
        self.names = {stage.name for stage in (*Filter.__subclasses__(), *filters)}
        scores = ({stage.score} if isinstance(stage, Filter) else _bases(stage.limits()) for stage in filters)
        self.judges = [*zip(filters, scores, strict=True)]
        self.rescored = list[str]()  # stages of one's own that would make other scores now
        # By filter: clips that come to it with a score, and without. By score: kept clips that have it; "": all.
        self.scored, self.bare, self.known = Counter[str](), Counter[str](), Counter[str]()

    def process(self, item: Video) -> None:
        for clip in item.clips:
            if clip.rejected_by in self.names:
                clip.rejected = clip.rejected_by = ""
            for stage, scores in self.judges:
                if clip.alive:
                    (self.bare if scores.isdisjoint(clip.scores) else self.scored)[stage.name] += 1
                    stage.decide(clip)
                    clip.rejected_by = stage.name if clip.rejected else ""
            self.known.update(["", *clip.scores] if clip.alive else [])

    def unanswered(self) -> list[str]:
        """Return what is missing, of the videos so far; a stage of one's own need not score every clip, but some."""
        judges = [(stage, names) for stage, names in self.judges if names and self.bare[stage.name]]
        judges = [row for row in judges if isinstance(row[0], Filter) or not self.scored[row[0].name]]
        lacking = [f"{self.bare[stage.name]} clips have no {', '.join(sorted(names))}" for stage, names in judges]
        other = "other code than limits() and decide() has changed since it made the recorded scores"
        return lacking or [f"--stage {name}: {other}" for name in self.rescored]


def _bases(limits: Iterable[str]) -> set[str]:
    """Return the names of scores of dotted ones."""
    return {name.partition(".")[0] for name in limits}


class _Done:
    """What a stage and its copies have done."""

    def __init__(self) -> None:
        self.made, self.failed = list[str](), dict[str, str]()  # clips; and why not

    def __deepcopy__(self, memo: dict[int, Any]) -> _Done:
        return self


class Recaption(Stage):
    """Captions clips that have no caption, or all of them. A failure leaves the clip as it was."""

    name, scope = "caption", "clip"

    def __init__(self, caption: Caption, options: Mapping[str, Any], output: Store, everything: bool) -> None:
        self.caption, self.source, self.output = caption, options["captioning_algorithm"], output
        self.profile, self.fetches = options["input_s3_profile_name"], dict[str, Fetch]()
        self.resources, self.everything, self.done = caption.resources, everything, _Done()

    def setup(self) -> None:
        self.caption.context = self.context
        self.caption.setup()
        self.workers, self.lock = self.caption.workers, threading.Lock()

    def process(self, item: Clip) -> None:
        if not self.everything and item.windows and all(window.caption for window in item.windows):
            return
        before = item.windows
        try:
            if self.source == "sidecar" and "://" in item.video.identity:
                self._fetch_captions(item.video)
            item.path = self.output.fetch(item.place, item.video.scratch / f"{item.uuid}.mp4")
            self.caption.process(item)
            item.meta["caption_source"], item.texts_stay, item.error = self.source, False, {}
            self.done.made.append(item.uuid)
        except UnavailableError:
            raise
        except Exception as error:  # of whatever kind: it must not take the clip out of the dataset
            item.windows, self.done.failed[f"{item.video.relative} {item.uuid}"] = before, engine.reason(error)

    def _fetch_captions(self, video: Video) -> None:
        """Bring the captions beside a video of a bucket here, once."""
        root = video.identity.removesuffix(f"/{video.relative}")
        with self.lock:
            if root not in self.fetches:
                source = Store(root, self.profile)
                self.fetches[root] = Fetch(source, source.files(), captions_only=True)
                self.fetches[root].setup()
            if video.copy is None:
                self.fetches[root].process(video)

    def cease(self) -> None:
        self.caption.cease()

    def teardown(self) -> None:
        self.caption.teardown()


class Deduplicate(Stage):
    """Rejects clips that were found to repeat another one, and takes back what an earlier run rejected so."""

    name = "dedup"

    def __init__(self, found: Mapping[str, tuple[str, float]]) -> None:
        self.found = found

    def process(self, item: Video) -> None:
        for clip in item.clips:
            if clip.rejected_by == self.name:
                clip.rejected = clip.rejected_by = ""
            for score in ("duplicate_of", "duplicate_similarity"):
                clip.scores.pop(score, None)
            if clip.uuid in self.found and clip.alive:
                clip.scores["duplicate_of"], clip.scores["duplicate_similarity"] = self.found[clip.uuid]
                clip.reject(DUPLICATE)
                clip.rejected_by = self.name


def refilter(results: Store, run: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Apply the limits in `given` to the recorded scores; return the new totals. Raises as `revise`."""

    def choose(options: dict[str, Any], records: Records) -> list[Stage]:
        filters: list[Stage] = [stage for stage in build_stages(options) if isinstance(stage, Filter)]
        filters += map(own.load, run["stage"])
        ours, old = {stage.score for stage in Filter.__subclasses__()}, {} if run["stage"] else records.limits
        own_limits = {name: least for name, least in old.items() if not _bases([name]) & ours}  # of stages before
        records.limits = own_limits | {name: least for stage in filters for name, least in stage.limits().items()}
        return [Judge(filters)]

    return revise(results, run, given, choose)


def recaption(
    results: Store, run: Mapping[str, Any], given: Mapping[str, Any], everything: bool
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Caption the kept clips that have no caption (or all); return the totals, how many were captioned, and the failures."""
    made: list[Recaption] = []

    def choose(options: dict[str, Any], records: Records) -> list[Stage]:
        options = {**options, **(changed := settle_backend(records.options))}
        records.options = changed
        caption = next(stage for stage in build_stages(options) if isinstance(stage, Caption))
        made.append(Recaption(caption, options, results, everything))
        return [made[-1]]

    summary = revise(results, run, given, choose)
    failed = {where: reason for stage in made for where, reason in stage.done.failed.items()}
    return summary, sum(len(stage.done.made) for stage in made), failed


def revise(results: Store, run: Mapping[str, Any], given: Mapping[str, Any], choose: Choose) -> dict[str, Any]:
    """Take every video that is done, as recorded, through stages and write it again; return the new totals.

    run: options that change no result; given: those that differ from the recorded ones from now on. A video that fails stays
    as it was recorded; the totals' errors name it.

    Raises DataError where the folder holds no records, CorruptFileError for a record or a meta that cannot be read,
    ConfigError while another process works on any shard, and, before anything is written, where clips have no score of a
    filter that they come to.
    """
    records, failed = Records(results, {}, REVISION, run["work_dir"]), dict[str, str]()

    def finish(video: Video) -> None:
        if video.error:
            whole = records.read(video.relative)["status"] == "done"
            now = "it stays as it was" if whole else "half written; the same command goes on"
            failed[video.relative] = f"{video.error['stage']}: {video.error['message']}; {now}"
        else:
            records.finish(video)
        video.clips.clear()  # which know it, too: a ring that would stay in memory

    with records.lock_all():
        plans = dict[str, _Plan]()
        for relative, record in records.scan():
            if record["status"] in ("done", "revising"):
                key = json.dumps([record["options"], record["limits"]])
                if key not in plans:
                    records.options, records.limits = {**defaults(), **record["options"], **given}, record["limits"]
                    options = {**run, **records.options}  # an older version had fewer
                    stages = [*choose(options, records), Write(options, records)]
                    plans[key] = _Plan(records.options, records.limits, stages)
                plans[key].members.append(relative)
                if isinstance(judge := plans[key].stages[0], Judge):
                    judge.rescored = own.rescored(record["options"].get("stage", []), given.get("stage", []))
                    video = records.outline(relative, record)
                    with contextlib.suppress(Exception):  # of a stage of one's own: told when it is this video's turn
                        judge.process(video)
            elif record["status"] == "writing":
                logger.warning(f"{relative}: left out, a process ended while it was written; split makes it again")
        if not plans:
            raise DataError(f"{results.root}: no video there that curate.py split has done")
        judged = [(plan, judge) for plan in plans.values() if isinstance(judge := plan.stages[0], Judge)]
        if missing := [text for _, judge in judged for text in judge.unanswered()]:
            flags = f"{words({**given, 'stage': run['stage']}, given)} --redo changed" if given else "--redo all"
            told = f"{results.root}: {'; '.join(missing)}, and filter goes by recorded scores alone"
            raise ConfigError(f"{told}; curate.py split ... {flags} makes them")
        idle = defaultdict[tuple[str, str, str], Counter[str]](Counter)
        for plan, judge in judged:
            for row in idle_limits(plan.options, given):
                idle[row].update(judge.known)
        for (line, score, enable), known in idle.items():
            make = f"filter {results.root} {enable} decides by it"
            make = make if known[score] else f"split ... {enable} --redo changed makes it"
            lack = f"{known[''] - known[score]} of {known['']} kept clips have no {score}"
            logger.warning(f"{line}; {lack}; curate.py {make}")
        for plan in plans.values():
            records.options, records.limits = plan.options, plan.limits
            engine.run(records.restored(plan.members), plan.stages, finish, run["executor"], run["workers"])
        summary = conclude(records)
        return {**summary, "errors": {**summary["errors"], **failed}}


def lacking(results: Store) -> list[str]:
    """Return what the dataset lacks, with the command that makes it: clips without a caption, captions without an embedding."""
    records, bare = Records(results, {}), 0
    for _, record in records.scan():
        options = {**defaults(), **record["options"]}
        if options["captioning_algorithm"] != "none" and options["generate_cosmos_predict_dataset"] != "disable":
            bare += len(kept_clips(record) - captioned_clips(record))
    texts, vectors = ({Path(name).stem for name in results.files(f"{DATASET}/{part}")} for part in ("metas", "t5_xxl"))
    told = [f"{bare} clips have no caption: curate.py caption {results.root} ..."] if bare else []
    without = f"{len(texts - vectors)} samples have no embedding: curate.py embed {results.root}"
    return [*told, without] if texts - vectors else told


@dataclass
class _Plan:
    """Videos that were made with the same options: what their records say from now on, the stages that they go through."""

    options: dict[str, Any]
    limits: dict[str, float]
    stages: list[Stage]
    members: list[str] = field(default_factory=list)

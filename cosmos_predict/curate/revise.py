"""Change what is recorded: `filter` (other limits, nothing is decoded again), `caption`, and `dedup`.

No clip moves: clips stay in `clips/` or `filtered_clips/`, where `split` put them; records, metas and the dataset say which
ones are kept now. The windows of a clip that comes back into the dataset are cut out of it again where it has several.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from loguru import logger

from cosmos_predict.curate import engine, own
from cosmos_predict.curate.filters import Filter
from cosmos_predict.curate.records import Records
from cosmos_predict.curate.report import conclude
from cosmos_predict.curate.stage import Clip, Stage, Video
from cosmos_predict.curate.stages import Caption, build_stages
from cosmos_predict.curate.storage import Store
from cosmos_predict.curate.write import Write
from cosmos_predict.errors import DataError

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

    def process(self, item: Video) -> None:
        for clip in item.clips:
            if clip.rejected_by in self.names:
                clip.rejected = clip.rejected_by = ""
            for stage in self.filters:
                if clip.alive:
                    stage.decide(clip)
                    clip.rejected_by = stage.name if clip.rejected else ""


class Recaption(Stage):
    """Captions clips that have no caption, or all of them. A failure leaves the clip as it was."""

    name, scope = "caption", "clip"

    def __init__(self, caption: Caption, options: Mapping[str, Any], output: Store, everything: bool) -> None:
        self.caption, self.source, self.output = caption, options["captioning_algorithm"], output
        self.workers, self.everything, self.failed, self.made = caption.workers, everything, dict[str, str](), 0

    def setup(self) -> None:
        self.caption.setup()

    def process(self, item: Clip) -> None:
        if not self.everything and item.windows and all(window.caption for window in item.windows):
            return
        before = item.windows
        try:
            item.path = self.output.fetch(item.place, item.video.scratch / f"{item.uuid}.mp4")
            self.caption.process(item)
            item.meta["caption_source"], self.made = self.source, self.made + 1
            item.texts_stay = False
        except Exception as error:  # of whatever kind: it must not take the clip out of the dataset
            item.windows, self.failed[f"{item.video.relative} {item.uuid}"] = before, engine.reason(error)

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
    """Apply the limits in `given` to the recorded scores; return the new totals."""

    def choose(options: dict[str, Any], records: Records) -> list[Stage]:
        filters: list[Stage] = [stage for stage in build_stages(options) if isinstance(stage, Filter)]
        filters += map(own.load, run["stage"])
        records.limits = {name: least for stage in filters for name, least in stage.limits().items()}
        return [Judge(filters)]

    return revise(results, run, given, choose)


def recaption(
    results: Store, run: Mapping[str, Any], given: Mapping[str, Any], everything: bool
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Caption the kept clips that have no caption (or all); return the totals, how many were captioned, and the failures."""
    made: list[Recaption] = []

    def choose(options: dict[str, Any], records: Records) -> list[Stage]:
        caption = next(stage for stage in build_stages(options) if isinstance(stage, Caption))
        made.append(Recaption(caption, options, results, everything))
        return [made[-1]]

    summary = revise(results, run, given, choose)
    failed = {where: reason for stage in made for where, reason in stage.failed.items()}
    return summary, sum(stage.made for stage in made), failed


def revise(results: Store, run: Mapping[str, Any], given: Mapping[str, Any], choose: Choose) -> dict[str, Any]:
    """Take every video that is done, as recorded, through stages and write it again; return the new totals.

    run: options that change no result; given: those that differ from the recorded ones from now on. A video that fails stays
    as it was recorded; the totals' errors name it.

    Raises DataError where the folder holds no records, CorruptFileError for a record or a meta that cannot be read,
    ConfigError while another process works on any shard.
    """
    records, failed = Records(results, {}, REVISION, run["work_dir"]), dict[str, str]()
    groups = defaultdict[str, list[str]](list)

    def finish(video: Video) -> None:
        if video.error:
            whole = records.read(video.relative)["status"] == "done"
            now = "it stays as it was" if whole else "half written; split makes it again"
            failed[video.relative] = f"{video.error['stage']}: {video.error['message']}; {now}"
        else:
            records.finish(video)

    with records.lock_all():
        for relative in records.videos():
            record = records.read(relative)
            if record["status"] == "done":
                groups[json.dumps([record["options"], record["limits"]])].append(relative)
            elif record["status"] == "writing":
                logger.warning(f"{relative}: left out, a process ended while it was written; split makes it again")
        if not groups:
            raise DataError(f"{results.root}: no video there that curate.py split has done")
        for recorded, members in groups.items():
            old, records.limits = json.loads(recorded)
            records.options = {**old, **given}
            options = {**run, **records.options}
            stages = [*choose(options, records), Write(options, records)]
            engine.run(map(records.restore, members), stages, finish, run["executor"], run["workers"])
        summary = conclude(records)
        return {**summary, "errors": {**summary["errors"], **failed}}

"""`split`: every video of a folder through the stages, resumable; and `check` of the dataset that comes out."""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from loguru import logger

from cosmos_predict.curate import alone, engine, own
from cosmos_predict.curate.fetch import Fetch
from cosmos_predict.curate.listing import list_videos, read_list, require_captions
from cosmos_predict.curate.progress import Progress
from cosmos_predict.curate.records import Records
from cosmos_predict.curate.report import conclude
from cosmos_predict.curate.stage import Context, Stage, Video
from cosmos_predict.curate.stages import build_stages, settle
from cosmos_predict.curate.storage import Store
from cosmos_predict.curate.summary import Performance
from cosmos_predict.curate.write import Write
from cosmos_predict.errors import ConfigError, DataError


def split(
    source: str | Path, output: str | Path, options: Mapping[str, Any], run_options: Collection[str]
) -> dict[str, Any]:
    """Curate the videos below `source` into `output`; return the totals of all that is there, and the errors of the videos of
    this shard (`summary.summarise`).

    source, output: folders, or prefixes s3://BUCKET/KEY. options: values by name, as in `options.yaml`; run_options: names
    of those that change no result.

    Raises DataError for a folder without videos, ConfigError for options that do not fit what `output` holds.
    """
    footage, results = _stores(source, output, options)
    named, profile = options["input_video_list_json_path"], options["input_video_list_s3_profile_name"]
    listed, inputs = list_videos(footage, options["shard"], read_list(named, profile) if named else None)
    asked, options = options["splitting_algorithm"], settle(options)
    records, context = open_records(results, options, run_options), Context(options, footage)
    if options["captioning_algorithm"] == "sidecar" and not options["dry_run"]:
        require_captions(footage, inputs)
    stages = assemble(options, records, footage, inputs.beside)
    records.limits = {name: least for stage in stages for name, least in stage.limits().items()}
    records.options |= {f"version of stage {stage.name}": stage.version for stage in stages if stage.version != 1}

    def choose(work: Path) -> deque[Video]:  # none is held any more once it is through: `drain`
        videos = [Video(footage.uri(place), place, work, stamp) for place, stamp in listed.items()]
        if not options["dry_run"]:
            records.blame(videos)
        todo, others = records.todo(videos, options["redo"], options["max_attempts"])
        todo = todo[: options["limit"] or None]
        known = ", ".join(f"{count} {reason}" for reason, count in others.items()) or "none done before"
        ignoring = f"{inputs.num_ignored} other files ignored"
        logger.info(f"{footage.root}: {len(listed)} videos, {known}, {len(todo)} to do; {ignoring}")
        if asked != (now := options["splitting_algorithm"]):
            (logger.debug if records.before.get("splitting_algorithm") == now else logger.warning)(
                f"{options['transnetv2_weights']}: no weights of TransNetV2, so the {now} detector finds the shots; python "
                "scripts/download_curate_models.py --models transnetv2 fetches them, --splitting-algorithm content means it"
            )
        return deque(todo)

    if options["dry_run"]:
        _preview(choose, [stage for stage in stages if stage.name in ("fetch", "ingest", "split")], context)
        return {}
    results.check_writable()
    with records.lock():
        rest, executor, workers = choose(records.work), options["executor"], options["workers"]
        suspects = [] if executor == "ray" else records.suspects(rest)  # Ray's workers are processes of their own
        if suspects:
            how = "they come first, one at a time, in a process of their own"
            logger.warning(f"{len(suspects)} videos were in hand when a process died; {how}")
        names = {video.relative for video in suspects}
        first, rest = deque(suspects), deque(video for video in rest if video.relative not in names)
        del suspects
        last = next((stage.name for stage in reversed(stages) if stage.scope == "clip"), "")
        performance = Performance()
        with contextlib.closing(Progress(len(first) + len(rest), last)) as progress:

            def finish(video: Video) -> None:
                records.finish(video)
                progress.add(video)
                performance.add(video)
                video.clips.clear()  # which know it, too: a ring that would stay in memory

            made = (assemble, (options, records, footage, inputs.beside))
            alone.run(drain(first), *made, partial(records.mark, alone=True), finish, workers, context)
            waiting = drain(rest) if executor == "ray" else map(records.mark, drain(rest))
            ray = {"address": options["ray_address"], "gpus_each": options["ray_gpus_per_worker"]}
            engine.run(waiting, stages, finish, executor, workers, passed=progress.passed, context=context, **ray)
            if options["perf_profile"]:
                performance.write(results)
            return conclude(records, listed, inputs, not options["no_write_all_caption_json"])


def _stores(source: str | Path, output: str | Path, options: Mapping[str, Any]) -> tuple[Store, Store]:
    """Return where to read and to write; raises ConfigError where one lies in the other."""
    footage = Store(source, options["input_s3_profile_name"])
    results = Store(output, options["output_s3_profile_name"])
    one, other = f"{footage.root}/", f"{results.root}/"
    if one.startswith(other) or other.startswith(one):
        raise ConfigError(
            f"{footage.root} and {results.root}: one lies in the other; choose an output folder elsewhere"
        )
    return footage, results


def _preview(choose: Callable[[Path], deque[Video]], stages: Sequence[Stage], context: Context) -> None:
    """Print the clips that would be made of the videos chosen."""

    def told(video: Video) -> None:
        for clip in video.clips:
            print(f"{video.relative}: frames {clip.start}..{clip.end - 1}, from {clip.span[0]:.2f} s")
        if why := video.footage.facts.get("no_clips") or video.footage.facts.get("left_out"):
            print(f"{video.relative}: {why}")
        progress.add(video)
        video.clips.clear()

    options = context.options
    with tempfile.TemporaryDirectory() as work:
        todo = choose(Path(work))
        with contextlib.closing(Progress(len(todo), "")) as progress:
            executor = "inline" if options["executor"] == "inline" else "threads"
            engine.run(drain(todo), stages, told, executor, options["workers"], context=context)


def drain(videos: deque[Video]) -> Iterator[Video]:
    """Yield the videos and forget them."""
    while videos:
        yield videos.popleft()


def open_records(results: Store, options: Mapping[str, Any], run_options: Collection[str]) -> Records:
    """Return the records of an output folder; they note the options that results depend on."""
    kept = {name: value for name, value in options.items() if name not in run_options}
    kept["stage"] = [own.fingerprint(given) for given in options["stage"]]
    return Records(results, kept, options["shard"], options["work_dir"])


def assemble(options: Mapping[str, Any], records: Records, footage: Store, others: Collection[str]) -> list[Stage]:
    """Return all stages of a run. others: the captions beside the videos of `footage`."""
    fetch: list[Stage] = [Fetch(footage, others)] if footage.remote else []
    return own.insert(fetch + build_stages(options), options["stage"]) + [Write(options, records)]


def check(dataset: Path, num_frames: int) -> tuple[int, dict[str, str]]:
    """Load every sample of a dataset folder as the trainer does; return how many load, and {name: reason} of the others.

    Raises DataError where the folder is no dataset, or lacks all text embeddings.
    """
    from cosmos_predict.data.check import check as check_dataset

    (report,) = check_dataset(dataset, num_frames)
    if report.captions is not None and not report.embeddings:
        command = "get_t5_embeddings.py --dataset_path" if (dataset / "videos").is_dir() else "curate.py embed"
        make = f"python scripts/{command} {dataset}"
        raise DataError(f"{dataset}: no text embeddings; make them with: {make}")
    return len(report.samples), report.unusable

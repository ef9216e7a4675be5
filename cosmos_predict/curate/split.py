"""`split`: every video of a folder through the stages, resumable; and `check` of the dataset that comes out."""

from __future__ import annotations

import contextlib
import re
import tempfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from loguru import logger

from cosmos_predict.curate import engine, own
from cosmos_predict.curate.progress import Progress
from cosmos_predict.curate.records import Records
from cosmos_predict.curate.report import conclude
from cosmos_predict.curate.stage import Stage, Video
from cosmos_predict.curate.stages import build_stages, settle
from cosmos_predict.curate.storage import Store
from cosmos_predict.curate.write import Write
from cosmos_predict.data.video_reader import VIDEO_SUFFIXES
from cosmos_predict.errors import ConfigError, DataError

SUFFIXES = (*VIDEO_SUFFIXES, ".ts")


def split(
    source: str | Path, output: str | Path, options: Mapping[str, Any], run_options: Collection[str]
) -> dict[str, Any]:
    """Curate the videos below `source` into `output`; return the totals of all that is there, and the errors of the videos of
    this shard (`Records.summarise`).

    source, output: folders, or prefixes s3://BUCKET/KEY. options: values by name, as in `options.yaml`; run_options: names
    of those that change no result.

    Raises DataError for a folder without videos, ConfigError for options that do not fit what `output` holds.
    """
    footage = Store(source, options["input_s3_profile_name"])
    results = Store(output, options["output_s3_profile_name"])
    one, other = f"{footage.root}/", f"{results.root}/"
    if one.startswith(other) or other.startswith(one):
        raise ConfigError(
            f"{footage.root} and {results.root}: one lies in the other; choose an output folder elsewhere"
        )
    if options["transnetv2_max_length_s"] < options["transnetv2_min_length_s"]:
        raise ConfigError("--transnetv2-max-length-s is smaller than --transnetv2-min-length-s")
    options = settle(options)
    dry, records = options["dry_run"], open_records(results, options, run_options)
    listed, ignored = list_videos(footage, options["shard"])
    fetch: list[Stage] = [Fetch(footage, ignored)] if footage.remote else []
    stages = own.insert(fetch + build_stages(options), options["stage"]) + [Write(options, records)]
    records.limits = {name: least for stage in stages for name, least in stage.limits().items()}
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory())) if dry else records.work
        videos = [Video(footage.uri(place), place, work, stamp) for place, stamp in listed.items()]
        if not dry:
            results.check_writable()
            stack.enter_context(records.lock(videos))
        todo, others = records.todo(videos, options["redo"], options["max_attempts"])
        todo = todo[: options["limit"] or None]
        known = ", ".join(f"{count} {reason}" for reason, count in others.items()) or "none done before"
        ignoring = f"{len(ignored)} other files ignored"
        logger.info(f"{footage.root}: {len(videos)} videos, {known}, {len(todo)} to do; {ignoring}")
        progress = stack.enter_context(contextlib.closing(Progress(len(todo))))

        def finish(video: Video) -> None:
            for clip in video.clips if dry else ():
                print(f"{video.relative}: frames {clip.start}..{clip.end - 1}, from {clip.span[0]:.2f} s")
            if not dry:
                records.finish(video)
            progress.add(video)

        chosen = [stage for stage in stages if not dry or stage.name in ("fetch", "ingest", "split")]
        ray = {"address": options["ray_address"], "gpus": options["ray_gpus_per_worker"]}
        engine.run(todo, chosen, finish, options["executor"], options["workers"], **ray)
        return {} if dry else conclude(records, listed)


def open_records(results: Store, options: Mapping[str, Any], run_options: Collection[str]) -> Records:
    """Return the records of an output folder; they note the options that results depend on."""
    kept = {name: value for name, value in options.items() if name not in run_options}
    kept["stage"] = [own.fingerprint(given) for given in options["stage"]]
    return Records(results, kept, options["shard"], options["work_dir"])


class Fetch(Stage):
    """Brings a video that is not on this machine, and the captions beside it, into its scratch folder."""

    name, workers = "fetch", 4

    def __init__(self, source: Store, others: Collection[str]) -> None:
        self.source, self.others = source, frozenset(others)

    def process(self, item: Video) -> None:
        folder, path = item.scratch / self.source.root.rpartition("/")[2], Path(item.relative)
        tables = [path.parent / name for name in ("captions.jsonl", "captions.csv")]
        texts = [path.with_suffix(".txt"), path.with_suffix(".json"), path.parent.parent / "metas" / f"{path.stem}.txt"]
        for place in {str(place) for place in (*texts, *tables)} & self.others:
            self.source.fetch(place, folder / place)
        item.copy = self.source.fetch(item.relative, folder / path)


def list_videos(source: Store | Path, shard: str = "1/1") -> tuple[dict[str, list[Any]], list[str]]:
    """Return {relative path: stamp} of the videos below a folder that belong to shard I/N, and all other files there.

    Raises DataError where there is none, ConfigError for a shard that is not I/N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise ConfigError(f"--shard {shard}: expected I/N with I in 1..N, as 2/8")
    source = source if isinstance(source, Store) else Store(source)
    files = source.files()
    for place in [place for place in files if not _is_text(place)]:
        logger.error(f"{place!r} is left out: its name is not UTF-8, so no record can name it; rename it")
        del files[place]
    videos = {place: stamp for place, stamp in files.items() if Path(place).suffix.lower() in SUFFIXES}
    if not videos:
        raise DataError(f"{source.root}: no folder with videos ({' '.join(SUFFIXES)})")
    mine = {place: stamp for place, stamp in videos.items() if zlib.crc32(place.encode()) % parts == part - 1}
    return mine, [place for place in files if place not in videos]


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def check(dataset: Path, num_frames: int) -> tuple[int, dict[str, str]]:
    """Load every sample of a dataset folder as the trainer does; return how many load, and {name: reason} of the others.

    Raises DataError where the folder is no dataset, or lacks all text embeddings.
    """
    from cosmos_predict.data.check import check as check_dataset

    (report,) = check_dataset(dataset, num_frames)
    if report.captions is not None and not report.embeddings:
        make = f"python scripts/get_t5_embeddings.py --dataset_path {dataset}"
        raise DataError(f"{dataset}: no text embeddings; make them with: {make}")
    return len(report.samples), report.unusable

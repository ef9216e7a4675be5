"""`split`: every video of a folder through the stages, resumable; and `check` of the dataset that comes out."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from loguru import logger
from tqdm import tqdm

from cosmos_predict.curate import engine
from cosmos_predict.curate.records import Records
from cosmos_predict.curate.stage import Video
from cosmos_predict.curate.stages import Caption, Ingest, Split, Transcode, Write
from cosmos_predict.data.video_reader import VIDEO_SUFFIXES
from cosmos_predict.errors import ConfigError, DataError

SUFFIXES = (*VIDEO_SUFFIXES, ".ts")


def split(source: Path, output: Path, options: Mapping[str, Any], run_options: Collection[str]) -> dict[str, Any]:
    """Curate the videos below `source` into `output`; return the totals of all that is there (`Records.summarise`).

    options: values by name, as in `options.yaml`; run_options: names of those that change no result.

    Raises DataError for a folder without videos, ConfigError for options that do not fit what `output` holds.
    """
    source, output = Path(os.path.abspath(source)), Path(os.path.abspath(output))
    if source.is_relative_to(output) or output.is_relative_to(source):
        raise ConfigError(f"{source} and {output}: one lies in the other; choose an output folder elsewhere")
    if options["transnetv2_max_length_s"] < options["transnetv2_min_length_s"]:
        raise ConfigError("--transnetv2-max-length-s is smaller than --transnetv2-min-length-s")
    if options["splitting_algorithm"] == "transnetv2":
        logger.warning("no weights of TransNetV2: the content detector finds the shots (--splitting-algorithm content)")
    result_options = {name: value for name, value in options.items() if name not in run_options}
    dry, records = options["dry_run"], Records(output, result_options, options["shard"])
    stages = [Ingest(), Split(options), Transcode(options), Caption(options), Write(options, records)]
    paths, ignored = list_videos(source, options["shard"])
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory())) if dry else records.work
        stamps = [[path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
        named = [(str(path), str(path.relative_to(source)), work) for path in paths]
        videos = [Video(*name, stamp) for name, stamp in zip(named, stamps, strict=True)]
        if not dry:
            stack.enter_context(records.lock(videos))
        todo, others = records.todo(videos, options["redo"], options["max_attempts"])
        todo = todo[: options["limit"] or None]
        known = ", ".join(f"{count} {reason}" for reason, count in others.items()) or "none done before"
        logger.info(f"{source}: {len(videos)} videos, {known}, {len(todo)} to do; {len(ignored)} other files ignored")
        interval, counts = 1 if os.isatty(2) else 20, Counter[str]()
        bar = stack.enter_context(tqdm(total=len(todo), unit="video", desc="split", mininterval=interval))

        def finish(video: Video) -> None:
            problems = [error for error in (video.error, *(clip.error for clip in video.clips)) if error]
            for error in problems[:5]:
                logger.error(f"{video.relative}: {error['stage']}: {error['message']}")
            if not video.clips and not video.error:
                logger.warning(f"{video.relative}: no clip: {video.footage.facts['no_clips']}")
            counts.update(errors=len(problems), kept=sum(clip.alive for clip in video.clips))
            counts.update(clip.rejected for clip in video.clips if clip.rejected)
            for clip in video.clips if dry else ():
                print(f"{video.relative}: frames {clip.start}..{clip.end - 1}, from {clip.span[0]:.2f} s")
            if not dry:
                records.finish(video)
            bar.set_postfix(counts)
            bar.update()

        engine.run(todo, stages[:2] if dry else stages, finish, options["executor"], options["workers"])
        return {} if dry else records.summarise()


def list_videos(source: Path, shard: str = "1/1") -> tuple[list[Path], list[Path]]:
    """Return the videos below a folder that belong to shard I/N, by relative path, and all other files that are there.

    Raises DataError where there is none, ConfigError for a shard that is not I/N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise ConfigError(f"--shard {shard}: expected I/N with I in 1..N, as 2/8")
    files = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
    videos = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not videos:
        raise DataError(f"{source}: no folder with videos ({' '.join(SUFFIXES)})")
    mine = [path for path in videos if zlib.crc32(str(path.relative_to(source)).encode()) % parts == part - 1]
    return mine, sorted(set(files) - set(videos))


def check(dataset: Path, num_frames: int) -> tuple[int, dict[str, str]]:
    """Load every sample of a dataset folder as the trainer does; return how many load, and {name: reason} of the others.

    Raises DataError where the folder is no dataset, or lacks all text embeddings.
    """
    from cosmos_predict.data.video_folder import VideoFolderDataset

    samples = VideoFolderDataset(dataset, num_frames, (64, 64), shuffle=False, max_bad_share=1.0)
    for number in tqdm(range(len(samples)), unit="clip", desc="check"):
        with contextlib.suppress(DataError):  # noted in samples.bad; another clip takes its place where one loads
            samples[number]
    bad = {samples.clips[item].video.name: reason for item, reason in samples.bad.reasons.items()}
    return len(samples) - len(bad), {**dict(samples.report.skipped), **bad}

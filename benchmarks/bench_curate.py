"""Clips per second of `curate.py split` against a plain ffmpeg loop that writes the same clips; threads against Ray; memory.

    python benchmarks/bench_curate.py                                   # generated footage
    python benchmarks/bench_curate.py --videos FOLDER --stride 5 --workers 2

Both sides use one worker, one thread of libx264 and the same quality, and take turns. The plain loop is told the spans: it
seeks, encodes and nothing else. Ours probes, finds spans, checks what came out, scores motion, writes captions, metas, the
dataset, the records and the report. Ray is measured with its start (a cluster of this machine). Processor seconds are those
of this process and of all ffmpeg processes. Memory is the peak of the Python process, a fresh one each, imports included, and
the peak of its largest ffmpeg process: for many videos, and for one that is long.
Prints a table; rows go to `benchmarks/results/bench_curate_cpu.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
from loguru import logger

from cosmos_predict.cli.curate import build_parser, read_options
from cosmos_predict.curate.split import list_videos, split
from cosmos_predict.data.video_reader import probe

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = (
    Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).resolve().parent / "results") / "bench_curate_cpu.json"
)
GOAL = 0.9


def ours(source: Path, output: Path, stride: int, executor: str = "threads", workers: int = 1) -> None:
    flags = ["--splitting-algorithm", "fixed-stride", "--fixed-stride-split-duration", str(stride)]
    flags += ["--captioning-algorithm", "template", "--num-frames", "16", "--motion-filter", "score-only"]
    flags += ["--executor", executor, "--workers", str(workers)]
    args = build_parser().parse_args(["split", "--input-video-path", "x", "--output-clip-path", "x", *flags])
    names = {group: [name.replace("-", "_") for name in options] for group, options in read_options().items()}
    values = {name: getattr(args, name) for group in names.values() for name in group}
    with contextlib.redirect_stderr(io.StringIO()):
        split(source, output, values, names["run"])


def plain(source: Path, output: Path, stride: int) -> None:
    output.mkdir()
    for path in (source / place for place in list_videos(source)[0]):
        for number in range(round(probe(path).duration) // stride):
            command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-ss", str(number * stride)]
            command += ["-i", str(path), "-t", str(stride), "-an", "-c:v", "libx264", "-crf", "18", "-g", "16"]
            command += ["-pix_fmt", "yuv420p", "-threads", "1", "-movflags", "+faststart"]
            subprocess.run([*command, str(output / f"{path.stem}_{number}.mp4")], check=True)


def generate(folder: Path, videos: int, seconds: int, size: str) -> Path:
    folder.mkdir()
    for number in range(videos):
        source = f"testsrc2=size={size}:rate=24:duration={seconds}"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source, "-g", "48"]
        subprocess.run([*command, "-preset", "ultrafast", str(folder / f"video_{number}.mp4")], check=True)
    return folder


def timed(side: Callable[[Path, Path, int], None], source: Path, stride: int) -> tuple[float, float, int]:
    """Run a side once; return wall and processor seconds, and the clips written."""
    with tempfile.TemporaryDirectory() as folder:
        output, wall, processor = Path(folder) / "out", time.perf_counter(), processor_seconds()
        side(source, output, stride)
        seconds = time.perf_counter() - wall, processor_seconds() - processor
        clips = len(list((output / "clips" if (output / "clips").is_dir() else output).glob("*.mp4")))
    return *seconds, clips


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def memory(source: Path, stride: int) -> dict[str, float]:
    """Return the peaks of a fresh process that splits a folder, and of its largest child (ffmpeg), in MB."""
    paths = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]
    lines = [f"import resource, sys, tempfile; from pathlib import Path; sys.path[:0] = {paths!r}"]
    lines += ["import av; from bench_curate import logger, ours; logger.remove()"]
    lines += [f"ours(Path({str(source)!r}), Path(tempfile.mkdtemp()) / 'out', {stride})"]
    lines += ["who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)"]
    lines += ["print(*(resource.getrusage(one).ru_maxrss / 1024 for one in who))"]
    command = [sys.executable, "-c", "\n".join(lines)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(("peak_mb", "ffmpeg_peak_mb"), map(float, said), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--videos", type=Path, help="folder of videos; default: generated ones")
    parser.add_argument("--stride", type=int, default=10, help="seconds of a clip (default: that of the command)")
    parser.add_argument("--size", default="640x360", help="of generated videos")
    parser.add_argument("--workers", type=int, default=2, help="of threads and of Ray, for their comparison")
    parser.add_argument("--executors", nargs="*", choices=("threads", "ray"), default=["threads", "ray"])
    parser.add_argument("--pairs", type=int, default=5, help="turns of each side")
    parser.add_argument(
        "--many", type=int, nargs="*", default=[10, 100], help="numbers of videos to measure memory with"
    )
    parser.add_argument(
        "--long", type=int, nargs="*", default=[1, 20], help="minutes of a video to measure memory with"
    )
    args = parser.parse_args()
    logger.remove()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        source = args.videos or generate(Path(folder) / "videos", 3, 40, args.size)
        turns: dict[str, list[tuple[float, float, int]]] = {"ours": [], "plain": []}
        for pair in range(args.pairs):
            for name, side in [("ours", ours), ("plain", plain)][:: 1 if pair % 2 else -1]:
                turns[name].append(timed(side, source, args.stride))
        assert turns["ours"][0][2] == turns["plain"][0][2], "both sides write the same clips"
        for index, kind in enumerate(("wall", "processor")):
            ratios = [other[index] / own[index] for own, other in zip(turns["ours"], turns["plain"], strict=True)]
            speeds = {name: statistics.median(turn[2] / turn[index] for turn in side) for name, side in turns.items()}
            rows.append({"seconds": kind, **speeds, "ratio": statistics.median(ratios), "ratios": ratios, "goal": GOAL})
            print(f"clips per {kind} second: {speeds['ours']:.2f}, plain loop {speeds['plain']:.2f}: ", end="")
            print(f"ratio {rows[-1]['ratio']:.3f} (goal {GOAL})")
        sides = {name: functools.partial(ours, executor=name, workers=args.workers) for name in args.executors}
        if "ray" in sides and importlib.util.find_spec("ray") is None:
            print("ray is not installed: not measured")
            del sides["ray"]
        for name, side in sides.items():
            wall, _, clips = timed(side, source, args.stride)
            rows.append({"executor": name, "workers": args.workers, "clips": clips, "seconds": wall})
            print(f"{name}, {args.workers} workers: {clips} clips in {wall:.1f} s")
        for count, seconds in [*((count, 6) for count in args.many), *((1, 60 * minutes) for minutes in args.long)]:
            small = generate(Path(folder) / f"many_{count}_{seconds}", count, seconds, "160x96")
            rows.append({"videos": count, "seconds_each": seconds, **memory(small, args.stride)})
            told = f"{rows[-1]['peak_mb']:.0f} MB at most, ffmpeg {rows[-1]['ffmpeg_peak_mb']:.0f} MB"
            print(f"{count} videos of {seconds} s: {told}")
    about = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "ratio": "ours / plain clips per s",
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({**about, "stride": args.stride, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

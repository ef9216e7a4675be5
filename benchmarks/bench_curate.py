"""Clips per second of `curate.py split` against a plain ffmpeg loop that writes the same clips; threads against Ray; memory.

    python benchmarks/bench_curate.py                                   # generated footage
    python benchmarks/bench_curate.py --videos FOLDER --stride 5 --workers 2
    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/bench_curate.py --only shots

Both sides use one worker, one thread of libx264 and the same quality, and take turns. The plain loop is told the spans: it
seeks, encodes and nothing else. Ours probes, finds spans, checks what came out, scores motion, writes captions, metas, the
dataset, the records and the report. Ray is measured with its start (a cluster of this machine). Processor seconds are those
of this process and of all ffmpeg processes. Memory is the peak of the Python process, a fresh one each, imports included, and
the peak of its largest ffmpeg process: for many videos, and for one that is long.

Shot detection: frames per processor second of TransNetV2 with random weights, alone, and with decoding and scaling. The other
side is the published network as it is written, with torch's three-dimensional convolutions, window after window over frames
of the same ffmpeg command. For frames per second of a core: OMP_NUM_THREADS=1 taskset -c 1. --only: some of the parts; the
result file keeps the rows of the others.

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
import numpy as np
import torch
import torch.nn.functional as F
from loguru import logger

from cosmos_predict.cli.curate import build_parser, read_options
from cosmos_predict.curate.media import small_frames
from cosmos_predict.curate.split import list_videos, split
from cosmos_predict.curate.transnet import DILATIONS, HOP, WINDOW, TransNetV2, transition_probabilities
from cosmos_predict.data.video_reader import probe

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = (
    Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).resolve().parent / "results") / "bench_curate_cpu.json"
)
GOAL = 0.9
Turn = tuple[float, float, int]
PARTS = {"split": "seconds", "executors": "executor", "memory": "videos", "shots": "shots"}  # first key of their rows


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


def timed(side: Callable[[Path, Path, int], None], source: Path, stride: int) -> Turn:
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


def plain_shots(network: TransNetV2, frames: np.ndarray) -> np.ndarray:
    """Return transition probabilities (T,) of uint8 frames (T, 27, 48, 3) by the published network as it is written."""

    def forward(window: torch.Tensor) -> torch.Tensor:
        x, levels = window.permute(0, 4, 1, 2, 3).float().div_(255), list[torch.Tensor]()
        for level in network.SDDCNN:
            first, second = (
                [block.get_submodule(f"Conv3D_{n}.layers") for n in DILATIONS] + [block.get_submodule("bn")]
                for block in level.get_submodule("DDCNN").children()
            )
            shortcut = x = first[-1](torch.cat([convolve(x) for convolve in first[:-1]], dim=1)).relu()
            x = second[-1](torch.cat([convolve(x) for convolve in second[:-1]], dim=1)).relu()
            x = F.avg_pool3d(x + shortcut, (1, 2, 2))
            levels.append(x)
        flat = x.permute(0, 2, 3, 4, 1).flatten(2)
        joined = torch.cat([network.color_hist_layer(window), network.frame_sim_layer(levels), flat], dim=-1)
        return network.cls_layer1(network.fc1(joined).relu()).sigmoid()[0, :, 0]

    margin = (WINDOW - HOP) // 2
    after = frames[-1:].repeat(margin + -len(frames) % HOP, axis=0)
    padded = torch.from_numpy(np.concatenate([frames[:1].repeat(margin, axis=0), frames, after]))
    starts = range(0, len(padded) - WINDOW + 1, HOP)
    with torch.inference_mode():
        found = [forward(padded[None, start : start + WINDOW])[margin : margin + HOP] for start in starts]
    return torch.cat(found).numpy()[: len(frames)]


def measure_shots(video: Path, pairs: int) -> list[dict[str, Any]]:
    """Measure both sides over a video, the network alone and with what reads the frames."""
    torch.manual_seed(0)
    network, frames, rows = TransNetV2(), np.concatenate([*small_frames(video)]), list[dict[str, Any]]()
    np.testing.assert_allclose(transition_probabilities(network, [frames]), plain_shots(network, frames), atol=1e-5)
    sides: dict[str, list[Callable[[], Any]]] = {
        "network": [lambda: transition_probabilities(network, [frames]), lambda: plain_shots(network, frames)],
        "whole path": [
            lambda: transition_probabilities(network, small_frames(video)),
            lambda: plain_shots(network, np.concatenate([*small_frames(video)])),
        ],
        "decoding and scaling": [lambda: list(small_frames(video))],
    }
    for name, run in sides.items():
        turns: list[list[float]] = [[] for _ in run]
        for pair in range(pairs):
            for side in range(len(run))[:: 1 if pair % 2 else -1]:
                before = processor_seconds()
                run[side]()
                turns[side].append(processor_seconds() - before)
        row = {"shots": name, "frames": len(frames), "threads": torch.get_num_threads()}
        rows.append(row | {"ours": len(frames) / statistics.median(turns[0])})
        told = f"{name}: {rows[-1]['ours']:.0f} frames per processor second"
        if len(run) > 1:
            ratios = [plain / ours for ours, plain in zip(*turns, strict=True)]
            rows[-1] |= {"plain": len(frames) / statistics.median(turns[1]), "ratio": statistics.median(ratios)}
            rows[-1]["ratios"] = ratios
            told += f", as published {rows[-1]['plain']:.0f}: ratio {rows[-1]['ratio']:.2f}"
        print(told)
    return rows


def measure_split(source: Path, stride: int, pairs: int) -> list[dict[str, Any]]:
    rows, turns = list[dict[str, Any]](), {"ours": list[Turn](), "plain": list[Turn]()}
    for pair in range(pairs):
        for name, side in [("ours", ours), ("plain", plain)][:: 1 if pair % 2 else -1]:
            turns[name].append(timed(side, source, stride))
    assert turns["ours"][0][2] == turns["plain"][0][2], "both sides write the same clips"
    for index, kind in enumerate(("wall", "processor")):
        ratios = [other[index] / own[index] for own, other in zip(turns["ours"], turns["plain"], strict=True)]
        speeds = {name: statistics.median(turn[2] / turn[index] for turn in side) for name, side in turns.items()}
        rows.append({"seconds": kind, **speeds, "ratio": statistics.median(ratios), "ratios": ratios, "goal": GOAL})
        print(f"clips per {kind} second: {speeds['ours']:.2f}, plain loop {speeds['plain']:.2f}: ", end="")
        print(f"ratio {rows[-1]['ratio']:.3f} (goal {GOAL})")
    return rows


def measure_executors(source: Path, stride: int, workers: int, names: list[str]) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        if name == "ray" and importlib.util.find_spec("ray") is None:
            print("ray is not installed: not measured")
            continue
        wall, _, clips = timed(functools.partial(ours, executor=name, workers=workers), source, stride)
        rows.append({"executor": name, "workers": workers, "clips": clips, "seconds": wall})
        print(f"{name}, {workers} workers: {clips} clips in {wall:.1f} s")
    return rows


def measure_memory(folder: Path, stride: int, sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    rows = []
    for count, seconds in sizes:
        small = generate(folder / f"many_{count}_{seconds}", count, seconds, "160x96")
        rows.append({"videos": count, "seconds_each": seconds, **memory(small, stride)})
        told = f"{rows[-1]['peak_mb']:.0f} MB at most, ffmpeg {rows[-1]['ffmpeg_peak_mb']:.0f} MB"
        print(f"{count} videos of {seconds} s: {told}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], help="parts to measure")
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
    parser.add_argument("--shots", type=int, default=10, help="seconds of video to measure shot detection with")
    args = parser.parse_args()
    logger.remove()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        source: Path = args.videos or Path(folder) / "videos"
        if args.videos is None and {"split", "executors"} & {*args.only}:
            generate(source, 3, 40, args.size)
        if "split" in args.only:
            rows += measure_split(source, args.stride, args.pairs)
        if "executors" in args.only:
            rows += measure_executors(source, args.stride, args.workers, args.executors)
        if "memory" in args.only:
            sizes = [*((count, 6) for count in args.many), *((1, 60 * minutes) for minutes in args.long)]
            rows += measure_memory(Path(folder), args.stride, sizes)
        if "shots" in args.only:
            (video,) = generate(Path(folder) / "shots", 1, args.shots, args.size).iterdir()
            rows += measure_shots(video, args.pairs)
    measured = {PARTS[part] for part in args.only}
    about: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {"rows": []}
    kept = [row for row in about.pop("rows") if next(iter(row)) not in measured]
    if "split" in args.only:
        about |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        about |= {"ratio": "ours / plain clips per s", "stride": args.stride}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({**about, "rows": kept + rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

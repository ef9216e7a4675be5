"""Clips per second of one data worker against a plain loop over the same decoder, file by file; and which decoder wins.

    python benchmarks/bench_data.py                                        # the clips of assets/robot_arm
    python benchmarks/bench_data.py --clips FOLDER FILE.mp4 --num_frames 17 --video_size 432 768

The plain loop opens the file, decodes the same frames with the same number of threads and fits them with the same function,
nothing else. Ours is a `VideoFolderDataset` sample: window, text embedding, masks, collation, and with one worker process
the way of the batch to this one. Both sides take turns on the same windows; the worker lives through all of them, its turns
start when what it has read ahead is used up, and it idles while the others work. Ratios are medians over the pairs of turns; processor
time hardly feels other programs. Prints a table; the rows go to `benchmarks/results/bench_data_cpu.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger

from cosmos_predict.data import transforms, video_reader
from cosmos_predict.data.loader import build_dataloader
from cosmos_predict.data.video_folder import VideoFolderDataset
from cosmos_predict.errors import DataError, MissingDependencyError
from cosmos_predict.io.embeddings import write_embedding

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = (
    Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).resolve().parent / "results") / "bench_data_cpu.json"
)
GOAL = 0.95
READ_AHEAD = 2  # batches, the loader's default
Turn = Callable[[int], tuple[float, float]]  # does the samples of a turn by number; wall and processor seconds


def decode_decord(path: str, ids: np.ndarray) -> np.ndarray:
    import decord

    return decord.VideoReader(path, num_threads=2).get_batch(ids.tolist()).asnumpy()


def decode_pyav(path: str, ids: np.ndarray) -> np.ndarray:
    """Frames by their times, of a clip of constant rate: seek once, decode forward."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        ticks = 1 / (float(stream.average_rate or 1) * float(stream.time_base or 1))  # of a frame
        first = round(int(ids[0]) * ticks) + (stream.start_time or 0)
        container.seek(first, stream=stream, backward=True)
        frames: list[np.ndarray] = []
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts > first - ticks / 2:
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == len(ids):
                    break
    return np.stack(frames)


PLAIN = {"decord": decode_decord, "pyav": decode_pyav}


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def numbers_of(turn: int, samples: int) -> range:
    """The sample numbers of a turn, the same on every side; those between two turns are the worker's warm-up."""
    return range(turn * (samples + READ_AHEAD + 1) + READ_AHEAD + 1, (turn + 1) * (samples + READ_AHEAD + 1))


def plain_turn(dataset: VideoFolderDataset, samples: int) -> Turn:
    clip, decode = dataset.clips[0], PLAIN[dataset.backend]

    def take(turn: int) -> tuple[float, float]:
        windows = [dataset.frame_ids(clip, number) for number in numbers_of(turn, samples)]
        wall, cpu = clock()
        for ids in windows:
            frames = torch.from_numpy(decode(str(clip.video), ids)).permute(0, 3, 1, 2)
            transforms.fit_frames(frames, dataset.video_size, dataset.fit).frames.permute(1, 0, 2, 3).contiguous()
        end, cpu_end = clock()
        return end - wall, cpu_end - cpu

    return take


def own_turn(dataset: VideoFolderDataset, samples: int) -> Turn:
    def take(turn: int) -> tuple[float, float]:
        batches = build_dataloader(
            dataset, 1, start_sample=numbers_of(turn, samples).start, num_batches=samples, num_workers=0
        )
        wall, cpu = clock()
        for _ in batches:
            pass
        end, cpu_end = clock()
        return end - wall, cpu_end - cpu

    return take


def worker_turn(dataset: VideoFolderDataset, samples: int) -> Turn:
    """One worker for all turns. Its clock starts when what it has read ahead is used up, and it idles when it is done."""
    batches = iter(build_dataloader(dataset, 1, num_workers=1, prefetch_factor=READ_AHEAD))

    def take(turn: int) -> tuple[float, float]:
        for _ in range(READ_AHEAD + 1):
            next(batches)
        wall, cpu = clock()
        for _ in range(samples):
            numbers = next(batches)["sample_number"]
        end, cpu_end = clock()
        assert int(numbers) == numbers_of(turn, samples)[-1]
        time.sleep(3 * READ_AHEAD * (end - wall) / samples)
        return end - wall, cpu_end - cpu

    return take


def measure(path: Path, backend: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return a row of the table; raises DataError where the decoder cannot read the clip."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "videos").mkdir()
        (Path(folder) / "videos" / f"clip{path.suffix}").symlink_to(path.resolve())
        write_embedding(Path(folder) / "t5_xxl" / "clip.pickle", np.ones((args.tokens, 1024), np.float16))
        dataset = VideoFolderDataset(folder, args.num_frames, args.video_size, fit="crop", backend=backend)
        dataset.bad.strict = True
        expected = dataset.read(dataset.clips[0], dataset.frame_ids(dataset.clips[0], 0)).frames
        ids = dataset.frame_ids(dataset.clips[0], 0)
        frames = torch.from_numpy(PLAIN[backend](str(path), ids)).permute(0, 3, 1, 2)
        same = torch.equal(transforms.fit_frames(frames, dataset.video_size, dataset.fit).frames, expected)
        kinds = {"plain": plain_turn, "in process": own_turn, "worker": worker_turn}
        turns = {name: kind(dataset, args.samples) for name, kind in kinds.items()}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
        for pair in range(-1, args.pairs):
            for name in list(turns) if pair % 2 else list(reversed(turns)):
                taken = turns[name](pair + 1)
                if pair >= 0:
                    times[name].append(taken)
    info = dataset.clips[0].info

    def ratio(name: str, what: int = 0) -> float:
        pairs = zip(times["plain"], times[name], strict=True)
        return statistics.median(plain[what] / own[what] for plain, own in pairs)

    def rate(name: str) -> float:
        return statistics.median(args.samples / wall for wall, _ in times[name])

    return {
        "file": f"{path.parent.name}/{path.name}",
        "pixels": f"{info.width}x{info.height}",
        "frames": info.frames,
        "backend": backend,
        "plain_reads_the_same": same,
        "plain_clips_per_s": rate("plain"),
        "worker_clips_per_s": rate("worker"),
        "worker_ratio": ratio("worker"),
        "in_process_ratio": ratio("in process"),
        "in_process_cpu_ratio": ratio("in process", 1),
    }


def find_clips(places: list[Path]) -> list[Path]:
    found = [path for place in places for path in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return [path for path in found if video_reader.is_video(path)]


def save(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Put the rows of this setting into the result file, in place of earlier ones."""
    names = ("num_frames", "video_size", "samples", "pairs", "threads", "tokens")
    setting = {name: getattr(args, name) for name in names}
    runs = json.loads(RESULT.read_text())["runs"] if RESULT.exists() else []
    runs = [run for run in runs if run["setting"] != setting] + [{"setting": setting, "rows": rows}]
    record = {
        "device": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "formula": "ratio: median over pairs of seconds(plain loop) / seconds(ours), timed in turn, 1 = as fast",
        "goals": {"worker_ratio": GOAL},
        "runs": runs,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {RESULT}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, nargs="+", default=[REPOSITORY / "assets" / "robot_arm" / "videos"])
    parser.add_argument("--backends", nargs="+", choices=tuple(PLAIN), default=list(PLAIN))
    parser.add_argument("--num_frames", type=int, default=17)
    parser.add_argument("--video_size", type=int, nargs=2, metavar=("H", "W"), default=[96, 128])
    parser.add_argument("--samples", type=int, default=16, help="per turn")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on both sides")
    parser.add_argument("--tokens", type=int, default=100, help="of the text embedding")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logger.remove()
    rows, best = [], dict[str, dict[str, float]]()
    print(f"{'file':32} {'pixels':>10} {'decoder':>8} {'plain/s':>8} {'worker':>7} {'in process':>10} {'its cpu':>8}")
    for path in find_clips(args.clips):
        for backend in args.backends:
            try:
                row = measure(path, backend, args)
            except (DataError, MissingDependencyError) as error:
                print(f"{path.parent.name}/{path.name} {backend}: {str(error)[:100]}")
                continue
            rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
            best.setdefault(row["file"], {})[backend] = row["plain_clips_per_s"]
            print(
                f"{row['file']:32} {row['pixels']:>10} {backend:>8} {row['plain_clips_per_s']:8.2f} {row['worker_ratio']:7.3f} "
                f"{row['in_process_ratio']:10.3f} {row['in_process_cpu_ratio']:8.3f}"
                + ("" if row["plain_reads_the_same"] else "  (other frames)"),
                flush=True,
            )
    for file, rates in best.items():
        winner = max(rates, key=lambda name: rates[name])
        others = ", ".join(f"{rates[winner] / rate:.2f} times {name}" for name, rate in rates.items() if name != winner)
        print(f"{file}: {winner} wins{f' ({others})' if others else ''}")
    for backend in args.backends:
        ratios = [row["worker_ratio"] for row in rows if row["backend"] == backend]
        if ratios:
            print(f"{backend}: worker / plain, median over files {statistics.median(ratios):.3f} (goal {GOAL})")
    save(args, rows)


if __name__ == "__main__":
    main()

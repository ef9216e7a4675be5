"""Chunks per second of the cached-latent preparation against a plain loop over the same tokenizer, and its memory.

    python benchmarks/bench_prepare.py                          # 121 frames of 256x448, the DCT tokenizer, a generated video
    python benchmarks/bench_prepare.py --tokenizer FOLDER --height 704 --width 1280 --video clip.mp4 --device cuda

The plain loop decodes a window, resizes it, encodes it and its first nine frames, and saves the five files, one chunk after
the other; what it saves is neither flushed to disk nor renamed. Ours is `write_chunks`. Both work on the same windows with the
same text embedding and take turns; ratios are medians over the pairs of turns. `distinct` windows are all different; of
`repeated` ones every other is drawn twice, as happens in small datasets, and ours encodes it once.

Memory is the peak RSS of a process of its own less that after imports, for a video of a minute and for one of an hour.
Prints a table; the rows go to `benchmarks/results/bench_prepare_<device>.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import torch

from cosmos_predict.data import transforms, video_reader
from cosmos_predict.data.nemo_cache import CONDITIONING, INFO, LATENT, MASK, TEXT
from cosmos_predict.data.prepare_nemo import GIVEN_FRAMES, Chunk, write_chunks
from cosmos_predict.tokenizers.load import load_tokenizer

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).resolve().parent / "results")
GOALS = {"distinct": 1.0, "repeated": 1.0, "memory hour / minute": 1.1}
EMBEDDING = torch.ones(20, 1024, dtype=torch.bfloat16)


class Side:
    """The tokenizer and the sizes that both sides share."""

    def __init__(self, args: argparse.Namespace) -> None:
        options: dict[str, Any] = {"channels": 16, "temporal": 8} if args.tokenizer == "dct" else {}
        dtype = torch.bfloat16 if args.device != "cpu" else torch.float32
        self.args, self.tokenizer = args, load_tokenizer(args.tokenizer, device=args.device, dtype=dtype, **options)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.tokenizer.encode(video)

    def plain(self, chunks: list[Chunk], folder: Path) -> None:
        args = self.args
        folder.mkdir()
        for number, chunk in enumerate(chunks):
            ids = range(chunk.start, chunk.start + args.num_frames)
            frames = torch.from_numpy(video_reader.read_frames(chunk.video, list(ids))).permute(0, 3, 1, 2)
            frames = transforms.resize_uint8(frames, (args.height, args.width), "bilinear")
            video = transforms.normalize_video(frames.transpose(0, 1)[None].to(args.device))
            latent = self.encode(video)[0].to("cpu", torch.bfloat16)
            video[:, :, GIVEN_FRAMES:] = 0
            conditioning = self.encode(video)[0].to("cpu", torch.bfloat16)
            padded = torch.zeros(512, 1024, dtype=torch.bfloat16)
            padded[: len(EMBEDDING)] = EMBEDDING
            torch.save(latent, folder / f"{number}.{LATENT}")
            torch.save(conditioning, folder / f"{number}.{CONDITIONING}")
            torch.save(padded, folder / f"{number}.{TEXT}")
            torch.save(torch.ones(512, dtype=torch.bfloat16), folder / f"{number}.{MASK}")
            (folder / f"{number}.{INFO}").write_text(json.dumps({"start_frame": chunk.start}))

    def ours(self, chunks: list[Chunk], folder: Path) -> None:
        args = self.args
        settings = {name: getattr(args, name) for name in ("num_frames", "height", "width")}
        settings |= {"fit": "published", "conditioning_latent": True}
        texts = lambda prompts: dict.fromkeys(prompts, EMBEDDING)  # noqa: E731
        write_chunks(chunks, folder, settings, self.encode, texts, args.device, args.num_workers)


def chunks_of(video: Path, args: argparse.Namespace, turn: int, repeated: bool = False) -> list[Chunk]:
    """The windows of a turn, spread over the video; `repeated`: every other one twice."""
    info = video_reader.probe(video)
    last = info.frames - args.num_frames
    starts = [(turn + number * max(last // args.chunks, 1)) % (last + 1) for number in range(args.chunks)]
    if repeated:
        starts = [starts[number - number % 2] for number in range(args.chunks)]
    return [Chunk(video, info, "a video of sks.", start) for start in starts]


def compare(side: Side, video: Path, folder: Path, repeated: bool) -> dict[str, float]:
    """Return a row: chunks per second of both, and the median of plain / ours in time."""
    args, times = side.args, {"plain": list[float](), "ours": list[float]()}
    for pair in range(-1, args.pairs):
        chunks = chunks_of(video, args, pair + 1, repeated)
        for name in ("plain", "ours") if pair % 2 else ("ours", "plain"):
            began = time.perf_counter()
            (side.plain if name == "plain" else side.ours)(chunks, folder / name)
            if pair >= 0:
                times[name].append(time.perf_counter() - began)
        for number in range(len(chunks)):
            for kind in (LATENT, CONDITIONING, TEXT, MASK):
                one, other = (torch.load(folder / n / f"{number}.{kind}", weights_only=True) for n in ("plain", "ours"))
                assert torch.equal(one, other), f"{number}.{kind} differs"
        for name in times:
            shutil.rmtree(folder / name)
        (folder / "ours.json").unlink()
    ratios = [plain / ours for plain, ours in zip(times["plain"], times["ours"], strict=True)]
    row = {f"{name}_chunks_per_s": args.chunks / statistics.median(seconds) for name, seconds in times.items()}
    return {**row, "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def make_video(path: Path, seconds: int, args: argparse.Namespace) -> Path:
    """Write a video of a slowly changing picture, of half the size of the samples, at 24 fps."""
    size = f"{args.width // 2}x{args.height // 2}"
    source = ["-f", "lavfi", "-i", f"gradients=size={size}:rate=24:speed=0.01:duration={seconds}:seed=1"]
    code = ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "35", "-pix_fmt", "yuv420p", "-threads", "2"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, *code, str(path)], check=True)
    return path


def resident_mib(name: str) -> float:
    """Return the resident memory of this process: "VmRSS" now, "VmHWM" its peak (ru_maxrss would count the parent's too)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(name)) / 1024


def memory_of(video: Path, args: argparse.Namespace) -> float:
    """Return the MiB that preparing a video takes, in a process of its own."""
    flags = [
        f"--{name}={getattr(args, name)}" for name in ("height", "width", "num_frames", "chunks", "tokenizer", "device")
    ]
    flags += [f"--num_workers={args.num_workers}", f"--threads={args.threads}"]
    command = [sys.executable, __file__, "--memory_of", str(video), *flags]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="dct", help="folder, file, or dct")
    parser.add_argument("--video", type=Path, help="to prepare; a generated minute by default")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--num_frames", type=int, default=121)
    parser.add_argument("--chunks", type=int, default=4, help="per turn")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on both sides")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--long", type=int, default=3600, help="seconds of the long video; 0: no memory measurement")
    parser.add_argument("--memory_of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.memory_of:
            before = resident_mib("VmRSS")
            Side(args).ours(chunks_of(args.memory_of, args, 0), folder / "ours")
            print(resident_mib("VmHWM") - before)
            return
        video = args.video or make_video(folder / "minute.mp4", 60, args)
        rows = {name: compare(Side(args), video, folder, name == "repeated") for name in ("distinct", "repeated")}
        for name, row in rows.items():
            print(f"{name:10}", "  ".join(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
        if args.long:
            minute, hour = folder / "minute.mp4", make_video(folder / "hour.mp4", args.long, args)
            sizes = [memory_of(path if path.exists() else make_video(path, 60, args), args) for path in (minute, hour)]
            rows["memory"] = {"minute_mib": sizes[0], "hour_mib": sizes[1], "ratio": sizes[1] / sizes[0]}
            print(
                f"memory     a minute {sizes[0]:.1f} MiB, {args.long} s {sizes[1]:.1f} MiB, {sizes[1] / sizes[0]:.3f} times"
            )
    names = ("tokenizer", "height", "width", "num_frames", "chunks", "pairs", "num_workers", "threads", "long")
    record = {
        "device": f"{platform.machine()}, {os.cpu_count()} cores"
        if args.device == "cpu"
        else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "formula": "ratio: median over pairs of seconds(plain loop) / seconds(ours), timed in turn; memory: peak RSS less that "
        "after imports",
        "goals": GOALS,
        "setting": {name: getattr(args, name) for name in names},
        "rows": {name: {key: round(value, 4) for key, value in row.items()} for name, row in rows.items()},
    }
    path = RESULTS / f"bench_prepare_{torch.device(args.device).type}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()

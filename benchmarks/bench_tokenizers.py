"""Time and memory of the Wan 2.1 VAE and the Cosmos CV8x8x8 tokenizer against diffusers' classes.

    python benchmarks/bench_tokenizers.py --threads 2                              # CPU, published widths, small frames
    python benchmarks/bench_tokenizers.py --device cuda --dtype bfloat16 --wan 93 480 832 --cosmos 121 704 1280

Same weights, same input, same run. Steps of the two are timed in turn (CUDA events on a GPU) after a warm-up of each; the
ratio is the median over the pairs. On a CPU the ratio of processor time is given too: it hardly feels other programs.
Memory is the peak RSS less the RSS after imports, in one process each (weights included); on a GPU the peak of what torch
allocated. `--flat` clips of growing length go through Wan's encoder and decoder, whole and as a stream of chunks, to show
that a stream's memory does not grow. Prints tables; the rows go to `benchmarks/results/bench_tokenizers_<device>.json`, in
place of earlier rows of the same setting.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).resolve().parent / "results")
SIDES = ("ours", "diffusers")
PASSES = ("encode", "decode")
GOALS = {"cpu": {"wan": 0.6, "cosmos": 0.8}, "cuda": {"wan": 0.6, "cosmos": 0.6}}
Step = Callable[[], Tensor]


def build(model: str, side: str, args: argparse.Namespace) -> Any:
    """Return one side's tokenizer; the same seed gives both the same weights."""
    from cosmos_predict.tokenizers import diffusers_names
    from cosmos_predict.tokenizers.load import build_tokenizer

    torch.manual_seed(0)
    name, size = ("wan2.1", {"dim": args.dim}) if model == "wan" else ("cosmos_cv8x8x8", {"channels": args.channels})
    ours = build_tokenizer(name, **size).requires_grad_(False)
    ours.normalizer = None  # diffusers leaves the statistics to its pipelines
    if side == "ours":
        return ours.to(args.device, getattr(torch, args.dtype))
    import diffusers

    if model == "wan":
        theirs, rename = diffusers.AutoencoderKLWan(base_dim=args.dim), diffusers_names.wan_diffusers_name
    else:
        widths = [args.channels * m for m in (1, 2, 4, 4)]
        theirs = diffusers.AutoencoderKLCosmos(
            encoder_block_out_channels=tuple(widths), decode_block_out_channels=(*widths[1:], widths[-1])
        )
        rename = diffusers_names.cosmos_diffusers_name
    theirs.load_state_dict({rename(key): value for key, value in ours.state_dict().items()}, strict=model == "wan")
    return theirs.eval().requires_grad_(False).to(args.device, getattr(torch, args.dtype))


def step_of(side: str, tokenizer: Any, kind: str, x: Tensor) -> Step:
    """Return encoding or decoding of `x` (a video, or latents)."""
    if side == "ours":
        return lambda: getattr(tokenizer, kind)(x)
    if kind == "encode":
        return lambda: tokenizer.encode(x).latent_dist.mode()
    return lambda: tokenizer.decode(x).sample


def inputs(model: str, kind: str, size: list[int], args: argparse.Namespace) -> Tensor:
    frames, height, width = size
    generator = torch.Generator().manual_seed(1)
    if kind == "decode":
        shape = (1, 16, 1 + (frames - 1) // (4 if model == "wan" else 8), height // 8, width // 8)
        x = torch.randn(shape, generator=generator)
    else:
        x = torch.rand((1, 3, frames, height, width), generator=generator) * 2 - 1
    return x.to(args.device, getattr(torch, args.dtype))


def seconds(step: Step, cuda: bool) -> tuple[float, float]:
    """Return wall seconds and processor seconds of a step."""
    if cuda:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000, 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def resident_bytes(what: str) -> int:
    """Return the resident memory of this process: "VmRSS" now, "VmHWM" its peak (ru_maxrss would count the parent's too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) * 1024


def stream_of(tokenizer: Any, kind: str, x: Tensor, chunk: int) -> Step:
    """Return the pass over `x` as a stream whose results are looked at and dropped."""
    from cosmos_predict.tokenizers.wan import WanStream

    def step() -> Tensor:
        stream, run = WanStream(), getattr(tokenizer, f"{kind}_chunk")
        sizes = [1] + [chunk] * ((x.shape[2] - 1) // chunk)
        return torch.stack([run(piece, stream).mean() for piece in x.split(sizes, dim=2)])

    return step


def peak_memory(
    args: argparse.Namespace, model: str, side: str, kind: str, size: list[int], stream: bool = False
) -> int:
    """Return the peak bytes of two steps: on a GPU of this process, on a CPU of a process of its own."""
    if args.device == "cuda":
        tokenizer = build(model, side, args)
        x = inputs(model, kind, size, args)
        torch.cuda.reset_peak_memory_stats()
        (stream_of(tokenizer, kind, x, 4 if kind == "encode" else 1) if stream else step_of(side, tokenizer, kind, x))()
        return torch.cuda.max_memory_allocated()
    command = [sys.executable, __file__, "--memory-of", model, side, kind, str(int(stream)), *map(str, size)]
    for name in ("dim", "channels", "dtype", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def memory_in_this_process(args: argparse.Namespace) -> int:
    """Return the peak RSS of two steps of one side, less the RSS after imports."""
    model, side, kind, stream, *size = args.memory_of
    size = [int(value) for value in size]
    import cosmos_predict.tokenizers.load
    import cosmos_predict.tokenizers.wan  # noqa: F401

    if side == "diffusers":
        from diffusers import AutoencoderKLCosmos, AutoencoderKLWan  # noqa: F401
    baseline = resident_bytes("VmRSS")
    tokenizer = build(model, side, args)
    x = inputs(model, kind, size, args)
    chunk = 4 if kind == "encode" else 1
    step = stream_of(tokenizer, kind, x, chunk) if int(stream) else step_of(side, tokenizer, kind, x)
    for _ in range(2):
        step()
    return resident_bytes("VmHWM") - baseline


def compare(args: argparse.Namespace, model: str, kind: str, tokenizers: dict[str, Any]) -> dict:
    """Return one row: times, ratio and memory of one pass of both sides."""
    cuda = args.device == "cuda"
    size = getattr(args, model)
    x = inputs(model, kind, size, args)
    steps = {side: step_of(side, tokenizers[side], kind, x) for side in SIDES}
    outputs = {side: steps[side]().float().clamp(-1, 1) for side in SIDES}  # the warm-up; diffusers clamps
    row: dict[str, Any] = {"model": model, "pass": kind, "size": size}
    row["max_difference"] = float((outputs["ours"] - outputs["diffusers"]).abs().max())
    del outputs
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for repeat in range(args.repeats):
        for side in SIDES if repeat % 2 else reversed(SIDES):
            times[side].append(seconds(steps[side], cuda))
    for index, clock in enumerate(("wall", "processor")):
        if cuda and index:
            break
        ratios = [a[index] / b[index] for a, b in zip(times["ours"], times["diffusers"], strict=True)]
        row[f"{clock}_ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    for side in SIDES:
        walls = [wall for wall, _ in times[side]]
        row[side] = {"seconds": {"median": statistics.median(walls), "min": min(walls), "max": max(walls)}}
    if not args.no_memory:
        for side in SIDES:
            row[side]["peak_mib"] = peak_memory(args, model, side, kind, size) / 2**20
        row["memory_ratio"] = row["ours"]["peak_mib"] / row["diffusers"]["peak_mib"]
    return row


def show(row: dict, goal: float) -> None:
    name = f"{row['model']:6} {row['pass']:6} {'x'.join(map(str, row['size'])):>11}"
    for side in SIDES:
        found = row[side]
        peak = f"{found['peak_mib']:9.0f} MiB" if "peak_mib" in found else ""
        low, high = found["seconds"]["min"], found["seconds"]["max"]
        print(f"{name} {side:10} {found['seconds']['median']:8.3f} s ({low:.3f} .. {high:.3f}) {peak}")
    text = ", ".join(
        f"{clock} ratio {row[key]['median']:.3f} ({row[key]['min']:.3f} .. {row[key]['max']:.3f})"
        for clock in ("wall", "processor")
        if (key := f"{clock}_ratio") in row
    )
    print(f"{name} {text}; goal {goal}; outputs differ by at most {row['max_difference']:.1e}", end="")
    print(f"; memory ratio {row['memory_ratio']:.3f}" if "memory_ratio" in row else "")


def measure_flatness(args: argparse.Namespace) -> list[dict]:
    """Return and print the peak memory of Wan's passes by clip length."""
    rows = []
    _, height, width = args.wan
    for kind in PASSES:
        for stream in (False, True):
            row: dict[str, Any] = {"model": "wan", "pass": kind, "stream": stream, "height": height, "width": width}
            sizes = {str(frames): [frames, height, width] for frames in args.flat}
            row["peak_mib"] = {
                n: peak_memory(args, "wan", "ours", kind, size, stream) / 2**20 for n, size in sizes.items()
            }
            rows.append(row)
            peaks = ", ".join(f"T={frames}: {peak:.0f} MiB" for frames, peak in row["peak_mib"].items())
            print(f"wan {kind} {'stream' if stream else 'in one call, chunks of automatic length'}: {peaks}")
    return rows


def save(args: argparse.Namespace, setting: dict, rows: list[dict]) -> Path:
    """Put the rows of this setting into the result file of this device."""
    cuda = args.device == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {os.cpu_count()} cores"
    path = RESULTS / f"bench_tokenizers_{'_'.join(device.lower().split()) if cuda else 'cpu'}.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    runs = [run for run in runs if run["setting"] != setting] + [{"setting": setting, "rows": rows}]
    record = {
        "device": device,
        "torch": torch.__version__,
        "formula": "ratios: median over pairs of seconds(ours) / seconds(diffusers), timed in turn; memory: peak "
        + ("allocated bytes" if cuda else "RSS less RSS after imports, one process each"),
        "goals": GOALS[args.device],
        "runs": runs,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def parse() -> argparse.Namespace:
    size = {"type": int, "nargs": 3, "metavar": ("T", "H", "W")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", choices=("wan", "cosmos"), default=["wan", "cosmos"])
    parser.add_argument("--wan", **size, default=[9, 96, 96], help="clip for the Wan VAE")
    parser.add_argument("--cosmos", **size, default=[17, 192, 192], help="clip for the Cosmos tokenizer")
    parser.add_argument("--dim", type=int, default=96, help="width of the Wan VAE (published: 96)")
    parser.add_argument("--channels", type=int, default=128, help="width of the Cosmos tokenizer (published: 128)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="measure times alone")
    parser.add_argument(
        "--flat", type=int, nargs="*", default=[], metavar="T", help="clip lengths for the memory of Wan"
    )
    parser.add_argument("--memory-of", nargs=7, help=argparse.SUPPRESS)
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    """Measure, print, write."""
    args = parse()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(memory_in_this_process(args))
        return
    if args.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    setting = {name: getattr(args, name) for name in ("dim", "channels", "dtype", "threads", "repeats", "flat")}
    setting |= {model: getattr(args, model) for model in args.models}
    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    rows = []
    for model in args.models:
        tokenizers = {side: build(model, side, args) for side in SIDES}
        for kind in PASSES:
            rows.append(compare(args, model, kind, tokenizers))
            show(rows[-1], GOALS[args.device][model])
        del tokenizers
    if args.flat:
        rows += measure_flatness(args)
    print(f"written to {save(args, setting, rows)}")


if __name__ == "__main__":
    main()

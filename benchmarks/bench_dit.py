"""Time and memory of the DiT's forward and forward + backward against diffusers' CosmosTransformer3DModel.

    python benchmarks/bench_dit.py --threads 2                          # CPU, width 512, 8 blocks, 2,048 tokens
    python benchmarks/bench_dit.py --device cuda --preset 2b_480p        # 2B at 31,104 tokens; 2b_720p: 84,480

Same weights, same inputs, same run. Steps of the two are timed in turn (CUDA events on a GPU) after a warm-up of each;
the ratio is the median over the pairs. CPU memory is the peak RSS less the RSS after imports, in one process each; GPU
memory is the peak of what torch allocated. Prints a table and adds its rows to `benchmarks/results/bench_dit_<device>.json`,
in place of earlier rows of the same setting.

Operations: `cosmos_predict.networks.flops` (a multiply-add is two, attention is bidirectional, norms and elementwise work
are not counted, a training step is three forwards).
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
from diffusers import CosmosTransformer3DModel
from torch import Tensor, nn

from cosmos_predict.checkpoint.dialects import translate
from cosmos_predict.checkpoint.metadata import diffusers_config
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import build_dit
from cosmos_predict.networks.flops import count_tokens, forward_flops, training_flops

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).resolve().parent / "results")
PRESETS: dict[str, dict] = {
    # Published shapes; a backward of these needs activation checkpointing, which is not what is compared here.
    name: {"width": 2048, "blocks": 28, "heads": 16, "latent": latent, "dtype": "bfloat16", "passes": ["forward"]}
    for name, latent in (("2b_480p", [24, 54, 96]), ("2b_720p", [24, 88, 160]))
}
GOALS = {"cpu": {"time": 1.0, "memory": 0.9}, "cuda": {"time": 0.8}}
TEXT_TOKENS = 512
SIDES = ("ours", "diffusers")
Step = Callable[[], Tensor]


def build(args: argparse.Namespace) -> tuple[DiTConfig, dict[str, nn.Module], dict[str, Step]]:
    """Return the configuration, both networks on the same storage of weights, and a forward of each."""
    config = DiTConfig(model_channels=args.width, num_blocks=args.blocks, num_heads=args.heads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    torch.manual_seed(0)
    ours = build_dit(config, device=device, dtype=dtype)
    for name, parameter in ours.named_parameters():
        if name.endswith("_attn.2.weight") or name.endswith("_mlp.2.weight"):  # zero at the start of a training
            nn.init.normal_(parameter, std=0.02)
    with torch.device("meta"):
        settings = {key: value for key, value in diffusers_config(config).items() if not key.startswith("_")}
        theirs = CosmosTransformer3DModel(**settings)
    theirs.load_state_dict(translate(ours.state_dict(), "predict2", "diffusers"), assign=True)
    for name, module in theirs.named_modules():
        if name.endswith(("norm_q", "norm_k")):
            module.eps = 1e-6  # as published; diffusers has 1e-5

    frames, height, width = args.latent
    latent = torch.randn(1, 16, frames, height, width, device=device, dtype=dtype)
    text = torch.randn(1, TEXT_TOKENS, config.crossattn_emb_channels, device=device, dtype=dtype)
    mask = torch.zeros(1, 1, frames, height, width, device=device, dtype=dtype)
    padding = torch.zeros(1, 1, height, width, device=device, dtype=dtype)
    t = torch.tensor([0.4], device=device)
    if args.compile:
        for block in (*ours.blocks, *theirs.transformer_blocks):
            block.compile()
    steps = {
        "ours": lambda: ours(latent, t, text, condition_mask=mask, padding_mask=padding),
        "diffusers": lambda: theirs(latent, t, text, condition_mask=mask, padding_mask=padding, return_dict=False)[0],
    }
    return config, {"ours": ours, "diffusers": theirs}, steps


def pass_step(kind: str, net: nn.Module, forward: Step) -> Step:
    """Return one step of `kind`: "forward" without gradients, or "training": forward, squared output, backward."""

    @torch.no_grad()
    def infer() -> Tensor:
        return forward()

    def train() -> Tensor:
        net.zero_grad(set_to_none=True)
        out = forward()
        out.float().square().mean().backward()
        return out.detach()

    return infer if kind == "forward" else train


def seconds(step: Step, cuda: bool) -> float:
    if cuda:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    begin_time = time.perf_counter()
    step()
    return time.perf_counter() - begin_time


def shares(step: Step, cuda: bool) -> dict[str, float]:
    """Return which part of a profiled step goes to attention, matrix products and everything else."""
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities) as profile:
        step()
        if cuda:
            torch.cuda.synchronize()
    spent = dict.fromkeys(("attention", "linear", "elementwise"), 0.0)
    for event in profile.key_averages():
        if cuda and event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel's time counts for the operator that started it
        kind = "linear" if event.key in ("aten::mm", "aten::addmm", "aten::bmm") else "elementwise"
        kind = "attention" if "attention" in event.key else kind
        spent[kind] += event.self_device_time_total if cuda else event.self_cpu_time_total
    return {kind: round(value / sum(spent.values()), 3) for kind, value in spent.items()}


def resident_bytes(what: str) -> int:
    """Return the resident memory of this process: "VmRSS" now, "VmHWM" its peak (ru_maxrss would count the parent's too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) * 1024


def memory_in_this_process(args: argparse.Namespace, baseline: int) -> int:
    """Return the peak RSS of two steps of one side, less `baseline` bytes."""
    _, nets, steps = build(args)
    step = pass_step(args.passes[0], nets[args.memory_of], steps[args.memory_of])
    for _ in range(2):
        step()
    return resident_bytes("VmHWM") - baseline


def memory(args: argparse.Namespace, kind: str, side: str, step: Step) -> int:
    """Return the peak bytes of a step: on a GPU of this process, on a CPU of a process of its own."""
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    sizes = [str(value) for value in args.latent]
    command = [sys.executable, __file__, "--memory-of", side, "--passes", kind, "--latent", *sizes]
    for name in ("width", "blocks", "heads", "dtype", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command + ["--compile"] * args.compile, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def measure(args: argparse.Namespace, kind: str, config: DiTConfig, nets: dict, steps: dict) -> dict:
    """Return one row of the table."""
    cuda = args.device == "cuda"
    run = {side: pass_step(kind, nets[side], steps[side]) for side in SIDES}
    outputs = {side: run[side]().float() for side in SIDES}  # the warm-up
    error = (outputs["ours"] - outputs["diffusers"]).norm() / outputs["diffusers"].norm()
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(args.repeats):
        for side in SIDES if repeat % 2 else reversed(SIDES):
            times[side].append(seconds(run[side], cuda))
            nets[side].zero_grad(set_to_none=True)
    ratios = [ours / theirs for ours, theirs in zip(times["ours"], times["diffusers"], strict=True)]
    operations = (forward_flops if kind == "forward" else training_flops)(config, tuple(args.latent), TEXT_TOKENS)
    row: dict[str, Any] = {"pass": kind, "repeats": args.repeats, "relative_difference": float(error)}
    row["teraflop"] = operations / 1e12
    row["time_ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    peaks = {side: memory(args, kind, side, run[side]) for side in SIDES}
    row["memory_ratio"] = peaks["ours"] / peaks["diffusers"]
    for side in SIDES:
        middle = statistics.median(times[side])
        row[side] = {
            "seconds": {"median": middle, "min": min(times[side]), "max": max(times[side])},
            "teraflop_per_second": operations / 1e12 / middle,
            "peak_mib": peaks[side] / 2**20,
            "shares": shares(run[side], cuda),
        }
        nets[side].zero_grad(set_to_none=True)
    return row


def show(row: dict, goals: dict[str, float]) -> None:
    ratio = row["time_ratio"]
    for side in SIDES:
        found = row[side]
        split = ", ".join(f"{kind} {share:.0%}" for kind, share in found["shares"].items())
        print(
            f"{row['pass']:9} {side:10} {found['seconds']['median']:8.3f} s {found['teraflop_per_second']:8.3f} TFLOP/s"
            f" {found['peak_mib']:9.0f} MiB   {split}"
        )
    print(
        f"{row['pass']:9} time ratio {ratio['median']:.3f} ({ratio['min']:.3f} .. {ratio['max']:.3f}; goal {goals['time']}), "
        f"memory ratio {row['memory_ratio']:.3f} (goal {goals.get('memory', 'none')}), "
        f"outputs differ by {row['relative_difference']:.1e}"
    )


def save(args: argparse.Namespace, setting: dict, rows: list[dict]) -> Path:
    """Put the rows of this setting into the result file of this device."""
    cuda = args.device == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {os.cpu_count()} cores"
    name = "_".join(device.lower().split()) if cuda else "cpu"
    path = RESULTS / f"bench_dit_{name}.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    measured = [row["pass"] for row in rows]
    for run in [run for run in runs if run["setting"] == setting]:
        rows = [row for row in run["rows"] if row["pass"] not in measured] + rows
        runs.remove(run)
    runs.append({"setting": setting, "rows": rows})
    record = {
        "device": device,
        "torch": torch.__version__,
        "formula": "time_ratio: median over pairs of seconds(ours) / seconds(diffusers), timed in turn; memory_ratio: peak "
        + ("allocated bytes" if cuda else "RSS less RSS after imports, one process each")
        + "; teraflop: cosmos_predict.networks.flops, a multiply-add is two, bidirectional attention, training = 3 forwards",
        "runs": runs,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="published sizes; replaces those given beside it")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--latent", type=int, nargs=3, metavar=("T", "H", "W"), default=[8, 32, 32])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile the blocks of both")
    parser.add_argument("--passes", nargs="+", choices=("forward", "training"), default=["forward", "training"])
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name, value in PRESETS.get(args.preset, {}).items():
        setattr(args, name, value)
    return args


def main() -> None:
    """Measure, print, write."""
    baseline = resident_bytes("VmRSS")
    args = parse()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(memory_in_this_process(args, baseline))
        return
    config, nets, steps = build(args)
    tokens = count_tokens(config, tuple(args.latent))
    setting = {name: getattr(args, name) for name in ("width", "blocks", "heads", "latent", "dtype", "compile")}
    setting |= {"tokens": tokens, "text_tokens": TEXT_TOKENS, "threads": args.threads}
    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    rows = []
    for kind in args.passes:
        rows.append(measure(args, kind, config, nets, steps))
        show(rows[-1], GOALS[args.device])
    print(f"written: {save(args, setting, rows)}")


if __name__ == "__main__":
    main()

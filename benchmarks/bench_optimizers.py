"""Time and memory of one optimizer update: every low-memory AdamW against torch's fused AdamW in float32.

    python benchmarks/bench_optimizers.py --threads 2               # CPU, a block of width 1024
    python benchmarks/bench_optimizers.py --device cuda --width 2048 --blocks 28

The parameters are those of DiT blocks (attention, MLP, norms), gradients are given, updates of the two sides are timed in
turn after a warm-up of each; the ratio is the median over the pairs. Bytes are counted from the tensors: weights and
optimizer state, without gradients; on a GPU also the peak of temporary memory. Prints a table and adds its rows to
`benchmarks/results/bench_optimizers_<device>.json`, in place of earlier rows of the same setting.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from cosmos_predict.training.low_memory import LowMemoryAdamW
from cosmos_predict.training.optimizers import MasterAdamW

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).resolve().parent / "results")
REFERENCE = "torch fused, float32"
OPTIONS = {"lr": 1e-4, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
SIDES = {
    REFERENCE: (torch.float32, lambda p: torch.optim.AdamW(p, fused=True, **OPTIONS)),
    "masters, bfloat16": (torch.bfloat16, lambda p: MasterAdamW([{"params": p}], fused=True, **OPTIONS)),
    "8-bit moments, float32": (torch.float32, lambda p: LowMemoryAdamW(p, moments="8bit", **OPTIONS)),
    "float32 moments, bfloat16": (torch.bfloat16, lambda p: LowMemoryAdamW(p, moments="fp32", **OPTIONS)),
    "bfloat16 moments, bfloat16": (torch.bfloat16, lambda p: LowMemoryAdamW(p, moments="bf16", **OPTIONS)),
    "8-bit moments, bfloat16": (torch.bfloat16, lambda p: LowMemoryAdamW(p, moments="8bit", **OPTIONS)),
}


def parameters(args: argparse.Namespace, dtype: torch.dtype) -> list[nn.Parameter]:
    """Return weights of DiT blocks with gradients."""
    width = args.width
    shapes = [(width, width)] * 8 + [(4 * width, width), (width, 4 * width)] + [(width // 8,)] * 4
    found = []
    for shape in shapes * args.blocks:
        parameter = nn.Parameter(torch.randn(shape, device=args.device).mul_(0.02).to(dtype))
        parameter.grad = torch.randn_like(parameter)
        found.append(parameter)
    return found


def seconds(optimizer: torch.optim.Optimizer, cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    optimizer.step()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def held(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter]) -> int:
    """Return the bytes of weights and state."""
    tensors: dict[int, Tensor] = {weight.data_ptr(): weight for weight in weights}
    for group in optimizer.param_groups:  # masters, where the optimizer has them
        tensors |= {weight.data_ptr(): weight for weight in group["params"]}
    for state in optimizer.state.values():
        tensors |= {value.data_ptr(): value for value in state.values() if isinstance(value, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def measure(args: argparse.Namespace, side: str) -> dict:
    """Return one row: `side` against the reference."""
    cuda = args.device == "cuda"
    torch.manual_seed(0)
    weights = {name: parameters(args, SIDES[name][0]) for name in {REFERENCE: 0, side: 0}}
    optimizers = {name: SIDES[name][1](its) for name, its in weights.items()}
    for optimizer in optimizers.values():
        seconds(optimizer, cuda)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for repeat in range(args.repeats):
        for name in list(optimizers)[:: 1 if repeat % 2 else -1]:
            times[name].append(seconds(optimizers[name], cuda))
    ratios = [ours / theirs for ours, theirs in zip(times[side], times[REFERENCE], strict=True)]
    number = sum(weight.numel() for weight in weights[side])
    row = {
        "optimizer": side,
        "seconds": {"median": statistics.median(times[side]), "min": min(times[side]), "max": max(times[side])},
        "time_ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "nanoseconds_per_parameter": statistics.median(times[side]) / number * 1e9,
        "bytes_per_parameter": held(optimizers[side], weights[side]) / number,
    }
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds(optimizers[side], cuda)
        row["temporary_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return row


def save(args: argparse.Namespace, setting: dict, rows: list[dict]) -> Path:
    """Put the rows of this setting into the result file of this device."""
    cuda = args.device == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {os.cpu_count()} cores"
    path = RESULTS / f"bench_optimizers_{'_'.join(device.lower().split()) if cuda else 'cpu'}.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    runs = [run for run in runs if run["setting"] != setting]
    record = {
        "device": device,
        "torch": torch.__version__,
        "formula": f"time_ratio: median over pairs of seconds(optimizer) / seconds({REFERENCE}), timed in turn; "
        "bytes_per_parameter: tensors of weights, masters and state, without gradients",
        "runs": [*runs, {"setting": setting, "rows": rows}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setting = {name: getattr(args, name) for name in ("width", "blocks", "threads")}
    rows = []
    for side in SIDES:
        rows.append(row := measure(args, side))
        print(
            f"{side:28} {row['seconds']['median']:8.4f} s, ratio {row['time_ratio']['median']:6.2f} "
            f"({row['time_ratio']['min']:.2f} .. {row['time_ratio']['max']:.2f}), "
            f"{row['bytes_per_parameter']:6.2f} bytes per parameter"
        )
    print(f"written: {save(args, setting, rows)}")


if __name__ == "__main__":
    main()

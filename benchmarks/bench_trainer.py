"""What the training loop costs over a bare PyTorch loop on the same model, batches and optimizer.

    python benchmarks/bench_trainer.py --threads 2            # CPU, about half a second an update
    python benchmarks/bench_trainer.py --device cuda --width 2048 --blocks 28 --heads 16 --latent 24 54 96

Both loops hold a copy of one model, read the same samples, and do the same arithmetic: loss, backward, clipping by the
global norm, fused AdamW, schedule, power EMA. Ours does it with everything that `experiment=tiny_video2world` brings:
agreement over ranks, reports, metrics.jsonl, TensorBoard, the progress line every 10 updates. Saves are left out. Updates
of the two are timed in turn in one process; a pair's ratio is seconds(ours) / seconds(bare) for one update each, all that
happens between two updates included; `cpu_ratio` is the same of processor time, which a busy machine disturbs less. How an
update leaves memory and caches is felt by the next one: every timed update follows one of the bare loop, which does three in
a turn. The first is not timed, the second is the pair's, and `control` is the second over the third: what the method makes of
equal updates.
Prints medians and their 95 % intervals (bootstrap) and writes `benchmarks/results/bench_trainer_<device>.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from cosmos_predict.config.compose import compose
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.training.callbacks import Callback, StepReport
from cosmos_predict.training.ema import power_ema_beta, power_ema_exponent
from cosmos_predict.training.schedulers import lr_scheduler
from cosmos_predict.training.trainer import Trainer

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).resolve().parent / "results")
GOAL = 1.02


class BareLoop:
    """A training loop in plain PyTorch, on copies of what `trainer` built."""

    def __init__(self, trainer: Trainer) -> None:
        config = trainer.config
        self.model = copy.deepcopy(trainer.model)
        self.model.tokenizer_holder = trainer.model.tokenizer_holder
        self.optimizer = instantiate(config.optimizer, model=self.model)
        self.scheduler = lr_scheduler(self.optimizer, instantiate(config.scheduler))
        self.weights = list(self.model.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.gamma, self.updates = power_ema_exponent(0.1), 0
        self.clip_norm, self.seed = config.trainer.clip_norm, config.trainer.seed
        self.batches: Iterator[dict[str, Any]] = iter(instantiate(config.dataloader_train, dataset=trainer.dataset))
        self.losses: list[float] = []

    def update(self) -> None:
        loss = self.model.training_loss(next(self.batches), self.seed).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        with torch.no_grad():
            beta = power_ema_beta(self.updates, self.gamma)
            torch._foreach_mul_(self.average, beta)
            torch._foreach_add_(self.average, [weight.detach() for weight in self.weights], alpha=1 - beta)
        self.updates += 1
        self.losses.append(loss.item())


class Pairs(Callback):
    """The last callback: after every update of the trainer does three of the bare loop, and times all but the first."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.seconds: list[tuple[float, float, float]] = []  # ours and two of the bare loop, by the clock
        self.cpu_seconds: list[tuple[float, float, float]] = []  # of processor time
        self.losses: list[float] = []

    def on_train_start(self, trainer: Trainer) -> None:
        self.bare = BareLoop(trainer)
        self.began = now(trainer)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        times = [self.began, now(trainer)]
        self.losses.append(report.mean("loss"))
        self.bare.update()
        times.append(now(trainer))
        for _ in range(2):
            self.bare.update()
            times.append(now(trainer))
        if report.iteration > self.warm_up:
            for kind, seconds in enumerate((self.seconds, self.cpu_seconds)):
                began, ended, started, done, end = (time[kind] for time in times)
                seconds.append((ended - began, done - started, end - done))
        self.began = now(trainer)


def now(trainer: Trainer) -> tuple[float, float]:
    """Return the clock and the processor time of this process."""
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def run(args: argparse.Namespace, folder: str) -> tuple[Trainer, Pairs]:
    """Train `args.pairs` timed updates and return what was measured."""
    os.environ["OUTPUT_ROOT"] = folder
    frames, height, width = args.latent
    net = "model.config.pipe_config.net"
    config = compose(
        [
            "experiment=tiny_video2world",
            "data=synthetic",
            f"dataloader_train.dataset.num_frames={4 * frames - 3}",
            f"dataloader_train.dataset.video_size=[{8 * height}, {8 * width}]",
            f"dataloader_train.batch_size={args.batch_size}",
            f"dataloader_train.num_workers={args.workers}",
            f"dataloader_train.pin_memory={args.device == 'cuda'}",
            f"{net}.model_channels={args.width}",
            f"{net}.num_blocks={args.blocks}",
            f"{net}.num_heads={args.heads}",
            f"trainer.max_iter={args.warm_up + args.pairs}",
            "trainer.logging_iter=10",
            f"trainer.compile={args.compile}",
        ],
        report=[],
    )
    config.validate()
    config.freeze()
    trainer, pairs = Trainer(config, device=args.device), Pairs(args.warm_up)
    build = trainer.build

    def build_and_watch() -> None:
        build()
        trainer.callbacks.append(pairs)

    trainer.build = build_and_watch  # type: ignore[method-assign]
    trainer.train()
    return trainer, pairs


def ratio_of(seconds: list[tuple[float, float, float]], first: int = 0) -> dict[str, Any]:
    """Return the median of an update's time over the next one's and its 95 % interval by bootstrap."""
    ratios, draw = [times[first] / times[first + 1] for times in seconds], random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"median": statistics.median(ratios), "interval_95": [medians[49], medians[1949]]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--latent", type=int, nargs=3, metavar=("T", "H", "W"), default=[5, 12, 16])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compile the blocks of both")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logger.remove()
    with tempfile.TemporaryDirectory() as folder:
        trainer, pairs = run(args, folder)
    difference = max(abs(a / b - 1) for a, b in zip(pairs.losses, pairs.bare.losses[: len(pairs.losses)], strict=True))
    cuda = args.device == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {os.cpu_count()} cores"
    row = {
        "setting": {key: getattr(args, key) for key in ("width", "blocks", "heads", "latent", "batch_size", "workers",
                                                       "threads", "compile")}
        | {"parameters": sum(weight.numel() for weight in trainer.model.parameters())},
        "pairs": len(pairs.seconds),
        "seconds": {name: statistics.median(pair[side] for pair in pairs.seconds) for side, name in enumerate(("ours", "bare"))},
        "ratio": ratio_of(pairs.seconds),
        "cpu_ratio": ratio_of(pairs.cpu_seconds),
        "control": ratio_of(pairs.seconds, 1),
        "cpu_control": ratio_of(pairs.cpu_seconds, 1),
        "losses_differ_by": difference,
    }  # fmt: skip
    path = RESULTS / f"bench_trainer_{'_'.join(device.lower().split()) if cuda else 'cpu'}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [old for old in rows if old["setting"] != row["setting"]] + [row]
    formula = "ratio: median over interleaved pairs of seconds(Trainer) / seconds(bare loop), everything between two updates included"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"device": device, "torch": torch.__version__, "formula": formula, "goals": {"ratio": GOAL}, "rows": rows}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{row['setting']['parameters'] / 1e6:.1f} M parameters, losses differ by {difference:.1e}")
    print(f"ours {row['seconds']['ours']:.3f} s, bare {row['seconds']['bare']:.3f} s an update")
    for name in ("ratio", "cpu_ratio", "control", "cpu_control"):
        low, high = row[name]["interval_95"]
        print(
            f"{name} {row[name]['median']:.4f} ({low:.4f} .. {high:.4f}){f'; goal {GOAL}' if 'ratio' in name else ''}"
        )
    print(f"written: {path}")


if __name__ == "__main__":
    main()

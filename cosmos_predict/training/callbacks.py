"""What watches a run without taking part in it: small objects called by the trainer at fixed moments.

Every rank calls its callbacks alike, since some evaluate a sharded model together; only rank 0 writes. Numbers go
through `publish`: a line of `metrics.jsonl` in the run folder, and to every callback that shows them elsewhere.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import resource
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from loguru import logger
from torch import Tensor

from cosmos_predict.config.lazy import configurable
from cosmos_predict.networks.flops import count_tokens, training_flops

if TYPE_CHECKING:
    import numpy as np

    from cosmos_predict.training.trainer import Trainer


class LossRecord(NamedTuple):
    """What is kept of one micro-batch: loss and unweighted error `()`, and the latent's shape (B, C, T, h, w)."""

    loss: Tensor
    mse: Tensor
    shape: tuple[int, ...]


@dataclasses.dataclass
class StepReport:
    """One optimizer update: `iteration` counts from 1; `losses` one per micro-batch; `waited` seconds for data."""

    iteration: int
    losses: list[LossRecord]
    grad_norm: float
    lr: float
    skipped: bool
    samples: int
    waited: float
    seconds: float = 0.0

    def mean(self, name: str) -> float:
        """Return the mean of `loss` or `mse` over the micro-batches."""
        return float(torch.stack([getattr(record, name).float() for record in self.losses]).mean())


class Callback:
    """Does nothing. Subclasses override what they need.

    on_scalars gets what any callback publishes (rank 0 only): names without a prefix describe training, `val/...`
    validation. on_picture gets pictures uint8 `(H, W, 3)` in the same way.
    """

    def on_train_start(self, trainer: Trainer) -> None: ...

    def on_step(self, trainer: Trainer, report: StepReport) -> None: ...

    def on_train_end(self, trainer: Trainer) -> None: ...

    def on_scalars(self, trainer: Trainer, iteration: int, scalars: Mapping[str, float]) -> None: ...

    def on_picture(self, trainer: Trainer, iteration: int, name: str, picture: np.ndarray) -> None: ...


def publish(trainer: Trainer, iteration: int, scalars: Mapping[str, float]) -> None:
    """On rank 0, append a line to `metrics.jsonl` and hand the numbers to all callbacks; elsewhere do nothing."""
    if trainer.ranks.rank != 0:
        return
    with (trainer.folder.root / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"iteration": iteration, **scalars}) + "\n")
    for callback in trainer.callbacks:
        callback.on_scalars(trainer, iteration, scalars)


@configurable
class ProgressLine(Callback):
    """Log and publish a line every `trainer.logging_iter` updates.

    The line: iteration, loss (mean since the last line), gradient norm, learning rate, samples/s, tokens/s, TFLOP/s, share
    of the time waiting for data, memory, time left. Rates count the updates alone, the time left also what comes between
    them (saves, validation).
    """

    def on_train_start(self, trainer: Trainer) -> None:
        self._start_window()
        first, last = trainer.progress.iteration, trainer.config.trainer.max_iter
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad) / 1e6
        what = "{}: iterations {}..{}, {} samples per update, {:.2f} M parameters, on {}"
        trainer.log(what, trainer.folder.root, first, last, trainer.global_batch, trained, trainer.device)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        self.reports.append(report)
        last = report.iteration >= trainer.config.trainer.max_iter
        if report.iteration % trainer.config.trainer.logging_iter == 0 or last or trainer.stop_signal:
            values = self._measure(trainer)
            publish(trainer, report.iteration, values)
            message = (
                "it {iteration}/{max_iter} loss {loss:.4f} mse {mse:.5f} grad {grad_norm:.3f} lr {lr:.2e} | {samples_per_s:.2f} samples/s "
                "{tokens_per_s:.0f} tok/s {tflops:.3f} TFLOP/s wait {wait_share:.0%} mem {memory_gb:.1f} GB | {eta} left"
            )
            if trainer.ranks.rank == 0:
                logger.info(message, iteration=report.iteration, eta=_duration(values["seconds_left"]), **values)
            self._start_window()

    def _start_window(self) -> None:
        self.reports: list[StepReport] = []
        self.started = time.perf_counter()

    def _measure(self, trainer: Trainer) -> dict[str, float]:
        reports, passed = self.reports, time.perf_counter() - self.started
        seconds = sum(report.seconds for report in reports)
        samples = sum(report.samples for report in reports)
        net, views = trainer.model.net.config, trainer.model.config.pipe_config.views
        tokens = flops = 0.0
        # Images among videos, buckets: micro-batches differ. The other data-parallel ranks had as many as this one.
        shapes = collections.Counter(record.shape for report in reports for record in report.losses)
        for (batch, _, frames, height, width), times in shapes.items():
            count, latent_shape = batch * times * trainer.sizes.data, (frames, height, width)
            tokens += count * count_tokens(net, latent_shape)
            flops += count * training_flops(net, latent_shape, views=views)
        finite = [report for report in reports if not report.skipped] or reports
        updates_left = trainer.config.trainer.max_iter - reports[-1].iteration
        return {
            "max_iter": trainer.config.trainer.max_iter,
            "loss": sum(report.mean("loss") for report in finite) / len(finite),
            "mse": sum(report.mean("mse") for report in finite) / len(finite),
            "grad_norm": reports[-1].grad_norm,
            "lr": reports[-1].lr,
            "samples_per_s": samples / seconds,
            "tokens_per_s": tokens / seconds,
            "tflops": flops / seconds / 1e12,
            "wait_share": sum(report.waited for report in reports) / seconds,
            "memory_gb": _peak_memory(trainer.device) / 1e9,
            "skipped": trainer.progress.skipped,
            "seconds_left": updates_left * passed / len(reports),
        }


def _peak_memory(device: torch.device) -> int:
    """Return the peak bytes of a GPU's allocator, or of this process where it computes on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"

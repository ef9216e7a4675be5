"""The loss on fixed samples at fixed noise levels and fixed noise, so that two values differ by the weights alone."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cosmos_predict.config.lazy import configurable, instantiate
from cosmos_predict.errors import ConfigError
from cosmos_predict.models.conditioning import Conditioning
from cosmos_predict.models.world_model import WorldModel
from cosmos_predict.parallel.fsdp import reshard
from cosmos_predict.randomness import torch_generator
from cosmos_predict.training.callbacks import Callback, StepReport, publish

if TYPE_CHECKING:
    from cosmos_predict.training.trainer import Trainer

BANDS = {"low": 0.1, "mid": 0.5, "high": 0.9}
BAND_DRAWS = 4096  # draws of the training distribution whose quantiles are the levels
OTHER_DRAWS_FROM = 2**40  # no run trains on so many samples
NOT_HELD_OUT = "other draws of the training clips' windows; not held out: set dataloader_val for that"
WEIGHTS = ("reg", "ema", "both")


@contextlib.contextmanager
def observing(trainer: Trainer, ema: bool = False) -> Iterator[None]:
    """Let the block use `trainer.model` for evaluation and leave no trace in the training, bit for bit.

    No gradients, evaluation mode, optionally the averaged weights (where the run has them); global random states of
    torch, numpy and Python are put back. Every rank must enter it.
    """
    model, average = trainer.model, trainer.ema if ema else None
    training, python, numpy = model.training, random.getstate(), np.random.get_state()
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), contextlib.ExitStack() as stack:
        if average is not None:
            stack.enter_context(average.scope(model))
        model.eval()
        try:
            yield
        finally:
            model.train(training)
            reshard(model)  # sharded weights that the block gathered
            random.setstate(python)
            np.random.set_state(numpy)


def band_levels(
    model: WorldModel, x0: Tensor, condition: Conditioning, bands: Mapping[str, float], seed: int
) -> dict[str, float]:
    """Return a noise level per band: the quantile that `bands` names of the training distribution for clips like x0."""
    draws = model.draw_sigma(seed, range(BAND_DRAWS), x0, condition).flatten().double().cpu()
    return {name: float(torch.quantile(draws, share)) for name, share in bands.items()}


@configurable
class Validation(Callback):
    """Evaluate the loss every `trainer.validation_iter` updates, before the first and after the last.

    The samples are those of `dataloader_val`, else of the training set from sample number `first_sample` on: other draws of
    the training clips' windows (other clips, where a dataset generates them), which are not held out: a model that learns
    its clips by heart does well on them. Up to `trainer.max_val_iter` batches, divided
    over the data-parallel ranks. Noise and number of given frames are functions of (seed, sample number), nothing is
    dropped. Published are `val/loss` and `val/mse`, means over samples and bands, and `val/<band>/loss`,
    `val/<band>/mse`; of the averaged weights as `val/ema/...`.

    Args:
        enabled: False does nothing; experiments set it to `trainer.run_validation`.
        bands: name -> quantile, within (0, 1), of the training noise levels.
        weights: `reg` (the trained weights), `ema`, or `both`.
        seed: of noise and given frames; independent of the run's.
        first_sample: see above.
        at_start: evaluate before the first update too.

    Raises:
        ConfigError: options that do not fit.
    """

    def __init__(
        self,
        enabled: bool = True,
        bands: Mapping[str, float] | None = None,
        weights: str = "reg",
        seed: int = 1,
        first_sample: int = OTHER_DRAWS_FROM,
        at_start: bool = True,
    ) -> None:
        self.bands = dict(BANDS if bands is None else bands)
        if not self.bands or not all(0 < share < 1 for share in self.bands.values()):
            raise ConfigError(f"validation bands {self.bands} must map names to quantiles between 0 and 1")
        if weights not in WEIGHTS:
            raise ConfigError(f"validation weights={weights!r} is not one of {', '.join(WEIGHTS)}")
        if first_sample < 0:
            raise ConfigError(f"validation first_sample={first_sample}: expected 0 or more")
        self.enabled, self.weights, self.seed = enabled, weights, seed
        self.first_sample, self.at_start = first_sample, at_start
        self.levels: dict[tuple[Any, ...], dict[str, float]] = {}
        self.loader: Any = []
        self.end_sample = 0

    def on_train_start(self, trainer: Trainer) -> None:
        if not self.enabled:
            return
        if self.weights != "reg" and trainer.ema is None:
            raise ConfigError(
                f"validation weights={self.weights!r}, but the run keeps no average: set "
                "model.config.pipe_config.ema.enabled=true, or weights=reg"
            )
        self._build_loader(trainer)
        if self.at_start and trainer.progress.iteration == 0:
            self.validate(trainer)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        config = trainer.config.trainer
        due = report.iteration % config.validation_iter == 0 or report.iteration == config.max_iter
        if self.enabled and due:
            self.validate(trainer)

    def validate(self, trainer: Trainer) -> dict[str, float]:
        """Evaluate, publish and return the numbers of all weights asked for."""
        iteration, started = trainer.progress.iteration, time.perf_counter()
        values: dict[str, float] = {}
        for ema in [False] * (self.weights != "ema") + [True] * (self.weights != "reg"):
            with observing(trainer, ema):
                prefix = "val/ema/" if ema else "val/"
                totals = trainer.mesh.sum(self._evaluate(trainer.model).to(trainer.device)).tolist()
            values |= {prefix + name: value for name, value in self._means(totals).items()}
        publish(trainer, iteration, values)
        numbers = ", ".join(f"{name[4:]} {value:.4f}" for name, value in values.items() if name.endswith("loss"))
        trainer.log("validation at {}: {} ({:.1f} s)", iteration, numbers, time.perf_counter() - started)
        return values

    def _build_loader(self, trainer: Trainer) -> None:
        config, ranks = trainer.config, trainer.mesh.sizes.data
        if config.dataloader_val is not None and config.dataloader_val.get("dataset") is not None:
            loader, start = config.dataloader_val, 0
            dataset = instantiate(loader.dataset)
        else:
            loader, start, dataset = config.dataloader_train, self.first_sample, trainer.dataset
            trainer.log("validation on {}", NOT_HELD_OUT, level="WARNING")
        size = int(loader.get("batch_size", 1))  # type: ignore[union-attr]
        whole = -(-len(dataset) // size)
        batches = min(config.trainer.max_val_iter or whole, whole)
        self.end_sample = start + batches * size
        # Every rank evaluates as many batches, since sharded weights are gathered together; what is too many counts nothing.
        self.loader = instantiate(
            loader,
            dataset=dataset,
            start_sample=start,
            num_batches=-(-batches // ranks),
            rank=trainer.mesh.data_rank,
            world=ranks,
        )

    def _evaluate(self, model: WorldModel) -> Tensor:
        """Return sums over this rank's samples, float64 `(1 + 2 * bands,)`: their number, then loss and mse per band."""
        sums = torch.zeros(1 + 2 * len(self.bands), dtype=torch.float64)
        for batch in self.loader:
            numbers = [int(number) for number in batch["sample_number"]]
            x0, condition = model.prepare(batch)
            key = (x0.shape[2], condition.views, condition.data_type)
            if key not in self.levels:
                self.levels[key] = band_levels(model, x0, condition, self.bands, self.seed)
            condition = self._complete(model, x0, condition, numbers, batch.get("num_conditional_frames"))
            noise = [torch.randn(x0.shape[1:], generator=torch_generator(self.seed, n, "noise")) for n in numbers]
            noise = torch.stack(noise).to(x0)
            values = [1.0]
            for level in self.levels[key].values():
                out = model.loss(x0, torch.full((len(numbers),), level, device=x0.device), noise, condition)
                values += [float(out.loss), float(out.mse_loss)]
            if numbers[0] < self.end_sample:
                sums += len(numbers) * torch.tensor(values, dtype=torch.float64)
        return sums

    def _means(self, totals: list[float]) -> dict[str, float]:
        """Return `loss` and `mse`, means over bands, and those of each band from the sums of `_evaluate`."""
        means = [total / totals[0] for total in totals[1:]]
        values = {"loss": sum(means[::2]) / len(self.bands), "mse": sum(means[1::2]) / len(self.bands)}
        for band, loss, mse in zip(self.bands, means[::2], means[1::2], strict=True):
            values |= {f"{band}/loss": loss, f"{band}/mse": mse}
        return values

    def _complete(
        self, model: WorldModel, x0: Tensor, condition: Conditioning, numbers: list[int], given: Tensor | None
    ) -> Conditioning:
        """Return `condition` with given frames as in training, and with neither text nor frames dropped."""
        drawn = model.draw_conditions(self.seed, numbers, x0, condition, given)
        frames = None if drawn.frames is None else dataclasses.replace(drawn.frames, keep=None)
        return dataclasses.replace(condition, frames=frames)

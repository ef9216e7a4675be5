"""The training loop, top to bottom: build, resume, step, save, end.

Every random draw is a function of (seed, global sample number), so a resumed run repeats what an unbroken one computes,
and any number of ranks computes what one does. All ranks run this loop; the main rank writes and logs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from cosmos_predict.checkpoint.export import check_exportable, export_checkpoint
from cosmos_predict.checkpoint.load import grow_from_base, load_log_variance, load_state, select_weights
from cosmos_predict.checkpoint.run_folder import RunFolder, published_file
from cosmos_predict.checkpoint.run_state import (
    SavedState,
    load_optimizer_state,
    optimizer_state,
    restore_rng,
    save_run_state,
)
from cosmos_predict.config.files import config_hash, save_config
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.config.schema import Config
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.models.world_model import WorldModel
from cosmos_predict.parallel.activation import apply_activation_checkpointing, compile_blocks
from cosmos_predict.parallel.context_parallel import apply_context_parallel
from cosmos_predict.parallel.distributed import Ranks
from cosmos_predict.parallel.fsdp import average_gradients, initialise, shard_head, shard_network
from cosmos_predict.parallel.mesh import Mesh, MeshSizes, make_mesh, mesh_sizes
from cosmos_predict.training.callbacks import Callback, LossRecord, StepReport
from cosmos_predict.training.ema import PowerEMA
from cosmos_predict.training.grad_clip import clip_gradients
from cosmos_predict.training.schedulers import lr_scheduler

MAX_SKIPPED_IN_A_ROW = 20
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Settings that a published command may carry and that this trainer does not act on: refused, never ignored.
ONLY_VALUES: dict[str, tuple[Any, ...]] = {
    "checkpoint.load_training_state": (False,),
    "checkpoint.only_load_scheduler_state": (False,),
    "checkpoint.strict_resume": (True,),
    "checkpoint.keys_not_to_resume": ([], ()),
    "model_parallel.tensor_model_parallel_size": (1,),
    "model_parallel.sequence_parallel": (False,),
    "model.config.train_architecture": ("base",),
}


@dataclasses.dataclass
class Progress:
    """What a resume needs besides tensors: finished updates, consumed samples, skipped updates."""

    iteration: int = 0
    sample_number: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0


class Trainer:
    """One run of a configuration. `train()` runs to `trainer.max_iter`, resuming the run's folder where it has a state."""

    def __init__(self, config: Config, ranks: Ranks | None = None, device: torch.device | str | None = None) -> None:
        self.config = config
        self.ranks = ranks or Ranks()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.sizes = mesh_of(config, self.ranks.world_size)
        check_supported(config)
        self.mesh = Mesh(self.ranks, self.sizes)
        self.recipe = config.job.experiment or config.job.name
        self.folder = RunFolder(config.job.path_local, config.checkpoint.type)
        self.progress = Progress()
        self.stop_signal: str | None = None  # what all ranks agreed on
        self._received: signal.Signals | None = None  # what this one got

    # ---- setup -------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Make mesh, model, optimizer, schedule, EMA, data and callbacks."""
        config = self.config
        compute_dtype = COMPUTE_DTYPES[config.trainer.compute_dtype]
        sharded = self.sizes.world > 1 or compute_dtype != torch.float32
        self.mesh = make_mesh(self.ranks, self.sizes, self.device, always=sharded)
        torch.manual_seed(config.trainer.seed)
        self.dataset_config = config.dataloader_train.dataset  # type: ignore[union-attr]
        # No weight exists before each rank fills its own shards.
        self.model: WorldModel = instantiate(config.model, device=self.device, net_device="meta")
        check_exportable(self.folder.layout, self.weights())
        net, self.units = self.model.net, [self.model.net, *filter(None, [self.model.logvar])]
        apply_context_parallel(net, self.mesh.context)
        apply_activation_checkpointing(
            net, config.trainer.activation_checkpointing, config.trainer.checkpoint_every_n_blocks
        )
        if config.trainer.compile:
            compile_blocks(net)
        if sharded:
            shard_network(net, self.mesh, None if compute_dtype == torch.float32 else compute_dtype)
            for head in self.units[1:]:
                shard_head(head, self.mesh)
        net.to_empty(device=self.device)
        if not self._base_path() or net.config.controls:
            initialise(net, net.init_weights)
        self._load_base()
        self.model.train()
        self.optimizer: torch.optim.Optimizer = instantiate(config.optimizer, model=self.model)
        self.scheduler = lr_scheduler(self.optimizer, instantiate(config.scheduler))
        ema = self.model.config.pipe_config.ema
        self.ema = PowerEMA(self._parameters(), ema.rate, ema.iteration_shift) if ema.enabled else None
        self.dataset = instantiate(self.dataset_config)
        check_state_t(self.model, self.dataset_config.get("num_frames"))
        self.batch_size = int(config.dataloader_train.get("batch_size", 1))  # type: ignore[union-attr]
        self.accumulation = accumulation_steps(config, self.batch_size, self.sizes.data)
        if self.sizes.world > 1:
            self._log("{}", self.sizes)
        self._log_batch()
        self.callbacks: list[Callback] = [instantiate(entry) for entry in config.trainer.callbacks.values() if entry]

    @property
    def global_batch(self) -> int:
        """Samples per update over all ranks."""
        return self.batch_size * self.sizes.data * self.accumulation

    def _log_batch(self) -> None:
        self._log(
            "batch: {} per step x {} data-parallel rank(s) x {} accumulation = {} samples per update",
            self.batch_size,
            self.sizes.data,
            self.accumulation,
            self.global_batch,
        )

    def _log(self, text: str, *values: object, level: str = "INFO") -> None:
        if self.mesh.is_main:
            logger.opt(depth=1).log(level, text, *values)

    def weights(self) -> dict[str, Tensor]:
        """Return the model's tensors by full name: `net.*`, and `logvar.*` (two of which are not trained) if it is on."""
        return {name: tensor.detach() for name, tensor in self.model.state_dict(keep_vars=True).items()}

    def _parameters(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def _published_ema(self) -> dict[str, Tensor] | None:
        """Return the averaged weights, completed with what is not averaged."""
        return {**self.weights(), **self.ema.state_dict()} if self.ema is not None else None

    def _base_path(self) -> str:
        return self.config.checkpoint.load_path or self.model.config.model_manager_config.dit_path

    def _load_base(self) -> None:
        manager = self.model.config.model_manager_config
        path = self._base_path()
        if not path:
            return
        path = published_file(path, manager.load_ema)
        with TensorFile(path) as source:
            if self.model.net.config.controls:
                new = grow_from_base(self.model.net, source, ema=manager.load_ema)
                self._log("{} tensors are not in the base and start new{}", len(new), f": {new[:4]} ..." if new else "")
            else:
                load_state(self.model.net, source, ema=manager.load_ema, where=path)
            if self.model.logvar is not None:
                if select_weights(source.keys(), ema=manager.load_ema, where=path).logvar:
                    load_log_variance(self.model.logvar, source)
                else:
                    self._log("{} holds no log-variance head: it starts new", path)
        self._log("base weights: {}", path)

    def resume(self) -> None:
        """Continue the newest complete iteration of the run's folder, and make its published files again if they are gone."""
        iteration = self.mesh.from_main(self.folder.newest())
        if iteration is None:
            return
        self.folder.check_recipe(self.recipe, iteration)
        with SavedState(self.folder, iteration, self.mesh) as saved:
            index = saved.index
            self._keep_global_batch(index["global_batch_size"], index.get("data_parallel", 1))
            saved.copy_into("weights", self.weights(), self.folder.root)
            if self.ema is not None:
                saved.copy_into("ema", self.ema.state_dict(), f"the EMA of {self.folder.root}")
            load_optimizer_state(self.optimizer, self.model, saved)
            # The position only: rates and schedule are the present configuration's, so that they can be changed.
            self.scheduler.last_epoch = int(saved.scheduler["last_epoch"])
            self.scheduler._step_count = int(saved.scheduler["_step_count"])
            for group, rate, factor in zip(
                self.optimizer.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = rate * factor(self.scheduler.last_epoch)
            self.scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
            restore_rng(saved)
        self.progress = Progress(iteration, index["sample_number"], index["skipped"])
        self._log("resumed {} at iteration {}, saved by {} rank(s)", self.folder.root, iteration, index["world_size"])
        if not self.mesh.from_main(all(path.exists() for path in self._expected_exports(iteration))):
            self._export(iteration)

    def _keep_global_batch(self, saved: int, data_parallel: int) -> None:
        """Let accumulation make up for another number of ranks; the samples of an update are part of the run."""
        if saved == self.global_batch:
            return
        ranks = self.sizes.data
        if self.config.trainer.global_batch_size is not None or data_parallel == ranks:
            raise CheckpointError(
                f"{self.folder.root} was trained with a global batch of {saved}, this run has {self.global_batch}; "
                f"set trainer.global_batch_size={saved}"
            )
        if saved % (self.batch_size * ranks):
            fit = ", ".join(str(n) for n in range(1, saved + 1) if saved % (self.batch_size * n) == 0) or "none"
            raise CheckpointError(
                f"{self.folder.root} was trained with a global batch of {saved}, which does not divide over batch size "
                f"{self.batch_size} x {ranks} data-parallel ranks; at this batch size these numbers of ranks fit: {fit}"
            )
        self.accumulation = saved // (self.batch_size * ranks)
        self._log("saved by {} data-parallel rank(s), the global batch stays:", data_parallel)
        self._log_batch()

    # ---- the loop ----------------------------------------------------------------------------------------------

    def train(self) -> Progress:
        """Run until `trainer.max_iter` or a signal; return the progress. The last state is always saved."""
        if self.mesh.is_main:
            self.folder.acquire()
        try:
            self.build()
            self.resume()
            if self.mesh.is_main:
                save_config(self.config, self.folder.root / "config.yaml")
            with self._signals():
                self._loop()
        finally:
            self.folder.release()
        return self.progress

    def _loop(self) -> None:
        config, progress = self.config, self.progress
        if progress.iteration >= config.trainer.max_iter:
            done, wanted = progress.iteration, config.trainer.max_iter
            self._log("already at iteration {}: nothing to do up to trainer.max_iter={}", done, wanted, level="WARNING")
            return
        batches = self._batches(progress.sample_number)
        for callback in self.callbacks:
            callback.on_train_start(self)
        saved = progress.iteration
        while progress.iteration < config.trainer.max_iter and self.stop_signal is None:
            started = time.perf_counter()
            report = self.step(batches)
            report.seconds = time.perf_counter() - started
            for callback in self.callbacks:
                callback.on_step(self, report)
            if progress.iteration % config.checkpoint.save_iter == 0:
                self.save()
                saved = progress.iteration
        if saved != progress.iteration:
            self.save()
        if self.stop_signal is not None:
            self._log(
                "{}: saved iteration {} and stopping; the same command resumes it",
                self.stop_signal,
                progress.iteration,
                level="WARNING",
            )
        for callback in self.callbacks:
            callback.on_train_end(self)

    def step(self, batches: Iterator[dict[str, Any]]) -> StepReport:
        """Do one optimizer update: accumulate, clip, step, average. A non-finite update is skipped and counted."""
        progress, seed = self.progress, self.config.trainer.seed
        losses: list[LossRecord] = []
        waited = 0.0
        for micro in range(self.accumulation):
            started = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - started
            out = self.model.training_loss(batch, seed)
            average_gradients(self.units, self.mesh, last=micro == self.accumulation - 1)
            (out.loss / self.accumulation).backward()
            losses.append(LossRecord(out.loss.detach(), out.mse_loss, tuple(out.xt.shape)))
            progress.sample_number += len(batch["sample_number"]) * self.sizes.data
        settings = self.config.trainer
        clip = clip_gradients(self.model.parameters(), settings.clip_norm, force_finite=settings.grad_force_finite)
        lr = float(self.scheduler.get_last_lr()[0])
        if clip.skip_step:
            self._count_skip(clip.total_norm)
        else:
            self.optimizer.step()
            progress.skipped_in_a_row = 0
        self.scheduler.step()
        if self.ema is not None and not clip.skip_step:
            self.ema.update(self._parameters(), progress.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        progress.iteration += 1
        losses = self._agree(losses)
        return StepReport(progress.iteration, losses, clip.total_norm, lr, clip.skip_step, self.global_batch, waited)

    def _agree(self, losses: list[LossRecord]) -> list[LossRecord]:
        """Return the losses averaged over all ranks, and set `stop_signal` when any rank got a signal."""
        if self.sizes.world == 1:
            self.stop_signal = self._received.name if self._received else None
            return losses
        values = [value.float() for record in losses for value in (record.loss, record.mse)]
        flags = torch.tensor([float(self._received == number) for number in STOP_SIGNALS], device=self.device)
        total = self.mesh.sum(torch.cat([torch.stack(values), flags]))
        mean = (total[: len(values)] / self.sizes.world).reshape(-1, 2)
        counts = total[len(values) :].tolist()
        self.stop_signal = next((s.name for s, n in zip(STOP_SIGNALS, counts, strict=True) if n), None)
        return [LossRecord(loss, mse, record.shape) for (loss, mse), record in zip(mean, losses, strict=True)]

    def _count_skip(self, norm: float) -> None:
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        self._log(
            "iteration {}: gradient norm is {}, update skipped ({} so far)",
            self.progress.iteration,
            norm,
            self.progress.skipped,
            level="WARNING",
        )
        if self.progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"{MAX_SKIPPED_IN_A_ROW} updates in a row had non-finite gradients: the run diverged. Resume from an older "
                "iteration with a lower optimizer.lr, or look for broken samples in the log"
            )

    def _batches(self, start: int) -> Iterator[dict[str, Any]]:
        loader = instantiate(
            self.config.dataloader_train,
            dataset=self.dataset,
            start_sample=start,
            rank=self.mesh.data_rank,
            world=self.sizes.data,
        )
        return iter(loader)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGUSR1, on any rank, end the run on all of them after the current update, with a save."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, _frame: object) -> None:
            self._received = signal.Signals(number)

        previous = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    # ---- saving ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the run state and the published files of the current iteration, then drop what `keep_last_k` lets go."""
        progress = self.progress
        tensors, groups = optimizer_state(self.optimizer, self.model)
        save_run_state(
            self.folder,
            progress.iteration,
            weights=self.weights(),
            ema=self.ema.state_dict() if self.ema is not None else None,
            optimizer=tensors,
            scheduler=self.scheduler.state_dict(),
            numbers={
                "recipe": self.recipe,
                "config_hash": config_hash(self.config),
                "sample_number": progress.sample_number,
                "skipped": progress.skipped,
                "global_batch_size": self.global_batch,
                "world_size": self.ranks.world_size,
                "data_parallel": self.sizes.data,
                "optimizer_groups": groups,
            },
            mesh=self.mesh,
        )
        self._export(progress.iteration)
        if self.mesh.is_main:
            self.folder.keep_last(self.config.checkpoint.keep_last_k)
        self._log("saved iteration {} under {}", progress.iteration, self.folder.checkpoints)

    def _export(self, iteration: int) -> None:
        export_checkpoint(self.folder, iteration, self.weights(), self._published_ema(), self.mesh)

    def _expected_exports(self, iteration: int) -> list[Path]:
        return [path for part, path in self.folder.exports(iteration).items() if part != "ema" or self.ema is not None]


def check_supported(config: Config) -> None:
    """Raise ConfigError for a setting that this trainer would not act on."""
    for key, allowed in ONLY_VALUES.items():
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if hasattr(value, "get") else getattr(value, part)
        if value not in allowed:
            raise ConfigError(f"{key}={value!r} is not available in this version; leave it at {allowed[0]!r}")
    if config.trainer.run_validation and not config.trainer.callbacks.get("validation"):
        raise ConfigError(
            "trainer.run_validation=True, but there is no trainer.callbacks.validation; add it (callbacks=validation)"
        )


def check_state_t(model: WorldModel, num_frames: int | None) -> None:
    """Raise ConfigError when the stated latent frames of a view are not what the dataset's frames make."""
    stated, tokenizer = model.config.pipe_config.state_t, model.tokenizer_holder[0]
    if stated is None or tokenizer is None or num_frames is None:
        return
    made = tokenizer.get_latent_num_frames(int(num_frames))
    if made != stated:
        raise ConfigError(
            f"model.config.pipe_config.state_t={stated}, but dataloader_train.dataset.num_frames={num_frames} makes "
            f"{made} latent frames: set num_frames={tokenizer.get_pixel_num_frames(stated)}, or state_t=null"
        )


def mesh_of(config: Config, world_size: int) -> MeshSizes:
    """Return the mesh that the configuration makes of `world_size` processes; ConfigError where it does not fit."""
    shard = int(config.model.config.get("fsdp_shard_size", 1))  # type: ignore[union-attr]
    return mesh_sizes(world_size, shard, config.model_parallel.context_parallel_size)


def accumulation_steps(config: Config, batch_size: int, data_parallel: int = 1) -> int:
    """Return micro-batches per update. Raises ConfigError when `global_batch_size` is no multiple, naming sizes that fit."""
    total = config.trainer.global_batch_size
    if total is None:
        return config.trainer.grad_accum_iter
    per_step = batch_size * data_parallel
    if total % per_step:
        lower = max(per_step, total // per_step * per_step)
        raise ConfigError(
            f"trainer.global_batch_size={total} is no multiple of batch size {batch_size} x {data_parallel} data-parallel ranks; "
            f"{lower} and {lower + per_step} fit"
        )
    return total // per_step

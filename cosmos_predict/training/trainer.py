"""The training loop, top to bottom: build, resume, step, save, end.

Every random draw is a function of (seed, global sample number), so a resumed run repeats what an unbroken one computes,
and any number of ranks computes what one does. All ranks run this loop; the main rank writes and logs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from cosmos_predict.checkpoint.export import check_exportable
from cosmos_predict.checkpoint.load import grow_from_base, load_log_variance, load_state, select_weights
from cosmos_predict.checkpoint.lora_runs import lora_identity
from cosmos_predict.checkpoint.run_folder import RunFolder, published_file
from cosmos_predict.config.files import save_config
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.config.schema import Config
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.models.fit_data import check_data, frame_tokens, latent_frames
from cosmos_predict.models.world_model import WorldModel
from cosmos_predict.networks.lora import initialize_adapter, inject_lora, without_adapters
from cosmos_predict.parallel.activation import apply_activation_checkpointing, compile_blocks
from cosmos_predict.parallel.context_parallel import apply_context_parallel
from cosmos_predict.parallel.distributed import Ranks
from cosmos_predict.parallel.fsdp import average_gradients, initialise, shard_head, shard_network
from cosmos_predict.parallel.mesh import Mesh, make_mesh
from cosmos_predict.parallel.same_batch import exchange_fingerprint, refuse_different
from cosmos_predict.parallel.tensor_parallel import apply_tensor_parallel
from cosmos_predict.training.callbacks import Callback, LossRecord, StepReport
from cosmos_predict.training.checks import (
    accumulation_steps,
    check_frames,
    check_lengths,
    check_supported,
    check_tokens,
    mesh_of,
)
from cosmos_predict.training.ema import PowerEMA
from cosmos_predict.training.grad_clip import clip_gradients
from cosmos_predict.training.saving import Saver
from cosmos_predict.training.schedulers import lr_scheduler

MAX_SKIPPED_IN_A_ROW = 20
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        self.saver = Saver(self)
        self.all_written = True  # by all ranks, of the save on its way
        self.export_failed = False  # on the main rank, known to all
        self.stop_signal: str | None = None  # what all ranks agreed on
        self._received: signal.Signals | None = None  # what this one got

    # ---- setup -------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Make mesh, model, optimizer, schedule, EMA, data and callbacks."""
        config = self.config
        compute_dtype = getattr(torch, config.trainer.compute_dtype)
        sharded = self.sizes.world > 1 or compute_dtype != torch.float32
        self.mesh = make_mesh(self.ranks, self.sizes, self.device, always=sharded)
        torch.manual_seed(config.trainer.seed)
        self.dataset_config = config.dataloader_train.dataset  # type: ignore[union-attr]
        # No weight exists before each rank fills its own shards.
        self.model: WorldModel = instantiate(config.model, device=self.device, net_device="meta")
        self.dataset = instantiate(self.dataset_config)  # before weights are read: what does not fit is told at once
        check_data(self.model, self.dataset, config.job.debug)
        tokenizer, num_frames = self.model.tokenizer_holder[0], self.dataset_config.get("num_frames")
        if tokenizer is not None and num_frames is not None:
            check_frames(self.model.config.pipe_config, tokenizer, int(num_frames), self.sizes)
        check_lengths(latent_frames(self.model, self.dataset), self.model.net.config.num_heads, self.sizes)
        if config.model_parallel.sequence_parallel:
            check_tokens(frame_tokens(self.model, self.dataset), self.sizes)
        net, self.units = self.model.net, [self.model.net, *filter(None, [self.model.logvar])]
        if self.trains_lora:
            options = self.model.config  # float32 adapters cost little, beside weights of any precision
            targets = options.lora_target_modules
            inject_lora(net, options.lora_rank, options.lora_alpha, targets, dtype=torch.float32)
        else:
            check_exportable(self.folder.layout, self.weights())
        self.tensor = apply_tensor_parallel(net, self.mesh.tensor, config.model_parallel.sequence_parallel)
        apply_context_parallel(net, self.mesh.context, self.sizes.tensor)
        policy, every = config.trainer.activation_checkpointing, config.trainer.checkpoint_every_n_blocks
        apply_activation_checkpointing(net, policy, every)
        if config.trainer.compile:
            compile_blocks(net)
        if sharded:
            shard_network(net, self.mesh, None if compute_dtype == torch.float32 else compute_dtype)
            for head in self.units[1:]:
                shard_head(head, self.mesh)
        net.to_empty(device=self.device)
        with without_adapters(net):
            if not self._base_path() or net.config.controls or not config.checkpoint.strict_resume:
                initialise(net, net.init_weights)
            base = self._load_base()
            self.lora = lora_identity(net, self.model.config, base, self.mesh) if self.trains_lora else None
        initialize_adapter(net, seed=config.trainer.seed)
        self.model.train()
        self.optimizer: torch.optim.Optimizer = instantiate(config.optimizer, model=self.model)
        self.scheduler = lr_scheduler(self.optimizer, instantiate(config.scheduler))
        ema = self.model.config.pipe_config.ema
        self.ema = PowerEMA(self.parameters(), ema.rate, ema.iteration_shift) if ema.enabled else None
        self.batch_size = int(config.dataloader_train.get("batch_size", 1))  # type: ignore[union-attr]
        self.accumulation = accumulation_steps(config, self.batch_size, self.sizes.data)
        if self.sizes.world > 1:
            self.log("{}", self.sizes)
        self.log_batch()
        self.callbacks: list[Callback] = [instantiate(entry) for entry in config.trainer.callbacks.values() if entry]

    @property
    def trains_lora(self) -> bool:
        """Whether adapters are trained, beside frozen weights."""
        return self.model.config.train_architecture == "lora"

    @property
    def global_batch(self) -> int:
        """Samples per update over all ranks."""
        return self.batch_size * self.sizes.data * self.accumulation

    def log_batch(self) -> None:
        parts = (
            f"{self.batch_size} per step x {self.sizes.data} data-parallel rank(s) x {self.accumulation} accumulation"
        )
        self.log("batch: {} = {} samples per update", parts, self.global_batch)

    def log(self, text: str, *values: object, level: str = "INFO") -> None:
        """Log a line on the main rank."""
        if self.mesh.is_main:
            logger.opt(depth=1).log(level, text, *values)

    def weights(self) -> dict[str, Tensor]:
        """Return the model's tensors by full name: `net.*`, and `logvar.*` (two of which are not trained) if it is on.

        Without the frozen base of LoRA adapters, which every start makes again.
        """
        state = self.model.state_dict(keep_vars=True)
        frozen = {name for name in state if self.trains_lora and name.startswith("net.") and ".lora_" not in name}
        return {name: tensor.detach() for name, tensor in state.items() if name not in frozen}

    def parameters(self) -> dict[str, Tensor]:
        """Return the trained weights by full name, in the precision in which the optimizer keeps them."""
        kept = getattr(self.optimizer, "masters", ())
        masters = {id(p): m for p, m in zip(getattr(self.optimizer, "parameters", ()), kept, strict=True)}
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return {name: masters.get(id(p), p) for name, p in trained.items()}

    def _base_path(self) -> str:
        options, base = self.config.checkpoint, self.model.config.model_manager_config.dit_path
        if self.trains_lora and (options.load_training_state or options.only_load_scheduler_state):
            return base  # of the run that load_path is only the state is taken, which has no base
        return options.load_path or base

    def _load_base(self) -> Path | None:
        manager = self.model.config.model_manager_config
        path = self._base_path()
        if not path:
            if self.trains_lora:
                self.log("LoRA without a base: the frozen weights are random, made from the seed", level="WARNING")
            return None
        path = published_file(path, manager.load_ema)
        with TensorFile(path) as source:
            if self.model.net.config.controls and not self.trains_lora:  # nothing new could learn in a frozen base
                new = grow_from_base(self.model.net, source, ema=manager.load_ema)
                self.log("{} tensors are not in the base and start new{}", len(new), f": {new[:4]} ..." if new else "")
            else:
                strict = self.config.checkpoint.strict_resume
                load_state(self.model.net, source, ema=manager.load_ema, where=path, strict=strict)
            if self.model.logvar is not None:
                if select_weights(source.keys(), ema=manager.load_ema, where=path).logvar:
                    load_log_variance(self.model.logvar, source)
                else:
                    self.log("{} holds no log-variance head: it starts new", path)
        self.log("base weights: {}", path)
        return path

    # ---- the loop ----------------------------------------------------------------------------------------------

    def train(self) -> Progress:
        """Run until `trainer.max_iter` or a signal; return the progress. The last state is always saved."""
        if self.mesh.is_main:
            self.folder.acquire()
        before = torch.are_deterministic_algorithms_enabled()
        if self.config.trainer.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it, read when it starts
            torch.use_deterministic_algorithms(True)
        try:
            self.build()
            self.saver.resume()
            if self.mesh.is_main:
                save_config(self.config, self.folder.root / "config.yaml")
            with self._signals():
                self._loop()
            self.saver.settle()
        except BaseException as error:
            if isinstance(error, Exception):
                self.saver.finish_alone()
            full = isinstance(error, OSError) and error.errno in DISK_FULL
            # gloo's errors have no class of their own; another rank may also have ended with an error that it told itself.
            if full or isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
                what = str(error) if full else f"another process of the run ended or cannot be reached ({error})"
                more = f"; the newest complete iteration is {self.folder.newest()}, the same command resumes it"
                raise (OSError if full else ConnectionError)(what + more) from error
            raise
        finally:
            torch.use_deterministic_algorithms(before)
            if self.saver.written:  # a thread that still writes keeps the folder as long as it lives
                self.folder.release()
        return self.progress

    def _loop(self) -> None:
        config, progress = self.config, self.progress
        if progress.iteration >= config.trainer.max_iter:
            done, wanted = progress.iteration, config.trainer.max_iter
            what = "already at iteration {}: nothing to do up to trainer.max_iter={}; to go on: trainer.max_iter=N with N > {}"
            self.log(what, done, wanted, done, level="WARNING")
            return
        batches = self._batches(progress.sample_number)
        for callback in self.callbacks:
            callback.on_train_start(self)
        while progress.iteration < config.trainer.max_iter and self.stop_signal is None:
            started = time.perf_counter()
            report = self.step(batches)
            if self.device.type == "cuda" and report.iteration % config.trainer.logging_iter == 0:
                torch.cuda.synchronize(self.device)  # the optimizer's work is queued: rates shown here count it
            report.seconds = time.perf_counter() - started
            self.saver.after_step(self.all_written)
            for callback in self.callbacks:
                callback.on_step(self, report)
            # A failed export is raised by the save, with the state on disk.
            last = progress.iteration >= config.trainer.max_iter or self.stop_signal is not None or self.export_failed
            if progress.iteration % config.checkpoint.save_iter == 0 or last:
                self.saver.save(last)
        if self.stop_signal is not None:
            what = "{}: saved iteration {} and stopping; the same command resumes it"
            self.log(what, self.stop_signal, progress.iteration, level="WARNING")
        for callback in self.callbacks:
            callback.on_train_end(self)

    def step(self, batches: Iterator[dict[str, Any]]) -> StepReport:
        """Do one optimizer update: accumulate, clip, step, average. A non-finite update is skipped and counted."""
        progress, seed = self.progress, self.config.trainer.seed
        losses: list[LossRecord] = []
        compared: list[tuple[Tensor, Tensor | None]] = []
        waited = 0.0
        for micro in range(self.accumulation):
            started = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - started
            compared.append((batch["sample_number"], exchange_fingerprint(self.mesh, batch, self.device)))
            out = self.model.training_loss(batch, seed)
            average_gradients(self.units, self.mesh, last=micro == self.accumulation - 1)
            (out.loss / self.accumulation).backward()
            losses.append(LossRecord(out.loss.detach(), out.mse_loss, tuple(out.xt.shape)))
            progress.sample_number += len(batch["sample_number"]) * self.sizes.data
        if self.tensor is not None:
            self.tensor.sum_gradients()
        settings = self.config.trainer
        clip = clip_gradients(self.model.parameters(), settings.clip_norm, force_finite=settings.grad_force_finite)
        # Clipping has waited for the device anyhow.
        refuse_different(self.mesh, compared)
        losses = self._agree(losses)
        lr = float(self.scheduler.get_last_lr()[0])
        if clip.skip_step:
            self._count_skip(clip.total_norm)
        else:
            self.optimizer.step()
            progress.skipped_in_a_row = 0
        self.scheduler.step()
        if self.ema is not None and not clip.skip_step:
            self.ema.update(self.parameters(), progress.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        progress.iteration += 1
        return StepReport(progress.iteration, losses, clip.total_norm, lr, clip.skip_step, self.global_batch, waited)

    def _agree(self, losses: list[LossRecord]) -> list[LossRecord]:
        """Return the losses averaged over all ranks; set `stop_signal` if any got a signal, `all_written`, `export_failed`."""
        if self.sizes.world == 1:
            self.stop_signal = self._received.name if self._received else None
            self.all_written, self.export_failed = self.saver.written, self.saver.export_failed
            return losses
        values = [value.float() for record in losses for value in (record.loss, record.mse)]
        flags = [*(self._received == number for number in STOP_SIGNALS), self.saver.export_failed, self.saver.written]
        total = self.mesh.sum(torch.cat([torch.stack(values), torch.tensor(flags, device=self.device).float()]))
        mean = (total[: len(values)] / self.sizes.world).reshape(-1, 2)
        *counts, failed, written = total[len(values) :].tolist()
        self.stop_signal = next((s.name for s, n in zip(STOP_SIGNALS, counts, strict=True) if n), None)
        self.all_written, self.export_failed = written == self.sizes.world, failed > 0
        return [LossRecord(loss, mse, record.shape) for (loss, mse), record in zip(mean, losses, strict=True)]

    def _count_skip(self, norm: float) -> None:
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        what = "iteration {}: gradient norm is {}, update skipped ({} so far)"
        self.log(what, progress.iteration, norm, progress.skipped, level="WARNING")
        if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
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
        """Let SIGTERM, SIGUSR1 or Ctrl-C, on any rank, end the run on all of them after the current update, with a save.

        A second Ctrl-C raises KeyboardInterrupt, unless it comes within a second: a launcher passes the first one on.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        first, owner = 0.0, os.getpid()

        def handle(number: int, _frame: object) -> None:
            nonlocal first
            if os.getpid() != owner:  # a worker just forked, which does not ignore signals yet
                return
            if number == signal.SIGINT == self._received and time.monotonic() - first > 1:
                raise KeyboardInterrupt
            if number == signal.SIGINT != self._received:
                first = time.monotonic()
                if self.mesh.is_main:  # loggers and streams are not safe here
                    os.write(2, b"\nCtrl-C: saving after this update, then leaving; a second one leaves at once\n")
            self._received = signal.Signals(number)

        previous = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

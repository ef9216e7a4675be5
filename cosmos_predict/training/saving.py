"""Saving a run while it goes on, and resuming it.

A save copies this rank's shards to host memory and lets a thread write them beside the training; the copy is all that a
step waits for. The thread talks to no other rank: ranks tell each other that they have written in the reduction that ends
every update (`Trainer.step`), and the index, which makes the iteration count, is written between two updates. The
published files are then made from the files of the state, by a thread of the main rank. One save is on its way at most;
what went wrong is raised between two updates: a state that could not be written at once, published files after a save
of the present state. A run that fails alone finishes its save first; one that fails among others leaves it incomplete,
since they may be gone.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from cosmos_predict.checkpoint.export import export_adapters, export_checkpoint
from cosmos_predict.checkpoint.lora_forms import CONFIG_FILE
from cosmos_predict.checkpoint.lora_runs import check_same_adapters
from cosmos_predict.checkpoint.run_folder import RunFolder, state_at
from cosmos_predict.checkpoint.run_state import (
    SavedState,
    StateWriter,
    load_optimizer_state,
    optimizer_state,
    restore_rng,
)
from cosmos_predict.config.files import config_hash, to_plain
from cosmos_predict.config.schema import RESUME_PARTS
from cosmos_predict.config.tree import changes, to_tree
from cosmos_predict.data.loader import batch_decides_order
from cosmos_predict.errors import CheckpointError
from cosmos_predict.io.atomic import atomic_write_text
from cosmos_predict.parallel.mesh import Mesh, divisors
from cosmos_predict.training.optimizers import MasterAdamW

if TYPE_CHECKING:
    from cosmos_predict.training.trainer import Trainer


class Saver:
    """Saves and resumes the run of `trainer`. Every rank calls each method alike."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.folder, self.options, self._log = trainer.folder, trainer.config.checkpoint, trainer.log
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "save")
        self._task: concurrent.futures.Future[None] | None = None  # this rank's thread at work
        self._writer: StateWriter | None = None  # a state without its index

    @property
    def mesh(self) -> Mesh:
        return self.trainer.mesh

    # ---- saving ------------------------------------------------------------------------------------------------

    def save(self, last: bool = False) -> None:
        """Begin to save the present iteration, once the save before is done; if it is the `last`, wait for the end.

        Raises OSError, on every rank: for the state of either save at once, for the published files of the save before
        when the present state is on disk.
        """
        failure = self._wait()
        trainer, progress = self.trainer, self.trainer.progress
        background = self.options.async_save and not last and failure is None
        tensors, groups = optimizer_state(trainer.optimizer, trainer.model)
        self._writer = StateWriter(
            self.folder,
            progress.iteration,
            weights=trainer.weights(),
            ema=trainer.ema.state_dict() if trainer.ema is not None else None,
            optimizer=tensors,
            scheduler=trainer.scheduler.state_dict(),
            numbers={
                "recipe": trainer.recipe,
                "config_hash": config_hash(trainer.config),
                "sample_number": progress.sample_number,
                "skipped": progress.skipped,
                "skipped_in_a_row": progress.skipped_in_a_row,
                "global_batch_size": trainer.global_batch,
                "batch_size": trainer.batch_size,
                "world_size": trainer.ranks.world_size,
                "data_parallel": trainer.sizes.data,
                "optimizer_groups": groups,
                **({"lora": trainer.lora} if trainer.lora else {}),
            },
            mesh=self.mesh,
            copy=background,
        )
        self._task = self._pool.submit(self._writer.write)
        if not background and (failure := self._wait() or failure):
            raise failure

    @property
    def written(self) -> bool:
        """Whether this rank's thread has nothing left to write."""
        return self._task is None or self._task.done()

    @property
    def export_failed(self) -> bool:
        """Whether this rank could not make the published files of the save before."""
        return self._task is not None and self._task.done() and self._task.exception() is not None

    def after_step(self, all_written: bool) -> None:
        """Complete the iteration on its way if every rank has `written` its part."""
        if self._writer is not None and all_written:
            self._complete(self._writer)

    def settle(self) -> None:
        """Wait for the save on its way. Raises OSError, on every rank, when it failed."""
        if failure := self._wait():
            raise failure

    def _wait(self) -> OSError | None:
        """Wait for the save on its way; return, on every rank, why its published files could not be written.

        Raises OSError when its state could not be.
        """
        self._poll()
        if self._writer is not None:
            self._complete(self._writer)
            self._poll()
        error = self._task.exception() if self._task is not None else None
        self._task = None
        problem = f"{type(error).__name__}: {error}" if error else ""
        number, problem = self.mesh.from_main((getattr(error, "errno", None), problem))
        if not problem:
            return None
        failure = OSError(
            f"the published files of iteration {self.folder.newest()} could not be written: {problem}. Its state is "
            "complete: the same command makes them again"
        )
        failure.errno = number
        return failure

    def _poll(self) -> None:
        """Wait until every rank has `written`, in collectives of a second at most: they would run out of time in a long one."""
        pause = 0.05
        while not all(self.mesh.gather(self.written)):
            concurrent.futures.wait([self._task] if self._task else [], timeout=pause)
            pause = min(2 * pause, 1.0)

    def _complete(self, writer: StateWriter) -> None:
        assert self._task is not None
        self._task.result()
        self._writer = self._task = None
        writer.finish()
        self._log("saved iteration {} under {}", writer.iteration, self.folder.checkpoints)
        if self.mesh.is_main:
            self._task = self._pool.submit(self._publish, writer.iteration)

    def _publish(self, iteration: int) -> None:
        """Write the published files of a complete iteration from its state, then drop what `keep_last_k` lets go."""
        lora = self.trainer.lora
        with SavedState(self.folder, iteration, check=False) as saved:
            weights, ema = saved.entries("weights"), saved.entries("ema") or None
            ema = {**weights, **ema} if ema else None  # completed with what is not averaged
            if lora:
                export_adapters(self.folder, iteration, self.trainer.model.net, weights, ema, lora)
            else:
                export_checkpoint(self.folder, iteration, weights, ema)
        self.folder.keep_last(self.options.keep_last_k)

    def _is_published(self, iteration: int) -> bool:
        latest = self.folder.checkpoints / "latest_checkpoint.txt"  # written after the files
        paths = self.folder.exports(iteration)
        if self.trainer.lora:  # the file that is written last
            paths = {part: path / CONFIG_FILE for part, path in self.folder.adapters(iteration).items()}
        there = all(path.exists() for part, path in paths.items() if part != "ema" or self.trainer.ema is not None)
        return there and latest.is_file() and latest.read_text().startswith(f"iter_{iteration:09d}")

    def finish_alone(self) -> None:
        """After an error, complete the save on its way; among other ranks, which may be gone, leave it incomplete."""
        if self.trainer.sizes.world > 1:
            return
        try:
            self.settle()
        except Exception as error:
            self._log("{}", error, level="ERROR")

    # ---- resuming ----------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Continue the newest complete iteration of the run's folder, or else what `checkpoint.load_path` is asked for.

        What is taken: model (with EMA), optim, scheduler, trainer (iteration, sample number, random generators), but
        none of `keys_not_to_resume`. Published files that are gone are made again. Raises CheckpointError for `trainer` in
        `keys_not_to_resume` where the run's own folder is continued.
        """
        left = set(self.options.keys_not_to_resume)
        folder, iteration = self.folder, self.mesh.from_main(self.folder.newest())
        wanted: set[str] = set(RESUME_PARTS)
        if own := iteration is not None:
            folder.check_recipe(self.trainer.recipe, iteration)
            if "trainer" in left:
                raise CheckpointError(
                    f"checkpoint.keys_not_to_resume={sorted(left)}, but {folder.root} is this run's own folder: counting its "
                    "iterations from 0 would mix new ones with the old. Take 'trainer' out to continue the run, or start another "
                    f"job.name from it with checkpoint.load_path={folder.root} checkpoint.load_training_state=true"
                )
            if left:
                self._log("checkpoint.keys_not_to_resume: every start begins {} anew", sorted(left), level="WARNING")
        elif self.options.load_training_state or self.options.only_load_scheduler_state:
            folder, iteration = state_at(self.options.load_path or "")
            wanted = wanted if self.options.load_training_state else {"model", "scheduler"}
        if iteration is not None:
            with SavedState(folder, iteration, self.mesh) as saved:
                if own:
                    self._keep_global_batch(saved.index["global_batch_size"], saved.index["data_parallel"])
                    self._keep_order(saved.index.get("batch_size", self.trainer.batch_size))
                    self._log_changes(saved.index)
                self._take(saved, wanted - left, folder)
            ranks = saved.index["world_size"]
            self._log("resumed {} at iteration {}, saved by {} rank(s)", folder.root, iteration, ranks)
        if self.mesh.is_main:
            forget_metrics(self.folder.root / "metrics.jsonl", self.trainer.progress.iteration)
            if own and iteration is not None and not self._is_published(iteration):
                self._task = self._pool.submit(self._publish, iteration)

    def _take(self, saved: SavedState, wanted: set[str], folder: RunFolder) -> None:
        trainer, index, strict = self.trainer, saved.index, self.options.strict_resume
        check_same_adapters(index.get("lora"), trainer.lora, folder.root)
        unfit: set[str] = set()
        averaged = bool(saved.names("ema"))
        if "model" in wanted:
            unfit = saved.copy_into("weights", trainer.weights(), folder.root, strict)
            if trainer.ema is not None and averaged:
                unfit |= saved.copy_into("ema", trainer.ema.state_dict(), f"the EMA of {folder.root}", strict)
            if unfit:
                what = "{}: {} tensors do not fit and are left: {}"
                self._log(what, folder.root, len(unfit), sorted(unfit)[:8], level="WARNING")
        if "optim" in wanted:
            load_optimizer_state(trainer.optimizer, trainer.model, saved, unfit, masters="model" in wanted)
            if index["world_size"] != trainer.sizes.world and any(
                "_codes." in name for name in saved.names("optimizer")
            ):
                self._log("8-bit moments: none quantised anew, their blocks lie within the rows that ranks share out")
        elif "model" in wanted and isinstance(trainer.optimizer, MasterAdamW):
            trainer.optimizer.take_weights()
        if "model" in wanted and trainer.ema is not None and not averaged:
            trainer.ema.load_state_dict(trainer.parameters())
            self._log("{} kept no EMA: it begins with the weights of now", folder.root, level="WARNING")
        if "scheduler" in wanted:
            # The position only: rates and schedule are the present configuration's, so that they can be changed.
            scheduler = trainer.scheduler
            scheduler.last_epoch = int(saved.scheduler["last_epoch"])
            scheduler._step_count = int(saved.scheduler["_step_count"])
            groups = trainer.optimizer.param_groups
            for group, rate, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
                group["lr"] = rate * factor(scheduler.last_epoch)
            scheduler._last_lr = [group["lr"] for group in groups]
        if "trainer" in wanted:
            restore_rng(saved)
            progress = trainer.progress
            progress.iteration, progress.sample_number = index["iteration"], index["sample_number"]
            progress.skipped, progress.skipped_in_a_row = index["skipped"], index.get("skipped_in_a_row", 0)

    def _keep_global_batch(self, saved: int, data_parallel: int) -> None:
        """Let accumulation make up for another number of ranks; the samples of an update are part of the run."""
        trainer, present = self.trainer, self.trainer.global_batch
        if saved == present:
            return
        ranks = trainer.sizes.data
        what = f"{self.folder.root} was trained with a global batch of {saved}"
        if trainer.config.trainer.global_batch_size is not None or data_parallel == ranks:
            remedy = f"set trainer.global_batch_size={saved}, or start another run with job.name=NAME"
            raise CheckpointError(f"{what}, this run has {present}; {remedy}")
        if saved % (trainer.batch_size * ranks):
            fit = divisors(saved // trainer.batch_size if saved % trainer.batch_size == 0 else 0)
            raise CheckpointError(
                f"{what}, which does not divide over batch size {trainer.batch_size} x {ranks} data-parallel ranks; "
                f"at this batch size these numbers of ranks fit: {fit}"
            )
        trainer.accumulation = saved // (trainer.batch_size * ranks)
        self._log("saved by {} data-parallel rank(s), the global batch stays:", data_parallel)
        trainer.log_batch()

    def _keep_order(self, saved: int) -> None:
        """Refuse another batch size where it decides which items an update reads."""
        present = self.trainer.batch_size
        if saved != present and batch_decides_order(self.trainer.dataset):
            raise CheckpointError(
                f"{self.folder.root} was trained with batch size {saved}, this run has {present}: with several buckets or "
                f"datasets that reads other samples; set dataloader_train.batch_size={saved} (and accumulate)"
            )

    def _log_changes(self, index: dict[str, Any]) -> None:
        """Say which settings are not those that the folder's newest state was trained with."""
        path, config = self.folder.root / "config.yaml", self.trainer.config
        if not path.is_file() or index["config_hash"] == config_hash(config):
            return
        lines = [
            line for line in changes(to_tree(OmegaConf.load(path)), to_plain(config)) if not line.startswith("job.")
        ]
        if lines:
            self._log("settings changed since the last start: {}", "; ".join(lines), level="WARNING")


def forget_metrics(path: Path, iteration: int) -> None:
    """Drop the lines of a metrics file past `iteration` (all, at 0): a killed run logged them, and they come again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        with contextlib.suppress(ValueError, KeyError):  # the last line of a killed run may be cut
            if iteration and json.loads(line)["iteration"] <= iteration:
                kept.append(line)
    atomic_write_text(path, "".join(kept))

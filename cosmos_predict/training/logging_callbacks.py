"""Where published numbers and pictures are shown: TensorBoard, and Weights & Biases where its key is set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loguru import logger

from cosmos_predict.config.files import config_text, to_plain
from cosmos_predict.config.lazy import configurable
from cosmos_predict.io.atomic import atomic_write_text
from cosmos_predict.parallel.distributed import register_closer
from cosmos_predict.training.callbacks import Callback

if TYPE_CHECKING:
    import numpy as np

    from cosmos_predict.training.trainer import Trainer

WANDB_ID_FILE = "wandb_run_id.txt"


def tagged(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers under grouped names: those without a group belong to `train/`."""
    return {name if "/" in name else f"train/{name}": value for name, value in scalars.items()}


@configurable
class TensorBoard(Callback):
    """Write published numbers and pictures as event files under RUN/tensorboard, and the configuration as text.

    A resumed run hides what a killed one wrote past the iteration that it resumes from.
    """

    def __init__(self) -> None:
        self.writer: Any = None

    def on_train_start(self, trainer: Trainer) -> None:
        if trainer.ranks.rank != 0:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            logger.warning("no TensorBoard files: {}; install it with: pip install tensorboard", error)
            return
        done = trainer.progress.iteration
        self.writer = SummaryWriter(str(trainer.folder.root / "tensorboard"), purge_step=done + 1)
        self.writer.add_text("config", f"```yaml\n{config_text(trainer.config)}```", done)
        register_closer("TensorBoard", self.writer.close)

    def on_scalars(self, trainer: Trainer, iteration: int, scalars: Mapping[str, float]) -> None:
        if self.writer is None:
            return
        for name, value in tagged(scalars).items():
            self.writer.add_scalar(name, value, iteration)
        self.writer.flush()  # a killed run keeps what it logged

    def on_picture(self, trainer: Trainer, iteration: int, name: str, picture: np.ndarray) -> None:
        if self.writer is not None:
            self.writer.add_image(name, picture, iteration, dataformats="HWC")
            self.writer.flush()

    def on_train_end(self, trainer: Trainer) -> None:
        if self.writer is not None:
            self.writer.close()


@configurable
class Wandb(Callback):
    """Send published numbers and pictures to Weights & Biases; does nothing unless `WANDB_API_KEY` is set.

    Project, group and name are `WANDB_PROJECT` (or `WANDB_PROJECT_NAME`), `WANDB_RUN_GROUP` and `WANDB_NAME` (or
    `WANDB_RUN_NAME`), else the job's. A run of the same folder continues under the same id; `WANDB_RUN_ID` sets it. Where
    the package is missing or the service refuses, training goes on after a warning.
    """

    def __init__(self) -> None:
        self.run: Any = None

    def on_train_start(self, trainer: Trainer) -> None:
        if trainer.ranks.rank != 0 or not os.environ.get("WANDB_API_KEY"):
            return
        try:
            import wandb
        except ImportError:
            logger.warning("WANDB_API_KEY is set, but the package is missing: pip install wandb; nothing is sent")
            return
        self.wandb = wandb
        job, id_file = trainer.config.job, trainer.folder.root / WANDB_ID_FILE
        saved = id_file.read_text().strip() if id_file.exists() else None
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or os.environ.get("WANDB_PROJECT_NAME") or job.project,
                group=os.environ.get("WANDB_RUN_GROUP") or job.group,
                name=os.environ.get("WANDB_NAME") or os.environ.get("WANDB_RUN_NAME") or job.name,
                id=os.environ.get("WANDB_RUN_ID") or saved,
                resume="allow",
                dir=str(trainer.folder.root),
                config=to_plain(trainer.config, strict=False),
            )
        except Exception as error:  # no network, a wrong key: no reason to stop a training
            logger.warning("Weights & Biases did not start, nothing is sent: {}", error)
            return
        atomic_write_text(id_file, f"{self.run.id}\n")
        register_closer("Weights & Biases", self.run.finish)

    def on_scalars(self, trainer: Trainer, iteration: int, scalars: Mapping[str, float]) -> None:
        if self.run is not None:
            self.run.log(tagged(scalars), step=iteration)

    def on_picture(self, trainer: Trainer, iteration: int, name: str, picture: np.ndarray) -> None:
        if self.run is not None:
            self.run.log({name: self.wandb.Image(picture)}, step=iteration)

    def on_train_end(self, trainer: Trainer) -> None:
        if self.run is not None:
            self.run.finish()

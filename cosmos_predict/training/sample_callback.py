"""Clips generated while a run goes on: what the loss does not show."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from cosmos_predict.conditions.frames import GivenFrames, first_frames_mask
from cosmos_predict.config.lazy import configurable, instantiate
from cosmos_predict.data.loader import collate, read_batch
from cosmos_predict.data.transforms import video_to_uint8
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.atomic import atomic_path
from cosmos_predict.models.sampling import SamplerSettings, seeded_noise
from cosmos_predict.training.callbacks import Callback, StepReport
from cosmos_predict.training.validation import observing

if TYPE_CHECKING:
    from cosmos_predict.training.trainer import Trainer

GAP = 2  # pixels between the frames of a picture


@configurable
class SampleClips(Callback):
    """Every `every_n` updates and after the last, continue the first samples of the validation (else training) set.

    Given are as many latent frames as training gives at most. Writes RUN/samples/iter_%09d.mp4, the generated clips one
    below the other, and iter_%09d.png, times from left to right: per clip a row of generated frames, and below it one of
    the real frames as the tokenizer keeps them. Noise is fixed, so that pictures of one run differ by the weights alone.

    Args:
        every_n: updates between two pictures.
        num_clips: samples, from number `first_sample` on.
        num_steps: solver steps of the family's own solver.
        guidance: 0 is none.
        ema: use the averaged weights where the run keeps them.
        seed: of the noise.
        columns: frames per row of the picture.

    Raises:
        ConfigError: a count below 1; a model without a tokenizer.
    """

    def __init__(
        self,
        every_n: int = 1000,
        num_clips: int = 1,
        num_steps: int = 12,
        guidance: float = 1.0,
        ema: bool = True,
        seed: int = 0,
        first_sample: int = 0,
        columns: int = 6,
    ) -> None:
        counts = {"every_n": every_n, "num_clips": num_clips, "num_steps": num_steps, "columns": columns}
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"sample clips: {name}={value}, expected a whole number of at least 1")
        self.every_n, self.num_clips, self.num_steps, self.columns = every_n, num_clips, num_steps, columns
        self.guidance, self.ema, self.seed, self.first_sample = guidance, ema, seed, first_sample

    def on_train_start(self, trainer: Trainer) -> None:
        if trainer.model.tokenizer_holder[0] is None:
            raise ConfigError(
                "sample clips need the video tokenizer, and this run trains on cached latents without one: remove the "
                "callback (~trainer.callbacks.samples), or build the model with its tokenizer"
            )
        loader = trainer.config.dataloader_val
        held_out = loader is not None and loader.get("dataset") is not None
        dataset = instantiate(loader.dataset) if loader is not None and held_out else trainer.dataset
        first = self.first_sample
        self.batch = collate(read_batch(dataset, range(first, first + self.num_clips)))

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.iteration % self.every_n == 0 or report.iteration == trainer.config.trainer.max_iter:
            self.draw(trainer, report.iteration)

    def draw(self, trainer: Trainer, iteration: int) -> None:
        """Generate the clips and write both files."""
        with observing(trainer, self.ema):
            generated, real = (_frames(video, trainer) for video in self._generate(trainer))
        if trainer.ranks.rank != 0:
            return
        picture = frame_grid([clip for pair in zip(generated, real, strict=True) for clip in pair], self.columns)
        for callback in trainer.callbacks:
            callback.on_picture(trainer, iteration, "samples", picture)
        path = trainer.folder.root / "samples" / f"iter_{iteration:09d}.mp4"
        fps = float(torch.as_tensor(self.batch["fps"]).flatten()[0])
        try:
            write_video(path, np.concatenate(list(generated), axis=1), fps)
            _write_png(path.with_suffix(".png"), picture)
        except (OSError, DataError) as error:  # no reason to stop a training
            logger.warning("generated clips at {} are not written: {}", iteration, error)
        else:
            logger.info("generated clips at {}: {} and .png", iteration, path)

    def _generate(self, trainer: Trainer) -> tuple[Tensor, Tensor]:
        """Return generated and real videos `(B, 3, V*T, H, W)`, both decoded from latents."""
        model, pipe = trainer.model, trainer.model.config.pipe_config
        x0, condition = model.prepare(self.batch)
        noise = seeded_noise(x0.shape, self.seed).to(x0)
        given = torch.zeros_like(x0[:, :1])
        if model.takes_frames and condition.data_type == "video":
            frames = x0.shape[2] // condition.views
            count = min(max(pipe.max_num_conditional_frames, 0), frames - 1)
            given = first_frames_mask([count] * len(x0), frames, condition.views).to(x0)
            condition = dataclasses.replace(condition, frames=GivenFrames(x0, given, augment_noise=noise))
        settings = SamplerSettings.for_pipe(pipe, num_steps=self.num_steps, guidance=self.guidance)
        sampled = model.sample(noise, condition, settings)
        sampled = given * x0 + (1 - given) * sampled
        return model.decode(sampled, pipe.views), model.decode(x0, pipe.views)


def frame_grid(clips: list[np.ndarray], columns: int) -> np.ndarray:
    """Return a white-spaced picture uint8 `(H', W', 3)`: a row per clip `(T, H, W, 3)`, frames from first to last."""
    rows = []
    for clip in clips:
        times = np.linspace(0, len(clip) - 1, min(columns, len(clip))).round().astype(int)
        spaced = np.pad(clip[times], ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
        rows.append(np.concatenate(list(spaced), axis=1))
    return np.concatenate(rows, axis=0)


def _frames(video: Tensor, trainer: Trainer) -> np.ndarray:
    """Return uint8 `(B, T, H, V*W, 3)` of videos `(B, 3, V*T, H, W)` in [-1, 1]: views side by side."""
    pixels = video_to_uint8(video).cpu()
    views = pixels.unflatten(2, (trainer.model.config.pipe_config.views, -1))  # (B, 3, V, T, H, W)
    return views.permute(0, 3, 4, 2, 5, 1).flatten(3, 4).numpy()


def _write_png(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")

"""From text and given frames to a clip, chained for long ones; with no given frames, from text alone; one frame is an image."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cosmos_predict.conditions.frames import GivenFrames, first_frames_mask
from cosmos_predict.data import transforms, video_reader
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.models.conditioning import Conditioning
from cosmos_predict.models.sampling import SamplerSettings, sample, seeded_noise
from cosmos_predict.models.world_model import WorldModel


@dataclasses.dataclass
class Clip:
    """What to generate.

    input_path: image or video that is continued, or frames uint8 `(T, H, W, 3)`; None: from text alone. num_frames: of one
    chunk, given ones included, 1 is an image. size: (height, width). num_conditional_frames: given pixel frames, the
    input's last ones, and each further chunk's. num_chunks: chunk k continues chunk k - 1 with seed + k.
    """

    input_path: str | Path | np.ndarray | None
    num_frames: int
    size: tuple[int, int]
    fps: float = 16.0
    num_conditional_frames: int = 1
    seed: int = 0
    num_chunks: int = 1

    @property
    def total_frames(self) -> int:
        """Frames of the whole clip: n + (chunks - 1) (n - c), as published."""
        return self.num_frames + (self.num_chunks - 1) * (self.num_frames - self.num_conditional_frames)


def check_input(path: str | Path, count: int) -> None:
    """Raise DataError unless `path` is a readable image (count 1) or a video that has `count` frames."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no input at {path}: expected an image or a video (--input_path, input_video)")
    if video_reader.is_video(path):
        if (total := video_reader.probe(path).frames) < count:
            advice = "give a longer video, or fewer (--num_conditional_frames, --num_input_frames)"
            raise DataError(
                f"{path} has {total} frames, num_conditional_frames={count} needs at least as many: {advice}"
            )
    elif not video_reader.is_image(path):
        known = ", ".join((*video_reader.VIDEO_SUFFIXES, *video_reader.IMAGE_SUFFIXES))
        raise DataError(f"{path}: neither an image nor a video by its name; expected one of {known}")
    elif count != 1:
        raise DataError(f"{path} is an image: num_conditional_frames must be 1, not {count}; give a video for more")
    else:
        video_reader.read_image(path)


def read_condition(source: str | Path | np.ndarray, size: tuple[int, int], count: int) -> Tensor:
    """Return the given frames `(1, 3, count, H, W)` uint8: an image (count 1), or the last `count` frames of a video.

    They cover `size` = (height, width) and are cropped at the centre. Raises DataError as `check_input`, and for a file
    that cannot be read.
    """
    if isinstance(source, np.ndarray):
        frames = source[-count:]
    else:
        check_input(source, count)
        if video_reader.is_video(Path(source)):
            total = video_reader.probe(source).frames
            frames = video_reader.read_frames(source, range(total - count, total))
        else:
            frames = video_reader.read_image(source)[None]
    fitted = transforms.fit_frames(torch.from_numpy(frames).permute(0, 3, 1, 2), size, "crop").frames
    return fitted.permute(1, 0, 2, 3)[None]


def to_frames(video: Tensor) -> np.ndarray:
    """Return uint8 frames `(T, H, W, 3)` of a video `(3, T, H, W)` in [-1, 1]."""
    return transforms.video_to_uint8(video).permute(1, 2, 3, 0).cpu().numpy()


def latent_shape(model: WorldModel, clip: Clip) -> tuple[int, int, int, int, int]:
    """Return `(1, C, T, h, w)` of one chunk; the network may still lie on the meta device.

    Raises ConfigError (a ValueError) for a length or size that does not fit, naming the nearest ones, and for a network
    of another task.
    """
    tokenizer, config = model.tokenizer, model.net.config
    if views := [control.name for control in config.controls if control.name != "augment_sigma"]:
        raise ConfigError(f"this network is steered by {', '.join(views)}: it belongs to a command of that task")
    given, takes_frames = clip.input_path is not None, model.takes_frames
    if given and not takes_frames:
        raise ConfigError("this network takes no given frames (it has no condition-mask channel): use text2world.py")
    if not given and clip.num_chunks > 1:
        raise ConfigError(f"num_chunks={clip.num_chunks}: only a clip that is continued has several; give an input")
    if clip.seed + clip.num_chunks > 2**32:
        raise ConfigError(
            f"seed {clip.seed} leaves none for the last of {clip.num_chunks} chunks: they end at {2**32 - 1}"
        )
    frames = tokenizer.get_latent_num_frames(clip.num_frames)
    if given and tokenizer.get_latent_num_frames(clip.num_conditional_frames) >= frames:
        raise ConfigError(
            f"{clip.num_conditional_frames} given frames leave nothing of {clip.num_frames} to generate: "
            "give fewer (num_conditional_frames) or generate more (num_frames)"
        )
    scale = tokenizer.spatial_compression_factor
    step = scale * config.patch_spatial
    if any(side % step for side in clip.size):
        near = tuple(max(step, round(side / step) * step) for side in clip.size)
        raise ConfigError(
            f"size {clip.size[0]} x {clip.size[1]} (height x width) must be a multiple of {step}; nearest: {near[0]} x {near[1]}"
        )
    return 1, config.latent_channels, frames, clip.size[0] // scale, clip.size[1] // scale


@torch.no_grad()
def generate(
    model: WorldModel,
    clip: Clip,
    text: Tensor,
    negative_text: Tensor | None = None,
    settings: SamplerSettings | None = None,
    *,
    device: torch.device | str | None = None,
    **options: Any,
) -> np.ndarray:
    """Return the frames uint8 `(clip.total_frames, H, W, 3)`; the first are the given ones as the tokenizer keeps them.

    text, negative_text: embeddings `(1, L, C)`; without negative text guidance is against zeros. Only the given frames
    are encoded. device: where each part of the model is put while it works and taken from after (default: nothing moves).
    options: `on_step` and `spread` of `models.sampling.sample`. Raises what `latent_shape` and `read_condition` raise.
    """
    shape = latent_shape(model, clip)
    device = torch.device(device or model.net.device)
    settings = settings or SamplerSettings.for_pipe(model.config.pipe_config)
    draws = settings.num_steps if settings.solver == "distilled" else 1  # which adds fresh noise at every step
    chunks: list[np.ndarray] = []
    count, given, latent = clip.num_conditional_frames, None, None
    if clip.input_path is not None:
        given = read_condition(clip.input_path, clip.size, count)
    for chunk in range(clip.num_chunks):
        if given is not None:
            with at_work(model.tokenizer, device):
                latent = model.encode(given.to(device))
        noise, *fresh = seeded_noise((draws, *shape), clip.seed + chunk).to(device)
        with at_work(model.net, device):
            options["fresh_noise"] = fresh
            sampled = sample_clip(model, noise, text, latent, negative_text, clip.fps, settings, **options)
        with at_work(model.tokenizer, device):
            video = model.decode(sampled).float().clamp(-1, 1)
        given = video[:, :, -count:]
        chunks.append(to_frames(video[0, :, count if chunk else 0 :]))
    return np.concatenate(chunks)


def sample_clip(
    model: WorldModel,
    noise: Tensor,
    text: Tensor,
    given: Tensor | None = None,
    negative_text: Tensor | None = None,
    fps: float = 16.0,
    settings: SamplerSettings | None = None,
    augment_noise: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Return a clean latent like `noise` (unit normal `(1, C, T, h, w)` float32) that starts with the latents `given`
    `(1, C, t, h, w)`. augment_noise: what Predict1 adds, times its tiny augment sigma, to the given frames, the same at
    every step (default: `noise`). options: of `models.sampling.sample`; the rest is as in `generate`.
    """
    device, frames = noise.device, noise.shape[2]
    count = 0 if given is None else given.shape[2]
    latent = torch.zeros_like(noise)
    if given is not None:
        latent[:, :, :count] = given
    condition = Conditioning(
        text=text.to(device),
        negative_text=None if negative_text is None else negative_text.to(device),
        fps=torch.tensor([fps]),
        padding_mask=torch.zeros(1, 1, *noise.shape[3:], device=device),
        data_type="video" if frames > 1 else "image",
    )
    if model.takes_frames and frames > 1:
        mask = first_frames_mask([count], frames).to(device)
        condition.frames = GivenFrames(latent, mask, augment_noise=noise if augment_noise is None else augment_noise)
    settings = settings or SamplerSettings.for_pipe(model.config.pipe_config)
    sampled = sample(model, noise, condition, settings, **options)
    sampled[:, :, :count] = latent[:, :, :count]  # Predict1's solver leaves a trace of its own noise there
    return sampled


@contextlib.contextmanager
def at_work(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Have `module` on `device` inside, and where it was afterwards."""
    home = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), device)
    module.to(device)
    try:
        yield
    finally:
        module.to(home)

"""Continue an image or a clip: files and text in, frames out, through `WorldModel.sample`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cosmos_predict.conditions.frames import GivenFrames, first_frames_mask
from cosmos_predict.data import transforms, video_reader
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.models.conditioning import Conditioning
from cosmos_predict.models.sampling import SamplerSettings, seeded_noise
from cosmos_predict.models.world_model import WorldModel


@dataclasses.dataclass
class Clip:
    """What to generate. size: (height, width); num_conditional_frames: given pixel frames, the input's last ones."""

    input_path: str | Path
    num_frames: int
    size: tuple[int, int]
    fps: float = 16.0
    num_conditional_frames: int = 1
    seed: int = 0


def read_condition(path: str | Path, size: tuple[int, int], count: int) -> Tensor:
    """Return the given frames `(1, 3, count, H, W)` uint8 of an image (count 1) or of a video (its last `count` frames).

    They cover `size` = (height, width) and are cropped at the centre. Raises DataError for a video that is too short.
    """
    path = Path(path)
    if video_reader.is_video(path):
        total = video_reader.probe(path).frames
        if total < count:
            raise DataError(f"{path} has {total} frames, num_conditional_frames={count} needs at least as many")
        frames = video_reader.read_frames(path, range(total - count, total))
    elif count == 1:
        frames = video_reader.read_image(path)[None]
    else:
        raise DataError(f"{path} is an image: num_conditional_frames must be 1, not {count}; give a video for more")
    fitted = transforms.fit_frames(torch.from_numpy(frames).permute(0, 3, 1, 2), size, "crop").frames
    return fitted.permute(1, 0, 2, 3)[None]


def to_frames(video: Tensor) -> np.ndarray:
    """Return uint8 frames `(T, H, W, 3)` of a video `(3, T, H, W)` in [-1, 1]."""
    return ((video.clamp(-1, 1) + 1) * 127.5 + 0.5).floor().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


@torch.no_grad()
def generate(
    model: WorldModel,
    clip: Clip,
    text: Tensor,
    negative_text: Tensor | None = None,
    settings: SamplerSettings | None = None,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
) -> np.ndarray:
    """Return the frames uint8 `(T, H, W, 3)` of `clip`; the first ones are the given frames as the tokenizer keeps them.

    text, negative_text: embeddings `(1, 512, C)`; without negative text guidance is against zeros. Only the given frames
    are encoded. Raises ValueError for a length or size that the tokenizer cannot make, naming the nearest.
    """
    tokenizer, net = model.tokenizer, model.net
    if not model.takes_frames:
        raise ConfigError(
            "this network takes no given frames (it has no condition-mask channel): it is a text-to-video model"
        )
    device = net.device
    frames = tokenizer.get_latent_num_frames(clip.num_frames)
    given_frames = tokenizer.get_latent_num_frames(clip.num_conditional_frames)
    if given_frames >= frames:
        raise ConfigError(f"{clip.num_conditional_frames} given frames leave nothing of {clip.num_frames} to generate")
    scale = tokenizer.spatial_compression_factor
    step = scale * net.config.patch_spatial
    if any(side % step for side in clip.size):
        near = tuple(max(step, round(side / step) * step) for side in clip.size)
        raise ConfigError(
            f"size {clip.size[0]} x {clip.size[1]} (height x width) must be a multiple of {step}; nearest: {near[0]} x {near[1]}"
        )
    shape = (1, net.config.latent_channels, frames, clip.size[0] // scale, clip.size[1] // scale)
    latent = torch.zeros(shape, device=device)
    latent[:, :, :given_frames] = model.encode(
        read_condition(clip.input_path, clip.size, clip.num_conditional_frames).to(device)
    )
    condition = Conditioning(
        text=text.to(device),
        negative_text=None if negative_text is None else negative_text.to(device),
        fps=torch.tensor([clip.fps]),
        padding_mask=torch.zeros(1, 1, *clip.size, device=device),
        frames=GivenFrames(latent, first_frames_mask([given_frames], frames).to(device)),
    )
    noise = seeded_noise(shape, clip.seed).to(device)
    assert condition.frames is not None
    condition.frames.augment_noise = noise  # Predict1 adds this, times its tiny augment sigma, to the given frames
    sampled = model.sample(noise, condition, settings, on_step=on_step)
    sampled[:, :, :given_frames] = latent[
        :, :, :given_frames
    ]  # Predict1's solver leaves a trace of its own noise there
    return to_frames(model.decode(sampled)[0])

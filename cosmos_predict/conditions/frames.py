"""Given frames: which latent frames are known, and how they enter the network.

Two published strategies with one interface:

- `FrameReplace` (Predict2, 2.5): given frames enter clean, with their own tiny noise level; their prediction is overwritten.
- `FrameAugment` (Predict1, Cosmos-1.0): given frames enter with a little noise, rescaled so that the network sees them
  at their own noise level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from cosmos_predict.config.lazy import configurable
from cosmos_predict.errors import ConfigError

LOCATIONS = ("no_cam", "ref_cam", "any_cam", "first_random_n")


def first_frames_mask(counts: Tensor | Sequence[int], frames: int, views: int = 1) -> Tensor:
    """Return 1 on the first `counts[b]` latent frames of every view: `(B, 1, V*T, 1, 1)` float32, view-major.

    `frames` is T, one view's latent frames. A clip of one latent frame (an image) has no given frames.
    """
    given_counts = torch.as_tensor(counts)
    given = torch.arange(frames, device=given_counts.device) < given_counts[:, None]
    if frames == 1 and views == 1:
        given = torch.zeros_like(given)
    return given.float().repeat(1, views)[:, None, :, None, None]


def view_mask(
    batch: int,
    frames: int,
    views: int,
    locations: Sequence[str],
    *,
    ref_view: int = -1,
    any_view: int | None = None,
    num_frames_per_view: int = 0,
) -> Tensor:
    """Return the union of the masks of `locations`: `(B, 1, V*T, 1, 1)` float32, 1 = given.

    ref_cam: all frames of the view at position `ref_view`; any_cam: all frames of `any_view`; first_random_n: the first
    `num_frames_per_view` frames of every view; no_cam: nothing (Predict2 multi-view's condition locations).
    """
    mask = torch.zeros(batch, views, frames)
    for location in locations:
        if location not in LOCATIONS:
            raise ConfigError(f"condition location {location!r} is not one of {', '.join(LOCATIONS)}")
        if location == "first_random_n":
            mask[:, :, :num_frames_per_view] = 1
        elif location in ("ref_cam", "any_cam"):
            view, last = ref_view if location == "ref_cam" else any_view, views - 1
            if view is None or not 0 <= view <= last:
                raise ConfigError(f"condition location {location!r} needs a view position in 0..{last}, got {view}")
            mask[:, view] = 1
    return mask.flatten(1)[:, None, :, None, None]


@dataclasses.dataclass
class GivenFrames:
    """The frames a clip is continued from.

    latent: `(B, C, T, H, W)`, scaled by sigma_data; only masked frames matter. mask: `(B, 1, T, 1, 1)`, 1 = given.
    keep: `(B,)`, 0 = this sample's conditioning was dropped. augment_sigma `(B,)` and augment_noise like latent:
    the corruption of `FrameAugment`.
    """

    latent: Tensor
    mask: Tensor
    keep: Tensor | None = None
    augment_sigma: Tensor | None = None
    augment_noise: Tensor | None = None
    release: bool = False

    def kept(self, like: Tensor) -> Tensor:
        """Return `keep` as `(B, 1, 1, 1, 1)`, ones where nothing was dropped."""
        keep = torch.ones(like.shape[0], device=like.device) if self.keep is None else self.keep
        return keep.to(like).reshape(-1, 1, 1, 1, 1)


@dataclasses.dataclass
class Composed:
    """What the network sees: its input, c_noise, the mask channel, the state that c_skip multiplies, the overwritten region."""

    network_input: Tensor
    c_noise: Tensor
    mask_channel: Tensor
    state: Tensor
    region: Tensor


@configurable
@dataclasses.dataclass(frozen=True)
class FrameReplace:
    """Given frames enter unscaled and noise-free at noise level `sigma_conditional` (Predict2 `frame_replace`).

    None: they keep the clip's noise level, and only the mask tells them apart (Predict2.5's base models).
    """

    sigma_conditional: float | None = 1e-4

    def compose(self, x: Tensor, sigma: Tensor, frames: GivenFrames, parameterization) -> Composed:
        """x `(B, C, T, H, W)` noised, sigma `(B, 1)` or `(B, T)` -> what the network sees, c_noise per frame `(B, T)`."""
        scaling = parameterization.scaling(sigma)
        mask = frames.mask.to(x)
        value = frames.latent.to(x) * frames.kept(x)
        c_in = scaling.c_in.reshape(x.shape[0], 1, -1, 1, 1)
        given = scaling.c_noise
        if self.sigma_conditional is not None:
            given = parameterization.scaling(torch.full_like(sigma, self.sigma_conditional)).c_noise
        per_frame = mask[:, 0, :, 0, 0]
        c_noise = per_frame * given + (1 - per_frame) * scaling.c_noise
        return Composed(value * mask + c_in * x * (1 - mask), c_noise, mask, x, mask)


@configurable
@dataclasses.dataclass(frozen=True)
class FrameAugment:
    """Given frames enter as `(x0 + sigma_a n) c_in(sigma_a) / c_in(sigma)` before the network's own c_in (Predict1).

    on_drop: what a dropped sample's region holds, `zero` or `noise` (the noised state). normalize_latent: standardise the
    given latent per (b, c, t) first. condition_on_augment_sigma: tell the network sigma_a. The mask channel is zero where
    conditioning was dropped.
    """

    on_drop: str = "zero"
    normalize_latent: bool = False
    condition_on_augment_sigma: bool = False

    def __post_init__(self) -> None:
        if self.on_drop not in ("zero", "noise"):
            raise ConfigError(f"on_condition_drop={self.on_drop!r} is not 'zero' or 'noise'")

    def compose(self, x: Tensor, sigma: Tensor, frames: GivenFrames, parameterization) -> Composed:
        """x `(B, C, T, H, W)` noised, sigma `(B, 1)` -> what the network sees, c_noise `(B, 1)`."""
        scaling = parameterization.scaling(sigma)
        keep, mask = frames.kept(x), frames.mask.to(x)
        latent = frames.latent.to(x)
        if self.normalize_latent:
            latent = (latent - latent.mean((-2, -1), keepdim=True)) / latent.std((-2, -1), keepdim=True)
        augment_sigma = torch.zeros(x.shape[0]) if frames.augment_sigma is None else frames.augment_sigma
        augment_sigma = augment_sigma.to(x).reshape(-1, 1)
        noisy = latent if frames.augment_noise is None else latent + _wide(augment_sigma) * frames.augment_noise.to(x)
        given = noisy * _wide(parameterization.scaling(augment_sigma).c_in / scaling.c_in)
        given = keep * given + (1 - keep) * (x if self.on_drop == "noise" else torch.zeros_like(x))
        region = mask * _wide((augment_sigma < sigma).to(x)) if frames.release else mask
        state = region * given + (1 - region) * x
        return Composed(_wide(scaling.c_in) * state, scaling.c_noise, mask * keep, state, region)

    def signals(self, frames: GivenFrames, parameterization) -> dict[str, Tensor]:
        """Return the network signals of this strategy: `augment_sigma` `(B,)` as c_noise, zero where nothing is given."""
        if not self.condition_on_augment_sigma or frames.augment_sigma is None:
            return {}
        given = (frames.mask.flatten(1).amax(1) > 0).to(frames.augment_sigma)
        return {"augment_sigma": parameterization.scaling(frames.augment_sigma).c_noise * given}


def _wide(value: Tensor) -> Tensor:
    """`(B, 1)` -> `(B, 1, 1, 1, 1)`."""
    return value.reshape(value.shape[0], 1, 1, 1, 1)

"""The configuration of a DiT: every option that a published Cosmos model uses. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from cosmos_predict.config.lazy import configurable
from cosmos_predict.errors import ConfigError

EXTRA_POSITION = ("none", "learnable", "sincos")


@configurable
@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Shape and switches of a Cosmos DiT. Field names are the published constructor arguments where one exists.

    `input_channels` names the channels of the patch embedding in order, for example
    `(("latent", 16), ("cond_mask", 1), ("padding", 1))`; the published orders are in `cosmos_predict.models.published`.
    `controls` are objects of `cosmos_predict.conditions`, each feeding one or more injection sites.
    The rotary ratios stretch the base frequency per axis (NTK-style); `rope_enable_fps_modulation` measures time in
    1/24 s instead of latent frames. `extra_pos_emb` is Predict1's position embedding that every block adds again.
    `sparse_attention` has a letter per block (`networks.sparse_attention`); "": every block attends to all tokens.
    Sizes `max_*` are in latent units before patching and bound the grid.
    """

    model_channels: int
    num_blocks: int
    num_heads: int
    input_channels: tuple[tuple[str, int], ...] = (("latent", 16), ("cond_mask", 1), ("padding", 1))
    out_channels: int = 16
    mlp_ratio: float = 4.0
    adaln_lora_dim: int = 256
    crossattn_emb_channels: int = 1024
    crossattn_proj_in_channels: int | None = None
    patch_spatial: int = 2
    patch_temporal: int = 1
    max_img_h: int = 240
    max_img_w: int = 240
    max_frames: int = 128
    base_fps: float = 24.0
    rope_h_extrapolation_ratio: float = 1.0
    rope_w_extrapolation_ratio: float = 1.0
    rope_t_extrapolation_ratio: float = 1.0
    rope_enable_fps_modulation: bool = False
    extra_pos_emb: str = "none"
    extra_h_extrapolation_ratio: float = 1.0
    extra_w_extrapolation_ratio: float = 1.0
    extra_t_extrapolation_ratio: float = 1.0
    timestep_scale: float = 1.0
    initialization: str = "trunc_normal"
    attention_backend: str = "sdpa"
    sparse_attention: str = ""
    controls: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        channels = tuple((str(name), int(size)) for name, size in self.input_channels)
        object.__setattr__(self, "input_channels", channels)
        object.__setattr__(self, "controls", tuple(self.controls or ()))
        if self.num_heads < 1 or self.model_channels % self.num_heads:
            what = f"model_channels={self.model_channels} is not divisible by num_heads={self.num_heads}"
            raise ConfigError(f"{what}; head counts that fit: {_divisors(self.model_channels)}")
        # Rows and columns get head_dim // 6 * 2 numbers, time the rest: 0 or at least 4 of each.
        if self.head_dim % 2 or self.head_dim == 2 or 6 <= self.head_dim < 12:
            raise ConfigError(
                f"the head size {self.head_dim} (model_channels / num_heads) must be even and at least 12, so that the "
                "rotary embedding has frequencies for every axis"
            )
        names = [name for name, _ in channels]
        if not names or names[0] != "latent" or len(set(names)) != len(names):
            raise ConfigError(f"input_channels must start with 'latent' and name every channel once, got {names}")
        for control in self.controls:
            if lacking := set(control.channels) - set(names):
                what = f"{type(control).__name__} feeds the input channel {min(lacking)!r}"
                raise ConfigError(f"{what}, which is not among input_channels {names}: append it, or drop the control")
        if self.extra_pos_emb not in EXTRA_POSITION:
            raise ConfigError(f"extra_pos_emb={self.extra_pos_emb!r} is not one of {', '.join(EXTRA_POSITION)}")
        if self.initialization not in ("trunc_normal", "xavier"):
            raise ConfigError(f"initialization={self.initialization!r} is not 'trunc_normal' or 'xavier'")

    @property
    def head_dim(self) -> int:
        return self.model_channels // self.num_heads

    @property
    def in_channels(self) -> int:
        """Number of channels that enter the patch embedding."""
        return sum(size for _, size in self.input_channels)

    @property
    def latent_channels(self) -> int:
        return self.input_channels[0][1]

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a token."""
        return (self.patch_temporal, self.patch_spatial, self.patch_spatial)

    @property
    def patch_volume(self) -> int:
        return self.patch_temporal * self.patch_spatial**2

    def token_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the (T, h, w) tokens of a latent of this size."""
        return (frames // self.patch_temporal, height // self.patch_spatial, width // self.patch_spatial)

    @property
    def largest_grid(self) -> tuple[int, int, int]:
        """The (T, h, w) tokens of one view for which there are positions."""
        return self.token_grid(self.max_frames, self.max_img_h, self.max_img_w)

    @property
    def mlp_channels(self) -> int:
        return int(self.model_channels * self.mlp_ratio)

    @property
    def projects_text(self) -> bool:
        """Whether text enters through `crossattn_proj` (the Reason1 encoder of Predict2.5)."""
        return self.crossattn_proj_in_channels not in (None, self.crossattn_emb_channels)

    def has_channel(self, name: str) -> bool:
        return any(name == channel for channel, _ in self.input_channels)

    def replace(self, **changes: Any) -> DiTConfig:
        """Return a copy with `changes`."""
        return dataclasses.replace(self, **changes)


def _divisors(number: int, most: int = 12) -> Iterable[int]:
    """Return the head counts that leave an even head size of at least 12."""
    return [n for n in range(1, min(number // 12, 256) + 1) if number % (2 * n) == 0][:most]

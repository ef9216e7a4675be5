"""Configuration of a world model, in the published shape (`model.config.pipe_config...`). Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import Any

from cosmos_predict.config.lazy import configurable
from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.config import DiTConfig

FAMILIES = ("predict1", "predict2", "predict2.5")


@configurable
@dataclasses.dataclass
class EMAConfig:
    """Power-function EMA: `rate` is the relative width s of its profile, `iteration_shift` is added to the iteration."""

    enabled: bool = True
    rate: float = 0.1
    iteration_shift: int = 0


@configurable
@dataclasses.dataclass
class ModelManagerConfig:
    """Where weights come from. dit_path: a published file, an export, or a run folder; empty trains from scratch."""

    dit_path: str = ""
    load_ema: bool = False
    text_encoder_path: str = "google-t5/t5-11b"


@configurable
@dataclasses.dataclass
class TokenizerConfig:
    """Which video tokenizer. name: `dct`, `wan2.1`, `cosmos_cv8x8x8`, ...; path: its weights; options: constructor arguments.

    dtype: of its weights and computation, `float32` (None) or `bfloat16` (what the published pipelines run it in).
    """

    name: str = "wan2.1"
    path: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str | None = None


@configurable
@dataclasses.dataclass
class PipeConfig:
    """What training and sampling share: network, tokenizer, parameterization, conditioning.

    family: `predict1` (EDM, sigma_data 0.5), `predict2` or `predict2.5` (rectified flow, sigma_data 1).
    min/max_num_conditional_frames: given latent frames of a training clip, drawn uniformly, per view.
    conditional_frames_probs: probabilities of 0, 1, 2, ... given latent frames, in place of that range (Predict2.5: .5, .25,
    .25). sigma_conditional: noise level of given frames (Predict2); None, Predict2.5's base models: the clip's own.
    text_dropout: probability of zeroing a sample's text in training; video_condition_dropout the same for given frames.
    views: number of views along time. state_t: latent frames of one view, derived from the dataset (None) or checked.
    augment_sigma_*: Predict1's noise on given frames, exp(N(mean, std)) * multiplier.
    sampler: fields of `SamplerSettings` that replace the family's (guidance, sigma_min, sigma_max, ...).
    """

    net: DiTConfig | None = None
    family: str = "predict2"
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    text_encoder: str = "t5"
    state_t: int | None = None
    views: int = 1
    sigma_data: float | None = None
    sigma_conditional: float | None = 1e-4
    min_num_conditional_frames: int = 1
    max_num_conditional_frames: int = 2
    conditional_frames_probs: tuple[float, ...] | None = None
    text_dropout: float = 0.2
    video_condition_dropout: float = 0.0
    augment_sigma_mean: float = -3.0
    augment_sigma_std: float = 2.0
    augment_sigma_multiplier: float = 1.0
    condition_on_augment_sigma: bool = False
    on_condition_drop: str = "zero"
    normalize_condition_latent: bool = False
    sampler: dict[str, Any] = dataclasses.field(default_factory=dict)
    ema: EMAConfig = dataclasses.field(default_factory=EMAConfig)

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConfigError(f"model family {self.family!r} is not one of {', '.join(FAMILIES)}")
        low, high = self.min_num_conditional_frames, self.max_num_conditional_frames
        if not 0 <= low <= high:
            what = f"must lie between 0 and max_num_conditional_frames={high}"
            raise ConfigError(f"min_num_conditional_frames={low} {what}")
        probs = self.conditional_frames_probs
        if probs is not None and (not probs or min(probs) < 0 or abs(sum(probs) - 1) > 1e-6):
            raise ConfigError(f"conditional_frames_probs={list(probs)} are no probabilities that add up to 1")
        self.conditional_frames_probs = None if probs is None else tuple(probs)
        for name in ("text_dropout", "video_condition_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not a probability")


@configurable
@dataclasses.dataclass
class ModelConfig:
    """What only training needs, beside `pipe_config`.

    train_architecture: `base` (all weights) or `lora` (adapters of `lora_rank` and scale lora_alpha / lora_rank beside the
    layers that `lora_target_modules` names, whole or by their ends). init_lora_weights: adapters start without effect; always
    on, as published. high_sigma_ratio: share of video samples whose noise level is drawn
    log-uniformly from [200, 1e5] (rectified flow). adjust_video_noise: multiply the noise level of videos by sqrt(T).
    loss_reduce: `mean` or `sum`. loss_add_logvar: weigh the loss by a learned log-variance (Predict1). p_mean, p_std: the
    log-normal of the noise level. compute_loss_for_condition_region: also score given frames (Predict1 option).
    latent_dtype: round the tokenizer's latents to `bfloat16` or `float16`, for the same loss as with a latent cache of it.
    """

    pipe_config: PipeConfig = dataclasses.field(default_factory=PipeConfig)
    model_manager_config: ModelManagerConfig = dataclasses.field(default_factory=ModelManagerConfig)
    train_architecture: str = "base"
    lora_rank: int = 16
    lora_alpha: float = 16
    lora_target_modules: str = "q_proj,k_proj,v_proj,output_proj,mlp.layer1,mlp.layer2"
    init_lora_weights: bool = True
    p_mean: float = 0.0
    p_std: float = 1.0
    high_sigma_ratio: float = 0.0
    adjust_video_noise: bool = True
    loss_scale: float = 10.0
    loss_reduce: str = "mean"
    loss_add_logvar: bool = False
    compute_loss_for_condition_region: bool = False
    latent_dtype: str | None = None
    fsdp_shard_size: int = 1

    def __post_init__(self) -> None:
        if self.train_architecture not in ("base", "lora"):
            raise ConfigError(f"train_architecture={self.train_architecture!r} is not 'base' or 'lora'")
        if not self.init_lora_weights:
            raise ConfigError("init_lora_weights=False is not available: a new adapter starts without effect (B = 0)")
        if self.latent_dtype not in (None, "float32", "bfloat16", "float16"):
            raise ConfigError(f"latent_dtype={self.latent_dtype!r} is not null, 'float32', 'bfloat16' or 'float16'")
        if self.loss_reduce not in ("mean", "sum"):
            raise ConfigError(f"loss_reduce={self.loss_reduce!r} is not 'mean' or 'sum'")

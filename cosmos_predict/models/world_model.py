"""A world model: network, parameterization, conditions and tokenizer, with the training loss and the way to a sample.

Batch -> latent and `Conditioning` (`prepare`) -> `loss` for given draws; noise -> `denoise` behind `sample` -> latent ->
`decode`. Training, sample callbacks and pipelines all go through these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_predict.conditions.frames import FrameAugment, FrameReplace, GivenFrames, first_frames_mask
from cosmos_predict.diffusion.loss import LogVariance, weighted_mse
from cosmos_predict.diffusion.noise import LogNormal, ShiftedLogitNormal, draw_uniforms
from cosmos_predict.diffusion.parameterization import EDM, RectifiedFlow, add_noise, expand_like
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.models.conditioning import Conditioning, integer_draws, keep_draws, weighted_draws
from cosmos_predict.models.config import ModelConfig
from cosmos_predict.models.sampling import SamplerSettings, sample
from cosmos_predict.networks.dit import DiT
from cosmos_predict.randomness import torch_generator


@dataclasses.dataclass
class LossOutput:
    """One evaluation of the training loss. Only `loss` carries a gradient.

    loss, edm_loss, mse_loss: `()`, edm_loss weighted and mse_loss unweighted means over all elements; edm_loss_per_frame
    `(B, T)`; sigma and weight `(B, 1)`; logvar `(B, 1)` or None; xt, state (what c_in multiplies), x0_pred `(B, C, T, H, W)`.
    """

    loss: Tensor
    edm_loss: Tensor
    edm_loss_per_frame: Tensor
    mse_loss: Tensor
    sigma: Tensor
    weight: Tensor
    logvar: Tensor | None
    xt: Tensor
    denoised: Denoised

    @property
    def x0_pred(self) -> Tensor:
        return self.denoised.x0


@dataclasses.dataclass
class Denoised:
    """The clean latent that one evaluation predicts, and what the network was given to predict it.

    x0 `(B, C, T, H, W)`; state: the composed noisy latent; mask_channel: the condition-mask channel or None.
    """

    x0: Tensor
    state: Tensor
    mask_channel: Tensor | None


class WorldModel(nn.Module):
    """Network, parameterization, conditions and tokenizer of one family, as `config` says.

    `state_dict` has the published keys: `net.*`, and `logvar.*` where the log-variance head is on. The tokenizer is not
    part of it. `net` may be given (any device, meta included); `tokenizer` is needed for pixels only.
    """

    def __init__(self, config: ModelConfig, net: DiT, tokenizer: Any = None) -> None:
        super().__init__()
        pipe = config.pipe_config
        self.config = config
        self.net = net
        edm = pipe.family == "predict1"
        sigma_data = pipe.sigma_data or (0.5 if edm else 1.0)
        self.parameterization = EDM(sigma_data) if edm else RectifiedFlow(sigma_data)
        self.frame_strategy: FrameReplace | FrameAugment = (
            FrameAugment(pipe.on_condition_drop, pipe.normalize_condition_latent, pipe.condition_on_augment_sigma)
            if edm
            else FrameReplace(pipe.sigma_conditional)
        )
        self.logvar = LogVariance() if config.loss_add_logvar else None
        self.tokenizer_holder = (tokenizer,)  # a tuple hides it from nn.Module: its weights are not the model's

    @property
    def tokenizer(self) -> Any:
        if self.tokenizer_holder[0] is None:
            what = "this world model was built without a tokenizer"
            raise ConfigError(f"{what}: give one, or use batches with the key 'latent'")
        return self.tokenizer_holder[0]

    @property
    def takes_frames(self) -> bool:
        """Whether the network has a condition-mask channel."""
        return self.net.config.has_channel("cond_mask")

    # ---- pixels and latents ------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, video: Tensor, views: int = 1) -> Tensor:
        """Return latents `(B, C, V*t, h, w)` float32, scaled by sigma_data, of videos `(B, 3, V*T, H, W)`.

        Videos are uint8, or float in [-1, 1]. Each view is encoded on its own. `latent_dtype` of the config rounds what the
        tokenizer returns, as a latent cache of that dtype does.
        """
        if video.dtype != torch.uint8 and not (reach := float(video.abs().amax())) <= 1.001:
            raise DataError(f"a float video must lie in [-1, 1], this one reaches {reach:.3f}; pass uint8 or scale it")
        latent, dtype = _per_view(self.tokenizer.encode, video, views), self.config.latent_dtype
        return (latent.to(getattr(torch, dtype)) if dtype else latent).float() * self.parameterization.sigma_data

    @torch.no_grad()
    def decode(self, latent: Tensor, views: int = 1) -> Tensor:
        """Return videos `(B, 3, V*T, H, W)` in about [-1, 1] of latents `(B, C, V*t, h, w)`."""
        return _per_view(self.tokenizer.decode, latent / self.parameterization.sigma_data, views)

    def prepare(self, batch: Mapping[str, Any]) -> tuple[Tensor, Conditioning]:
        """Return the clean latent `(B, C, T, h, w)` and the conditioning (all conditions kept, no given frames) of a batch.

        Reads `video` or `latent`, `t5_text_embeddings`, `fps`, `padding_mask`, and what the network's controls name.
        Raises DataError naming a missing key.
        """
        pipe = self.config.pipe_config
        device = self.net.device
        if "latent" in batch:
            x0 = _send(batch["latent"], device).float() * self.parameterization.sigma_data
        elif "video" in batch:
            x0 = self.encode(_send(batch["video"], device), pipe.views)
        else:
            raise DataError(f"a batch needs 'video' or 'latent'; it has {', '.join(sorted(batch))}")
        if "t5_text_embeddings" not in batch:
            raise DataError(f"a batch needs 't5_text_embeddings'; it has {', '.join(sorted(batch))}")
        names = [name for control in self.net.config.controls for name in control.signals]
        names += [name for name, _ in self.net.config.input_channels if name not in ("latent", "cond_mask", "padding")]
        signals = {name: _send(batch[name], device) for name in names if batch.get(name) is not None}
        if "frame_repeat" in signals:
            signals["frame_repeat"] = signals["frame_repeat"] / 10  # the batch counts frames, the network reads tens
        padding = batch.get("padding_mask")
        return x0, Conditioning(
            text=_send(batch["t5_text_embeddings"], device),
            fps=batch.get("fps"),
            padding_mask=None if padding is None else _send(padding, device),
            data_type="image" if x0.shape[2] == pipe.views else "video",
            views=pipe.views,
            signals=signals,
        )

    # ---- denoising ---------------------------------------------------------------------------------------------

    def denoise(self, x: Tensor, sigma: Tensor | float, condition: Conditioning) -> Tensor:
        """Return the predicted clean latent `(B, C, T, H, W)` of x = x0 + sigma noise; sigma a number, `(B,)`, `(B, 1)`."""
        return self.denoise_details(x, sigma, condition).x0

    def denoise_details(
        self,
        x: Tensor,
        sigma: Tensor | float,
        condition: Conditioning,
        *,
        keep_given: bool = True,
        timestep_bins: int = 0,
    ) -> Denoised:
        """As `denoise`, with what the network saw. keep_given: put the given frames back into the prediction.

        timestep_bins: as in `SamplerSettings`; the level of given frames of their own is told exactly.
        """
        level = torch.as_tensor(sigma, dtype=torch.float32, device=x.device)
        level = (level.expand(x.shape[0]) if level.ndim == 0 else level).reshape(x.shape[0], -1)
        scaling = self.parameterization.scaling(level)
        frames = condition.frames if condition.data_type == "video" else None
        if frames is None:
            state, network_input, c_noise, mask = x, expand_like(scaling.c_in, x) * x, scaling.c_noise, None
        else:
            composed = self.frame_strategy.compose(x, level, frames, self.parameterization)
            state, network_input, c_noise = composed.state, composed.network_input, composed.c_noise
            mask = composed.mask_channel.expand(x.shape[0], 1, *x.shape[2:])
        if timestep_bins:  # the little more undoes the rounding of a float32 that stands for a whole timestep
            cut = (scaling.c_noise * timestep_bins + 1e-4).floor() / timestep_bins
            c_noise = torch.where(c_noise == scaling.c_noise, cut, c_noise)
        signals = dict(condition.signals)
        if frames is not None and isinstance(self.frame_strategy, FrameAugment):
            signals.update(self.frame_strategy.signals(frames, self.parameterization))
        output = self.net(
            network_input,
            c_noise,
            condition.text,
            fps=condition.fps,
            padding_mask=condition.padding_mask,
            condition_mask=mask if self.takes_frames else None,
            data_type=condition.data_type,
            views=condition.views,
            **signals,
        )
        x0 = self.parameterization.x0(state, output, level)
        if frames is not None and keep_given:
            x0 = composed.region * frames.latent.to(x0) + (1 - composed.region) * x0
        return Denoised(x0, state, mask)

    # ---- training ----------------------------------------------------------------------------------------------

    def training_loss(self, batch: Mapping[str, Any], seed: int = 0) -> LossOutput:
        """Return the loss of a batch; every draw is a function of (`seed`, `batch["sample_number"]`, its purpose)."""
        if "sample_number" not in batch:
            raise DataError(
                "a training batch needs 'sample_number' (B,): the loader gives it, and every draw depends on it"
            )
        numbers = [int(n) for n in batch["sample_number"]]
        x0, condition = self.prepare(batch)
        sigma = self.draw_sigma(seed, numbers, x0, condition)
        noise = self._normal(seed, numbers, x0, "noise")
        given = batch.get("num_conditional_frames")
        return self.loss(x0, sigma, noise, self.draw_conditions(seed, numbers, x0, condition, given))

    def draw_sigma(self, seed: int, numbers: Sequence[int], x0: Tensor, condition: Conditioning) -> Tensor:
        """Return training noise levels `(B, 1)` for sample numbers."""
        config = self.config
        video = condition.data_type == "video"
        if config.pipe_config.family == "predict2.5":
            distribution: LogNormal | ShiftedLogitNormal = ShiftedLogitNormal(high_sigma_ratio=config.high_sigma_ratio)
        else:
            multiplier = (x0.shape[2] // condition.views) ** 0.5 if video and config.adjust_video_noise else 1.0
            ratio = config.high_sigma_ratio if video else 0.0
            distribution = LogNormal(config.p_mean, config.p_std, multiplier, ratio)
        return _send(distribution.sample(*draw_uniforms(seed, numbers)), x0.device)[:, None]

    def draw_conditions(
        self, seed: int, numbers: Sequence[int], x0: Tensor, condition: Conditioning, counts: Tensor | None = None
    ) -> Conditioning:
        """Return `condition` with text dropout applied and, for video networks, given frames drawn.

        counts: `(B,)` given latent frames per view; drawn uniformly from the configured range when None.
        """
        pipe = self.config.pipe_config
        keep = _send(keep_draws(seed, numbers, pipe.text_dropout, "text_dropout"), x0.device)
        condition = dataclasses.replace(condition, text=condition.text * keep[:, None, None].to(condition.text))
        if not self.takes_frames or condition.data_type == "image":
            return condition
        frames = x0.shape[2] // condition.views
        if counts is None:
            low, high = pipe.min_num_conditional_frames, min(pipe.max_num_conditional_frames, frames - 1)
            if pipe.conditional_frames_probs is None:
                counts = torch.tensor(integer_draws(seed, numbers, min(low, high), high, "num_conditional_frames"))
            else:
                drawn = weighted_draws(seed, numbers, pipe.conditional_frames_probs, "num_conditional_frames")
                counts = torch.tensor(drawn).clamp(max=frames - 1)
        given = GivenFrames(
            latent=x0,
            mask=_send(first_frames_mask(counts, frames, condition.views), x0.device),
            keep=_send(keep_draws(seed, numbers, pipe.video_condition_dropout, "video_condition_dropout"), x0.device),
        )
        if isinstance(self.frame_strategy, FrameAugment):
            levels = LogNormal(pipe.augment_sigma_mean, pipe.augment_sigma_std, pipe.augment_sigma_multiplier)
            uniforms = draw_uniforms(seed, numbers, "augment_sigma", count=1)[0]
            given.augment_sigma = _send(levels.sample(uniforms), x0.device)
            given.augment_noise = self._normal(seed, numbers, x0, "augment_noise")
        return dataclasses.replace(condition, frames=given)

    def loss(self, x0: Tensor, sigma: Tensor, noise: Tensor, condition: Conditioning) -> LossOutput:
        """Return the loss for given draws: x0 and noise `(B, C, T, H, W)`, sigma `(B,)` or `(B, 1)`."""
        config = self.config
        sigma = sigma.reshape(x0.shape[0], -1)
        xt = add_noise(x0, noise, sigma)
        denoised = self.denoise_details(xt, sigma, condition, keep_given=not config.compute_loss_for_condition_region)
        weight = self.parameterization.loss_weight(sigma)
        logvar = None if self.logvar is None else self.logvar(self.parameterization.scaling(sigma).c_noise)
        reduce = config.loss_reduce
        if reduce == "sum" and config.pipe_config.family != "predict1":
            reduce = "sum_channels"
        terms = weighted_mse(x0, denoised.x0, weight, logvar=logvar, reduce=reduce, scale=config.loss_scale)  # type: ignore[arg-type]
        return LossOutput(*terms, sigma=sigma, weight=weight, logvar=logvar, xt=xt, denoised=denoised)

    @staticmethod
    def _normal(seed: int, numbers: Sequence[int], like: Tensor, purpose: str) -> Tensor:
        """Return standard normal noise like `like` (B, ...), each sample's a function of (seed, number, purpose)."""
        noise = [torch.randn(like.shape[1:], generator=torch_generator(seed, n, purpose)) for n in numbers]
        return _send(torch.stack(noise), like.device)

    # ---- sampling ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        condition: Conditioning,
        settings: SamplerSettings | None = None,
        *,
        on_step: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Return a clean latent like `noise` (standard normal `(B, C, T, H, W)` float32), scaled by sigma_data.

        on_step(i, x, x0) is called after every step. `cosmos_predict.models.sampling` holds the settings and the solvers.
        """
        settings = settings or SamplerSettings.for_pipe(self.config.pipe_config)
        return sample(self, noise, condition, settings, on_step)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor on `device`; pinned, so that the copy does not wait for the work that is queued there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=tensor.is_pinned())


def _per_view(function: Callable[[Tensor], Tensor], video: Tensor, views: int) -> Tensor:
    """Apply `function` to every view of `(B, C, V*T, H, W)` on its own (views folded into the batch)."""
    if views == 1:
        return function(video)
    if video.shape[2] % views:
        raise ConfigError(f"{video.shape[2]} frames do not divide into {views} views")
    out = function(video.unflatten(2, (views, -1)).transpose(1, 2).flatten(0, 1))
    return out.unflatten(0, (len(video), views)).transpose(1, 2).flatten(2, 3)

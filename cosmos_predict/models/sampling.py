"""From noise to a clean latent: sampler settings per family, guidance branches, and the solvers over one `denoise`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cosmos_predict.config.lazy import configurable
from cosmos_predict.diffusion import samplers, schedules
from cosmos_predict.diffusion.guidance import Branch, cfg_branches, combine, merge_branches
from cosmos_predict.errors import ConfigError
from cosmos_predict.models.conditioning import Conditioning
from cosmos_predict.models.config import PipeConfig

if TYPE_CHECKING:
    from cosmos_predict.models.world_model import WorldModel

OnStep = Callable[[int, Tensor, Tensor], None]
# Calls its first argument for every branch number below its second one, and returns what came out, in order.
Spread = Callable[[Callable[[int], Tensor], int], list[Tensor]]
# Up to this many tokens both guidance branches share one batch: the matrices of one branch do not fill a GPU yet.
BATCHED_GUIDANCE_TOKENS = 8192
# Predict1's own sampler and that of its forerunner in NeMo, by their published names.
SAMPLERS = {"Euler": {"solver": "euler", "sigma_min": 0.0002}, "RES": {"solver": "2ab", "sigma_min": 0.002}}


@configurable
@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """How to sample. guidance g: x0 = cond + g (cond - uncond), so 0 is none.

    solver: `2ab`, `1euler`, `2mid`, `2heun_edm` (RES, with a last clean evaluation), `euler` (Predict1), `unipc`
    (Predict2.5) or `distilled`. branches replaces `guidance` where given. shift: schedule of `unipc`; None takes Karras
    sigmas there too. timestep_bins: the network is told the flow time cut to a multiple of 1 / timestep_bins (Predict2.5:
    1000, whole timesteps), 0 tells it exactly. augment_sigma: noise on given frames (Predict1). cfg_batch: evaluate guidance
    branches in one batch: `auto` (short sequences), `on`, `off`.
    """

    solver: str = "2ab"
    num_steps: int = 35
    guidance: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    shift: float | None = 5.0
    timestep_bins: int = 0
    augment_sigma: float = 0.001
    cfg_batch: str = "auto"
    branches: tuple[Branch, ...] | None = None

    @classmethod
    def for_family(cls, family: str) -> SamplerSettings:
        """Return the published defaults: Predict1's own Euler, Predict2's 2ab, Predict2.5's UniPC."""
        if family == "predict1":
            return cls(**SAMPLERS["Euler"])
        return cls(solver="unipc", timestep_bins=1000) if family == "predict2.5" else cls()

    @classmethod
    def for_pipe(cls, pipe: PipeConfig, **changes: Any) -> SamplerSettings:
        """Return what a model is sampled with: its family's defaults, then its own (`pipe.sampler`), then `changes`."""
        return dataclasses.replace(cls.for_family(pipe.family), **{**pipe.sampler, **changes})

    def sigmas(self) -> Tensor:
        """Return the noise levels, float64, descending."""
        if self.solver == "distilled":
            return schedules.distilled_sigmas(self.num_steps)
        if self.solver == "unipc" and self.shift is not None:
            return schedules.flow_sigmas(self.num_steps, self.shift)
        bounds = self.sigma_min, self.sigma_max, self.rho
        if self.solver == "unipc":
            return schedules.append_zero(schedules.karras_sigmas(self.num_steps, *bounds))
        if self.solver == "euler":
            return schedules.euler_sigmas(self.num_steps, *bounds)
        return schedules.karras_sigmas(samplers.solver_intervals(self.solver, self.num_steps), *bounds)


def seeded_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Return `RandomState(seed).standard_normal(shape)` in float32: the published noise, the same on every machine."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32))


def guided_denoiser(
    model: WorldModel, condition: Conditioning, settings: SamplerSettings, spread: Spread | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return denoise(x, sigma) -> x0 with guidance inside; branches that cannot differ are evaluated once.

    spread: divides the branches over processes, each of which gets all results.
    """
    if settings.cfg_batch not in ("auto", "on", "off"):
        raise ConfigError(f"cfg_batch={settings.cfg_batch!r} is not 'auto', 'on' or 'off'")
    wanted = list(settings.branches) if settings.branches is not None else cfg_branches(settings.guidance)
    branches = merge_branches(wanted, condition.droppable())
    conditions = [condition.drop(branch.drop) for branch in branches]

    def evaluate(x: Tensor, sigma: Tensor, given: Conditioning) -> Tensor:
        return model.denoise_details(x, sigma, given, timestep_bins=settings.timestep_bins).x0

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        count = len(branches)
        if count > 1 and spread is None and _batched(model, x, settings):
            together = evaluate(x.repeat(count, 1, 1, 1, 1), sigma, Conditioning.stack(conditions))
            return combine(together.chunk(count), branches)
        alone = lambda branch: evaluate(x, sigma, conditions[branch])  # noqa: E731
        return combine(spread(alone, count) if spread and count > 1 else list(map(alone, range(count))), branches)

    return denoise


def _batched(model: WorldModel, x: Tensor, settings: SamplerSettings) -> bool:
    if settings.cfg_batch != "auto":
        return settings.cfg_batch == "on"
    tokens = x.shape[2] * x.shape[3] * x.shape[4] // model.net.config.patch_volume
    return tokens <= BATCHED_GUIDANCE_TOKENS


def sample(
    model: WorldModel,
    noise: Tensor,
    condition: Conditioning,
    settings: SamplerSettings,
    on_step: OnStep | None = None,
    fresh_noise: Sequence[Tensor] | Tensor | None = None,
    spread: Spread | None = None,
) -> Tensor:
    """Return a clean latent like `noise`; see `WorldModel.sample`. Predict1's Euler step starts from the composed state.

    fresh_noise: unit noise of the distilled sampler's later steps, drawn from `RandomState(1)` when None.
    spread: as in `guided_denoiser`.
    """
    if condition.frames is not None:
        sigma_a = torch.full((noise.shape[0],), settings.augment_sigma, device=noise.device)
        frames = dataclasses.replace(condition.frames, augment_sigma=sigma_a, release=True)
        condition = dataclasses.replace(condition, frames=frames)
    denoise = guided_denoiser(model, condition, settings, spread)
    sigmas = settings.sigmas()
    x = noise * samplers.initial_scale(settings.solver, float(sigmas[0]))
    if settings.solver == "euler":
        return samplers.sample_euler(denoise, x, sigmas, project=frame_projection(model, condition), on_step=on_step)
    if settings.solver == "unipc":
        return samplers.sample_unipc(denoise, x, sigmas, on_step=on_step)
    if settings.solver == "distilled":
        if fresh_noise is None:
            fresh_noise = seeded_noise((len(sigmas) - 2, *noise.shape), seed=1).to(noise)
        return samplers.sample_distilled(denoise, x, sigmas, fresh_noise, on_step=on_step)
    return samplers.sample_res(denoise, x, sigmas, solver=settings.solver, on_step=on_step)


def frame_projection(model: WorldModel, condition: Conditioning) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return project(x, sigma) that writes the given frames, at their noise level, into the state; None without any."""
    frames = condition.frames
    if frames is None:
        return None

    def project(x: Tensor, sigma: Tensor) -> Tensor:
        return model.frame_strategy.compose(x, sigma.expand(x.shape[0], 1), frames, model.parameterization).state

    return project

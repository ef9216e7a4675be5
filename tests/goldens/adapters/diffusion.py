"""Cases of schedules, training noise levels and solvers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cosmos_predict.diffusion.noise import LogNormal
from cosmos_predict.diffusion.parameterization import EDM, RectifiedFlow, add_noise
from cosmos_predict.diffusion.samplers import RES_SOLVERS, sample_res, solver_intervals
from cosmos_predict.diffusion.schedules import euler_sigmas, karras_sigmas, sdedit_start
from tests.goldens.run_case import Case, adapter


@adapter("predict1", "sigma_tables")
def sigma_tables(case: Case) -> dict[str, Tensor]:
    config = case.config
    edm = EDM(case.call["sigma_data"])
    outputs = {}
    for n in case.inputs["n"].tolist():
        euler = euler_sigmas(n, config["euler_sigma_min"], config["sigma_max"], config["rho"]).float()
        outputs[f"euler_sigmas_{n}"] = euler
        outputs[f"euler_timesteps_{n}"] = edm.scaling(euler[:-1]).c_noise
        outputs[f"res_sigmas_{n}_f64"] = karras_sigmas(n, config["res_sigma_min"], config["sigma_max"], config["rho"])
    return outputs


@adapter("predict2", "schedule")
def schedule(case: Case) -> dict[str, Tensor]:
    flow = RectifiedFlow(case.config["sigma_data"], case.config["t_scaling_factor"])
    sigma = case.inputs["sigma"]
    outputs = dict(flow.scaling(sigma)._asdict())
    outputs["weight_uniform"] = flow.loss_weight(sigma)
    for name, s in case.call["schedules"].items():
        outputs[name] = karras_sigmas(s["steps"], s["sigma_min"], s["sigma_max"], s["order"])
    return outputs


@adapter("predict2", "sigma_draw")
def sigma_draw(case: Case) -> dict[str, Tensor]:
    low, high = case.config["high_sigma_range"]
    video = LogNormal(multiplier=case.config["state_t"] ** 0.5)
    mixture = LogNormal(
        multiplier=video.multiplier,
        high_sigma_ratio=case.config["high_sigma_ratio"],
        high_sigma_min=low,
        high_sigma_max=high,
    )
    u, mask_u, high_u = (case.inputs[name].reshape(-1, 1) for name in ("u", "mask_u", "high_u"))
    return {
        "video": video.sample(u),
        "video_high_sigma": mixture.sample(u, mask_u, high_u),
        "image": mixture.for_images().sample(u),
    }


@adapter("predict1", "solvers")
def predict1_solvers(case: Case) -> dict[str, Tensor]:
    config, a = case.config, case.inputs["a"]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:  # the case's analytic denoiser
        return a + (x - a) * 0.25 / (0.25 + sigma**2) + 0.1 * torch.sin(x) / (1 + sigma)

    x = case.inputs["x"] * config["initial_scale"]
    return {
        solver: sample_res(denoise, x, _sigmas(case, solver, "rho"), solver=solver, state_dtype=torch.float64)
        for solver in RES_SOLVERS
    }


@adapter("predict2", "solvers")
def predict2_solvers(case: Case) -> dict[str, Tensor]:
    config, noise = case.config, case.inputs["x"]
    denoise = _gaussian_denoiser(config["mean"], config["sd"])
    start = noise * config["sigma_max"]
    outputs = {
        solver: sample_res(denoise, start.double(), _sigmas(case, solver, "order"), solver=solver)
        for solver in RES_SOLVERS
    }
    sigmas = _sigmas(case, "2ab", "order")
    outputs["scheduler_ab2"] = sample_res(denoise, start, sigmas)
    first = sdedit_start(config["num_steps"], config["sdedit_strength"])
    outputs["sdedit_start"] = add_noise(case.inputs["sdedit_latents"], noise, sigmas[first].float())
    outputs["sdedit_final"] = sample_res(denoise, outputs["sdedit_start"], sigmas[first:])
    return outputs


def _gaussian_denoiser(mean: float, sd: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, sigma: (x * sd**2 + mean * sigma**2) / (sd**2 + sigma**2)


def _sigmas(case: Case, solver: str, order: str) -> Tensor:
    config = case.config
    steps = solver_intervals(solver, config["num_steps"])
    return karras_sigmas(steps, config["sigma_min"], config["sigma_max"], config[order])

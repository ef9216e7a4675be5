"""Training losses and sampling runs of the areas predict1 and predict2, through `WorldModel`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cosmos_predict.conditions.frames import GivenFrames, first_frames_mask
from cosmos_predict.diffusion.parameterization import predicted_noise
from cosmos_predict.models.conditioning import Conditioning
from cosmos_predict.models.config import ModelConfig, PipeConfig
from cosmos_predict.models.sampling import SamplerSettings, frame_projection, sample
from cosmos_predict.models.world_model import WorldModel
from tests.goldens.adapters.networks import build_network, network_signals, views_of
from tests.goldens.run_case import Case, adapter


def build_model(case: Case) -> WorldModel:
    """Return the case's world model: its config is the network's own, or holds it under `net`."""
    config = case.config
    options = config.get("video_cond_bool", {})
    drop = "noise" if options.get("cfg_unconditional_type") == "noise_x_condition_region" else "zero"
    pipe = PipeConfig(
        family=case.area,
        sigma_data=config.get("sigma_data"),
        sigma_conditional=config.get("sigma_conditional", 1e-4),
        condition_on_augment_sigma=options.get("condition_on_augment_sigma", False),
        on_condition_drop=drop,
        normalize_condition_latent=options.get("normalize_condition_latent", False),
    )
    model_config = ModelConfig(
        pipe_config=pipe,
        loss_scale=config.get("loss_scale", 1.0),
        loss_reduce=config.get("loss_reduce", "mean"),
        loss_add_logvar=config.get("loss_add_logvar", False),
        compute_loss_for_condition_region=options.get("compute_loss_for_condition_region", False),
    )
    net, rest = build_network(case, config.get("net", config))
    model = WorldModel(model_config, net)
    if model.logvar is not None:
        model.logvar.load_state_dict({key.removeprefix("logvar."): value for key, value in rest.items()})
    return model


def conditioning(case: Case, frames: GivenFrames | None) -> Conditioning:
    arguments = case.config.get("net", case.config)
    fps = case.inputs.get("fps", case.call.get("fps"))
    return Conditioning(
        text=case.inputs["crossattn_emb"],
        negative_text=case.inputs.get("uncrossattn_emb", case.inputs.get("neg_crossattn_emb")),
        fps=fps,
        padding_mask=case.inputs.get("padding_mask"),
        data_type=case.call.get("data_type", "video"),
        views=views_of(case, arguments),
        signals=network_signals(case),
        frames=frames,
    )


def given_frames(case: Case, latent: Tensor) -> GivenFrames | None:
    """Return the case's given frames, None where its network takes none."""
    if case.call.get("network") in ("text2world", "text2image"):
        return None
    batch, views = latent.shape[0], views_of(case, case.config.get("net", case.config))
    names = ("num_conditional_latent_frames", "num_latent_conditional_frames", "num_condition_t")
    counts: Any = next(case.call[name] for name in names if name in case.call)
    counts = [counts] * batch if isinstance(counts, int) else counts
    keep = case.call.get("use_video_condition", case.call.get("video_cond_bool", True))
    return GivenFrames(
        latent=latent,
        mask=first_frames_mask(counts, latent.shape[2] // views, views),
        keep=torch.full((batch,), float(keep)),
        augment_sigma=case.inputs.get("augment_sigma"),
        augment_noise=case.inputs.get("augment_noise"),
    )


@adapter("predict2", "training_loss")
def predict2_loss(case: Case) -> dict[str, Tensor]:
    model = build_model(case)
    inputs = case.inputs
    out = model.loss(
        inputs["x0"], inputs["sigma"], inputs["epsilon"], conditioning(case, given_frames(case, inputs["x0"]))
    )
    out.loss.backward()
    gradients = {f"grad.{name}": p.grad for name, p in model.net.named_parameters() if p.grad is not None}
    return {
        "x0_pred": out.x0_pred,
        "eps_pred": predicted_noise(out.xt, out.x0_pred, out.sigma),
        "weights_per_sigma": out.weight,
        "mse_loss": out.mse_loss,
        "edm_loss": out.edm_loss,
        "edm_loss_per_frame": out.edm_loss_per_frame,
        "loss": out.loss,
        **gradients,
    }


@adapter("predict1", "training_loss")
def predict1_loss(case: Case) -> dict[str, Tensor]:
    case.config.setdefault("loss_add_logvar", False)
    model = build_model(case)
    inputs = case.inputs
    with torch.no_grad():
        out = model.loss(
            inputs["x0"], inputs["sigma"], inputs["epsilon"], conditioning(case, given_frames(case, inputs["x0"]))
        )
    result = {
        "xt": out.xt,
        "network_xt": out.denoised.state,
        "x0_pred": out.x0_pred,
        "loss": out.loss.reshape(1),
        "edm_loss_mean": out.edm_loss.reshape(1),
        "mse_mean": out.mse_loss.reshape(1),
        "weights_per_sigma": out.weight[:, 0],
    }
    if out.denoised.mask_channel is not None:
        result["condition_video_input_mask"] = out.denoised.mask_channel
    if out.logvar is not None:
        result["logvar"] = out.logvar
    return result


@adapter("predict1", "sample")
def predict1_sample(case: Case) -> dict[str, Tensor]:
    model, config = build_model(case), case.config
    settings = SamplerSettings(
        solver=config.get("solver_option", "euler"),
        num_steps=config["num_steps"],
        guidance=config["guidance"],
        sigma_min=config["sigma_min"],
        sigma_max=config["sigma_max"],
        augment_sigma=config.get("condition_video_augment_sigma_in_inference", 0.001),
    )
    noise = case.inputs["noise"]
    frames = given_frames(case, case.inputs["condition_latent"]) if "condition_latent" in case.inputs else None
    condition = conditioning(case, frames)
    states: list[Tensor] = []
    with torch.no_grad():
        final = sample(model, noise, condition, settings, on_step=lambda _i, x, _x0: states.append(x))
    outputs = {"samples": final, **{f"step{i}": x for i, x in enumerate(states)}}
    if frames is not None:
        given = case.call["num_condition_t"]
        outputs |= {f"step{i}_generated": x[:, :, given:] for i, x in enumerate(states)}
        outputs["step0_network_xt"] = first_composed_state(model, noise, condition, settings)
    return outputs


def first_composed_state(
    model: WorldModel, noise: Tensor, condition: Conditioning, settings: SamplerSettings
) -> Tensor:
    """Return the state that the first evaluation sees, read from the sampler itself."""
    from cosmos_predict.diffusion.samplers import initial_scale

    assert condition.frames is not None
    condition.frames.augment_sigma = torch.full((noise.shape[0],), settings.augment_sigma)
    sigma = settings.sigmas()[0].float()
    project = frame_projection(model, condition)
    assert project is not None
    return project(noise * initial_scale(settings.solver, float(sigma)), sigma)


@adapter("predict2", "sample")
def predict2_sample(case: Case) -> dict[str, Tensor]:
    model, config, call = build_model(case), case.config, case.call
    settings = SamplerSettings(
        num_steps=call["num_steps"],
        guidance=call["guidance"],
        sigma_min=config["sigma_min"],
        sigma_max=config["sigma_max"],
        rho=config["order"],
    )
    frames = given_frames(case, case.inputs["latents"]) if "latents" in case.inputs else None
    condition = conditioning(case, frames)
    states: list[tuple[Tensor, Tensor]] = []
    final = model.sample(case.inputs["noise"], condition, settings, on_step=lambda _i, x, x0: states.append((x, x0)))
    outputs = {"sigmas": settings.sigmas(), "final": final, "x_last": states[-1][0], "x0_pred_0": states[0][1]}
    outputs |= {f"x_{i + 1}": x for i, (x, _) in enumerate(states)}
    if "distill_init" in case.inputs:
        distilled = SamplerSettings(solver="distilled", num_steps=len(case.call["distilled_sigmas"]) - 1, guidance=0.0)
        with torch.no_grad():
            outputs["distilled"] = sample(
                model, case.inputs["distill_init"], condition, distilled, fresh_noise=case.inputs["distill_renoise"]
            )
    return outputs

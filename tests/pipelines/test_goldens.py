"""The golden sampling runs of Predict2 through what the commands use: a file, `load_world_model`, `sample_clip`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cosmos_predict.checkpoint.metadata import METADATA_KEY, config_to_json
from cosmos_predict.models.sampling import SamplerSettings, seeded_noise
from cosmos_predict.pipelines.load import load_world_model
from cosmos_predict.pipelines.video2world import sample_clip
from tests.goldens.adapters.networks import build_network
from tests.goldens.run_case import Case

CASES = Path(__file__).parents[1] / "goldens" / "cases" / "predict2"
NAMES = ("sampler_video2world", "sampler_text2image")


def expected(name: str, output: str) -> Tensor:
    with safe_open(str(CASES / name / "data.safetensors"), framework="pt") as file:
        return file.get_tensor(f"out.{output}")


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    case = Case.read(CASES / request.param)
    net, _ = build_network(case, case.config.get("net", case.config))
    path = tmp_path_factory.mktemp("golden") / "net.safetensors"
    weights = {f"net.{key}": value for key, value in net.state_dict().items()}
    save_file(weights, path, {METADATA_KEY: config_to_json(net.config)})
    found = load_world_model(path, tokenizer_path="dct")
    assert found.config.pipe_config.family == "predict2" and found.settings.solver == "2ab"
    return case, found.model


@pytest.mark.parametrize("cfg_batch", ["on", "off"])
def test_sampler(golden, cfg_batch: str) -> None:
    case, model = golden
    inputs, call, config = case.inputs, case.call, case.config
    seed = int(re.findall(r"RandomState\((\d+)\)", call["noise"])[0])
    assert torch.equal(seeded_noise(inputs["noise"].shape, seed), inputs["noise"])
    settings = SamplerSettings(
        num_steps=call["num_steps"],
        guidance=call["guidance"],
        sigma_min=config["sigma_min"],
        sigma_max=config["sigma_max"],
        rho=config["order"],
        cfg_batch=cfg_batch,
    )
    given = None
    if "latents" in inputs:
        given = inputs["latents"][:, :, : call["num_latent_conditional_frames"]]
    states: list[Tensor] = []
    with torch.no_grad():
        final = sample_clip(
            model,
            inputs["noise"],
            inputs["crossattn_emb"],
            given,
            inputs.get("neg_crossattn_emb"),
            settings=settings,
            on_step=lambda _i, x, _x0: states.append(x),
        )
    limits = {key: case.spec["tolerance"][key] for key in ("rtol", "atol")}
    torch.testing.assert_close(final, expected(case.name, "final"), **limits)
    limits |= case.spec["tolerance"].get("per_output", {}).get("x_last", {})
    torch.testing.assert_close(states[-1], expected(case.name, "x_last"), **limits)


def test_distilled(golden) -> None:
    case, model = golden
    if "distill_init" not in case.inputs:
        return
    settings = SamplerSettings(solver="distilled", num_steps=4, guidance=0.0)
    inputs = case.inputs
    with torch.no_grad():
        final = sample_clip(
            model,
            inputs["distill_init"],
            inputs["crossattn_emb"],
            settings=settings,
            fresh_noise=inputs["distill_renoise"],
        )
    limits = {key: case.spec["tolerance"][key] for key in ("rtol", "atol")}
    torch.testing.assert_close(final, expected(case.name, "distilled"), **limits)

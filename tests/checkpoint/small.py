"""Networks of every published kind at tiny sizes, and their files under every published name."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from cosmos_predict.checkpoint.dialects import translate
from cosmos_predict.models.published import PUBLISHED, published_config
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import DiT, build_dit
from tests.goldens.fill import fill_array

MANIFESTS = Path(__file__).resolve().parents[1] / "goldens" / "manifests"
DIT_MANIFESTS = sorted(path.stem for path in MANIFESTS.glob("predict*.json") if "lora" not in path.stem)
TINY = {"model_channels": 24, "num_blocks": 2, "num_heads": 2, "adaln_lora_dim": 4, "crossattn_emb_channels": 10}
TINY |= {"max_img_h": 12, "max_img_w": 16, "max_frames": 8}


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Return {key: shape} of a published file."""
    return {key: tuple(shape) for key, shape in json.loads((MANIFESTS / f"{name}.json").read_text()).items()}


def tiny_config(name: str, **changes: object) -> DiTConfig:
    """Return the configuration of the published network `name` at a tiny size."""
    config = published_config(name)
    sizes = dict(TINY)
    if config.projects_text:
        sizes["crossattn_proj_in_channels"] = 14
    return config.replace(**{**sizes, **changes})


def filled(net: DiT, seed: int = 0) -> DiT:
    """Fill every weight from its name, modulations included, so that no tensor is idle."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(torch.from_numpy(fill_array(name, parameter.shape, seed)))
    return net


def tiny_network(name: str, **changes: object) -> DiT:
    return filled(build_dit(tiny_config(name, **changes), init=None))


def published_state(net: DiT, dialect: str = "predict2") -> dict[str, Tensor]:
    """Return the weights as a published file of `dialect` names them, with the entries that loaders ignore."""
    state = translate(net.state_dict(), "predict2", dialect)
    if dialect == "diffusers":
        return state
    state = {f"net.{key}": value.clone() for key, value in state.items()}
    state["net.pos_embedder.seq"] = torch.arange(128.0)
    state["net.blocks.0.self_attn.q_norm._extra_state"] = torch.zeros(3, dtype=torch.uint8)
    if dialect == "predict1":
        state |= {
            "logvar.0.freqs": torch.randn(8),
            "logvar.0.phases": torch.randn(8),
            "logvar.1.weight": torch.randn(1, 8),
        }
    else:
        state["net.accum_iteration"] = torch.tensor(7)
    return state


def native_dialect(name: str) -> str:
    return "predict1" if PUBLISHED[name].family == "predict1" else "predict2"

"""A network's configuration beside its weights: safetensors metadata, a run's config.yaml, diffusers' config.json."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

from cosmos_predict.checkpoint.recognise import Recognised
from cosmos_predict.checkpoint.run_folder import find_run_folder
from cosmos_predict.config.files import load_config
from cosmos_predict.config.lazy import instantiate, is_configurable
from cosmos_predict.errors import CheckpointError, CorruptFileError, UnsafeFileError
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.networks.config import DiTConfig

METADATA_KEY = "cosmos_predict.network"
DIFFUSERS_CLASS = "CosmosTransformer3DModel"
_CONDITIONS = "cosmos_predict.conditions."


def config_to_json(config: DiTConfig) -> str:
    """Return `config` as one line of JSON, for the metadata of a safetensors file."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    fields["controls"] = [
        {"_target_": f"{type(control).__module__}.{type(control).__qualname__}", **dataclasses.asdict(control)}
        for control in config.controls
    ]
    return json.dumps(fields)


def config_from_json(text: str, where: object = "the metadata") -> DiTConfig:
    """Return the configuration that `config_to_json` wrote.

    Raises UnsafeFileError for a control that is not one of `cosmos_predict.conditions`, CorruptFileError for other content.
    """
    try:
        fields = json.loads(text)
        fields["controls"] = [_control(dict(control), where) for control in fields["controls"]]
        return DiTConfig(**fields)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise CorruptFileError(f"{where}: no network configuration of this version ({error})") from None


def diffusers_config(config: DiTConfig) -> dict[str, Any]:
    """Return the `config.json` with which diffusers builds this network.

    diffusers has no switch for fps modulation: its forward applies it when it is given `fps` (Predict1) and not otherwise.
    Raises CheckpointError for what its class cannot compute.
    """
    names = [name for name, _ in config.input_channels]
    lacking = [f"the control {control.name!r}" for control in config.controls]
    lacking += [f"the input channel {name!r}" for name in names if name not in ("latent", "cond_mask", "padding")]
    if config.extra_pos_emb == "sincos":
        lacking.append("the sin-cos extra position embedding")
    if config.sparse_attention:
        lacking.append("sparse attention")
    if config.timestep_scale != 1.0:
        lacking.append(f"timestep_scale={config.timestep_scale}")
    if lacking:
        raise CheckpointError(f"{DIFFUSERS_CLASS} has no {' and no '.join(lacking)}; save in dialect 'predict2'")
    padding = "padding" in names
    return {
        "_class_name": DIFFUSERS_CLASS,
        "_diffusers_version": "0.35.0",
        "in_channels": config.in_channels - padding,
        "out_channels": config.out_channels,
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "num_layers": config.num_blocks,
        "mlp_ratio": config.mlp_ratio,
        "text_embed_dim": config.crossattn_emb_channels,
        "adaln_lora_dim": config.adaln_lora_dim,
        "max_size": [config.max_frames, config.max_img_h, config.max_img_w],
        "patch_size": list(config.patch),
        "rope_scale": [getattr(config, f"rope_{axis}_extrapolation_ratio") for axis in "thw"],
        "concat_padding_mask": padding,
        "extra_pos_embed_type": "learnable" if config.extra_pos_emb == "learnable" else None,
        "use_crossattn_projection": config.projects_text,
        "crossattn_proj_in_channels": config.crossattn_proj_in_channels or config.crossattn_emb_channels,
        "encoder_hidden_states_channels": config.crossattn_emb_channels,
    }


def network_config(recognised: Recognised, file: TensorFile) -> DiTConfig:
    """Return the configuration of a network recognised in `file`: what the file says of itself comes before its shapes.

    Raises CheckpointError when neither determines it.
    """
    return stated_config(recognised, file) or recognised.require_config(file.path)


def stated_config(recognised: Recognised, file: TensorFile) -> DiTConfig | None:
    """Return the configuration in the file's metadata, its run folder's config.yaml or diffusers' config.json, or None."""
    if METADATA_KEY in file.metadata:
        return config_from_json(file.metadata[METADATA_KEY], file.path)
    if (run := find_run_folder(file.path)) is not None:
        config = load_config(run.root / "config.yaml")
        if config.model is not None and (net := config.model.config.pipe_config.net) is not None:
            return instantiate(net)
    sidecar = (file.path if file.path.is_dir() else file.path.parent) / "config.json"
    return _from_diffusers(recognised, sidecar) if recognised.dialect == "diffusers" and sidecar.is_file() else None


def _from_diffusers(recognised: Recognised, sidecar: Path) -> DiTConfig:
    try:
        said = json.loads(sidecar.read_text())
        ratios = {f"rope_{axis}_extrapolation_ratio": float(said["rope_scale"][i]) for i, axis in enumerate("thw")}
        frames, height, width = (int(size) for size in said["max_size"])
    except (json.JSONDecodeError, LookupError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{sidecar}: no configuration of a {DIFFUSERS_CLASS} ({error})") from None
    predict1 = recognised.family == "predict1"
    initialization = "xavier" if predict1 else "trunc_normal"
    unseen: dict[str, Any] = {"rope_enable_fps_modulation": predict1, "initialization": initialization}
    base = recognised.config or DiTConfig(**recognised.fields, **unseen)
    return base.replace(**ratios, max_frames=frames, max_img_h=height, max_img_w=width)


def _control(fields: dict[str, Any], where: object) -> Any:
    target = str(fields.pop("_target_"))
    module, _, name = target.rpartition(".")
    ours = target.startswith(_CONDITIONS) and name.isidentifier()
    found = getattr(importlib.import_module(module), name) if ours else None
    if found is None or not is_configurable(found) or getattr(found, "__module__", "") != module:
        raise UnsafeFileError(f"{where}: refused, its configuration names {target!r}, no control of this package")
    # JSON has no tuples.
    return found(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})

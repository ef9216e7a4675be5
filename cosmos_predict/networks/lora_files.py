"""Adapter files: LoRA adapters alone, in PEFT's format (`adapter_model.safetensors` and `adapter_config.json`).

What is written here loads in PEFT and gives the same output, and the other way round.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_predict.errors import CheckpointError
from cosmos_predict.io.atomic import atomic_path, atomic_write_text
from cosmos_predict.io.tensors import load_tensors
from cosmos_predict.networks.lora import (
    LoRALinear,
    adapted_layer,
    adapter_state_dict,
    linear_layers,
    lora_layers,
    nearest_layers,
)

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
_ADAPTER_KEY = re.compile(
    r"(?:base_model\.model\.|net\.|net_ema\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.[^.]+)?\.weight"
)


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter folder says: its modules, and the name and hash of the weights it belongs to, where known."""

    modules: tuple[str, ...]
    base: str | None = None
    base_hash: str | None = None


def save_adapters(
    network: nn.Module,
    folder: str | os.PathLike[str],
    adapter: str = "default",
    base: str | None = None,
    base_hash: str | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` (PEFT's format) to `folder`, each whole or not at
    all.

    `base` and `base_hash` name the weights that the adapter belongs to. `state` replaces the adapter's own tensors,
    under the keys of `adapter_state_dict` (an EMA of them, or tensors gathered from shards).
    """
    from safetensors.torch import save_file

    layers = dict(lora_layers(network, adapter))
    tensors = adapter_state_dict(network, adapter) if state is None else state
    ranks = {name: layer.rank(adapter) for name, layer in layers.items()}
    alphas = {
        name: int(a) if a.is_integer() else a
        for name, a in ((name, layer.alpha[adapter]) for name, layer in layers.items())
    }
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "revision": base_hash,
        "r": rank,
        "lora_alpha": alpha,
        # Whole names: PEFT then adapts the same layers and no others, whatever else ends like them.
        "target_modules": list(layers),
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
        "task_type": None,
    }
    folder = Path(folder)
    with atomic_path(folder / WEIGHTS_FILE) as path:
        save_file(
            {f"base_model.model.{key}": value.contiguous() for key, value in tensors.items()}, path, {"format": "pt"}
        )
    atomic_write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def load_adapters(
    network: nn.Module, folder: str | os.PathLike[str], adapter: str = "default", weight: float = 1.0
) -> AdapterInfo:
    """Read an adapter folder (ours or PEFT's) into `network` as `adapter`, active with `weight`; return what it says.

    Raises CheckpointError when the folder's files are missing, are no plain LoRA, or do not fit the network.
    """
    folder = Path(folder)
    if missing := [name for name in (WEIGHTS_FILE, CONFIG_FILE) if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder} is no adapter folder: {' and '.join(missing)} missing")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} is not JSON: {error}") from None
    unsupported = [
        name
        for name in ("use_dora", "fan_in_fan_out", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save")
        if config.get(name)
    ]
    if config.get("peft_type") != "LORA" or unsupported:
        what = f"uses {', '.join(unsupported)}" if unsupported else f"has peft_type {config.get('peft_type')!r}"
        raise CheckpointError(f"{folder / CONFIG_FILE} {what}; plain LoRA is supported")
    load_adapter_state_dict(network, load_tensors(folder / WEIGHTS_FILE), adapter, weight, config)
    modules = tuple(name for name, _ in lora_layers(network, adapter))
    return AdapterInfo(modules, config.get("base_model_name_or_path"), config.get("revision"))


@torch.no_grad()
def load_adapter_state_dict(
    network: nn.Module,
    state: Mapping[str, Tensor],
    adapter: str = "default",
    weight: float = 1.0,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Put `{module}.lora_A.weight` / `lora_B.weight` tensors into `network`, adding layers that are not there yet.

    Keys may carry `base_model.model.`, `net.` or an adapter name, as the published forms do. `config` gives
    `lora_alpha` (default: the rank) with PEFT's `alpha_pattern` and `use_rslora`; ranks are read from the tensors.
    Raises CheckpointError, before the network is changed, for other keys and for modules or shapes that do not fit.
    """
    config = config or {}
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = _ADAPTER_KEY.fullmatch(key)
        if match is None:
            raise CheckpointError(
                f"{key!r} is no LoRA tensor; expected names like base_model.model.MODULE.lora_A.weight"
            )
        pairs.setdefault(match["module"], {})[match["part"]] = tensor
    linears = dict(linear_layers(network))
    for name, pair in pairs.items():
        if name not in linears:
            raise CheckpointError(
                f"the adapter is made for a layer {name!r}, which the network does not have."
                + nearest_layers(name, linears)
            )
        _check_pair(name, pair, linears[name], adapter)
    for name, pair in pairs.items():
        rank = pair["A"].shape[0]
        alpha = float(_pattern_value(config.get("alpha_pattern") or {}, name, config.get("lora_alpha", rank)))
        layer = adapted_layer(network, name, linears[name])
        if adapter not in layer.lora_A:
            layer.add_adapter(adapter, rank, alpha, pair["A"].dtype, trainable=False)
        # rsLoRA divides by the root of the rank
        layer.alpha[adapter] = alpha * math.sqrt(rank) if config.get("use_rslora") else alpha
        layer.active[adapter] = float(weight)
        meta = layer.weight.is_meta  # then the tensors take the place of the empty ones
        for part, module in (("A", layer.lora_A[adapter]), ("B", layer.lora_B[adapter])):
            module.load_state_dict({"weight": pair[part]}, assign=meta)


def _check_pair(name: str, pair: Mapping[str, Tensor], module: nn.Module, adapter: str) -> None:
    if len(pair) != 2:
        raise CheckpointError(f"the adapter has only lora_{'/'.join(pair)} of {name}, both A and B are needed")
    out_features, in_features = module.weight.shape  # type: ignore[union-attr]
    a, b = tuple(pair["A"].shape), tuple(pair["B"].shape)
    if a[1:] != (in_features,) or b != (out_features, a[0]):
        raise CheckpointError(
            f"the adapter's {name} has A {a} and B {b}; a layer of {in_features} inputs and {out_features} outputs "
            f"needs A (rank, {in_features}) and B ({out_features}, rank): it belongs to a network of another size"
        )
    if isinstance(module, LoRALinear) and adapter in module.lora_A and module.rank(adapter) != a[0]:
        raise CheckpointError(
            f"adapter {adapter!r} of {name} has rank {module.rank(adapter)}, the file has rank {a[0]}: "
            f"set lora_rank={a[0]}, or load it under another name"
        )


def _pattern_value(patterns: Mapping[str, float], name: str, default: float) -> float:
    """Return PEFT's per-module value: of the first pattern that is the name, or matches its end after a dot."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name):
            return value
    return default

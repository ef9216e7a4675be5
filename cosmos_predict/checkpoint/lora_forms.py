"""The published forms of LoRA adapters, between which the converter translates without building a network.

- `peft`: a folder of `adapter_model.safetensors` (`base_model.model.MODULE.lora_A.weight`) and `adapter_config.json`;
- `infile`: inside a whole checkpoint, `MODULE.base_layer.weight` beside `MODULE.lora_A.default.weight` (Cosmos-Predict2);
- `diffusers`: `transformer.MODULE.lora_A.weight` under diffusers' module names, with the ranks and alphas as metadata.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_predict.checkpoint.dialects import detect_dialect, to_native, translated_names, unwrap_key
from cosmos_predict.checkpoint.stream import Entry, file_entry, write_tensors
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.atomic import atomic_write_text
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.networks.lora import lora_layers
from cosmos_predict.parallel.shards import whole

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
MADE_FOR = "cosmos_network"  # in peft's `auto_mapping`, since it warns of keys that it does not know
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
_DIFFUSERS_METADATA = "lora_adapter_metadata"
_PEFT_PREFIX = "base_model.model."
_KEY = re.compile(
    r"(?:base_model\.model\.|transformer\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
)
_NOT_PLAIN = ("use_dora", "fan_in_fan_out", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save")
_ROWS = 512  # of a weight that are merged at a time


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One adapter, its matrices unread.

    layers: native module -> (A (rank, in), B (out, rank)); alpha: per module; where: what it is read from; base, base_hash:
    name and hash of the weights that it belongs to, made_for: family and task of its network, where known.
    """

    layers: dict[str, tuple[Entry, Entry]]
    alpha: dict[str, float]
    where: str
    base: str | None = None
    base_hash: str | None = None
    made_for: str | None = None

    def rank(self, module: str) -> int:
        return self.layers[module][0].shape[0]

    def scale(self, module: str) -> float:
        return self.alpha[module] / self.rank(module)


def is_adapter_key(key: str) -> bool:
    """Return whether `key` names a LoRA matrix, in any form."""
    return _KEY.fullmatch(key) is not None


def network_adapter(
    network: nn.Module,
    adapter: str = "default",
    *,
    tensors: Mapping[str, Entry] | None = None,
    base: str | None = None,
    base_hash: str | None = None,
    made_for: str | None = None,
) -> Adapter:
    """Return an adapter of `network`; sharded matrices are gathered when they are asked for, by all ranks together.

    tensors: values in place of the network's own, by state-dict name (an EMA). Raises ConfigError for an unknown adapter.
    """
    layers, alpha = {}, {}
    for module, layer in lora_layers(network, adapter):
        pair = []
        for part, own in zip("AB", layer.matrices(adapter), strict=True):
            entry = None if tensors is None else tensors[f"{module}.lora_{part}.{adapter}.weight"]
            load = entry.load if entry else lambda t=own: whole(t)
            pair.append(Entry(part, tuple(own.shape), (entry or own).dtype, load))
        layers[module], alpha[module] = (pair[0], pair[1]), layer.alpha[adapter]
    if not layers:
        raise ConfigError(f"the network has no LoRA adapter {adapter!r}")
    return Adapter(layers, alpha, "the network", base, base_hash, made_for)


def read_adapter(path: str | os.PathLike[str] | TensorFile, *, ema: bool = False) -> Adapter:
    """Open the adapters of a file or folder, in any form; what the in-file form does not say: alpha = rank, as published.

    Raises CheckpointError when there are none, several under one layer, one of the pair A, B is missing, other tensors lie
    among them, or they are no plain LoRA.
    """
    file = path if isinstance(path, TensorFile) else TensorFile(path)
    where = file.path
    pairs: dict[str, dict[str, str]] = {}
    adapters = set()
    named = [(key, *unwrap_key(key)) for key in file]
    wanted = "ema" if ema and any(part == "ema" for _, part, _ in named) else "reg"
    for key, part, name in named:
        if (match := _KEY.fullmatch(name)) and part == wanted:
            adapters.add(match["adapter"])
            pairs.setdefault(match["module"], {})[match["part"]] = key
    if not pairs:
        raise CheckpointError(f"{where}: holds no LoRA adapters (no MODULE.lora_A / lora_B weights)")
    if len(adapters) > 1:
        raise CheckpointError(f"{where}: holds several adapters, {sorted(map(str, adapters))}; convert one at a time")
    others = [name for _, _, name in named if not is_adapter_key(name)]
    if others and not any(".base_layer." in name for name in others):  # not a whole checkpoint
        raise CheckpointError(f"{where}: {others[0]!r} is no LoRA matrix (X.lora_A.weight); only plain LoRA is read")
    if halves := [module for module, pair in pairs.items() if len(pair) != 2]:
        raise CheckpointError(f"{where}: {halves[0]} has only one of lora_A and lora_B, both are needed")
    dialect = detect_dialect(f"{module}.weight" for module in pairs) or "predict2"
    said = _said(file)
    patterns = {_native(pattern, dialect): value for pattern, value in (said.get("alpha_pattern") or {}).items()}
    layers, alpha = {}, {}
    for module, pair in ((_native(name, dialect), pair) for name, pair in pairs.items()):
        layers[module] = (file_entry(file, pair["A"]), file_entry(file, pair["B"]))
        rank = layers[module][0].shape[0]
        fitting = (value for pattern, value in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module))
        value = float(next(fitting, said.get("lora_alpha", rank)))
        alpha[module] = value * math.sqrt(rank) if said.get("use_rslora") else value
    made_for = (said.get("auto_mapping") or {}).get(MADE_FOR)
    return Adapter(layers, alpha, str(where), said.get("base_model_name_or_path"), said.get("revision"), made_for)


def write_adapter(
    adapter: Adapter, path: str | os.PathLike[str], form: str = "peft", dtype: torch.dtype | None = None
) -> list[Path]:
    """Write adapters alone: `peft` to a folder, `diffusers` to a file (or a folder, under diffusers' usual name)."""
    path = Path(path)
    config = _peft_config(adapter)
    if form == "peft":
        if path.suffix in (".safetensors", ".pt"):
            raise ConfigError(f"{path}: the peft form is a folder of {WEIGHTS_FILE} and {CONFIG_FILE}; give a folder")
        names = {module: _PEFT_PREFIX + module for module in adapter.layers}
        files = write_tensors(path / WEIGHTS_FILE, matrices(adapter, names, dtype))
        atomic_write_text(path / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
        return [*files, path / CONFIG_FILE]
    if form != "diffusers":
        raise ConfigError(f"the form {form!r} needs the base too: give the base as input and the adapters as --lora")
    names = translated_names([f"{module}.weight" for module in adapter.layers], "predict2", "diffusers")
    bare = {key.removesuffix(".weight"): name.removesuffix(".weight") for key, name in names.items()}
    modules = {module: f"transformer.{name}" for module, name in bare.items()}
    config["target_modules"] = sorted(bare.values())
    for pattern in ("rank_pattern", "alpha_pattern"):
        config[pattern] = {bare[module]: value for module, value in config[pattern].items()}
    metadata = {_DIFFUSERS_METADATA: json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    file = path if path.suffix == ".safetensors" else path / DIFFUSERS_FILE
    return write_tensors(file, matrices(adapter, modules, dtype), metadata=metadata)


@torch.no_grad()
def merged(weight: Tensor, module: str, adapters: Iterable[Adapter]) -> Tensor:
    """Return W + sum of alpha/rank B A `(out, in)`, summed in float32 and rounded once to W's dtype, a few rows at a time.

    Raises CheckpointError when an adapter belongs to a layer of another size.
    """
    pairs = []
    for adapter in adapters:
        if module in adapter.layers:
            a, b = (entry.load().float() for entry in adapter.layers[module])
            if (b.shape[0], a.shape[1]) != tuple(weight.shape):
                raise CheckpointError(
                    f"{adapter.where}: the adapter of {module} is made for a layer {(b.shape[0], a.shape[1])}, the base has "
                    f"{tuple(weight.shape)}: it belongs to a network of another size"
                )
            pairs.append((a, b * adapter.scale(module)))
    for start in range(0, weight.shape[0], _ROWS) if pairs else ():
        rows = slice(start, start + _ROWS)
        total = weight[rows].float()
        for a, b in pairs:
            total = torch.addmm(total, b[rows], a)
        weight[rows] = total.to(weight.dtype)
    return weight


def matrices(adapter: Adapter, names: Mapping[str, str], dtype: torch.dtype | None, suffix: str = "") -> list[Entry]:
    """Return the matrices as `NAME.lora_A<suffix>.weight` and so on; `names` gives each module's NAME."""
    entries = []
    for module, name in names.items():
        for part, entry in zip("AB", adapter.layers[module], strict=True):
            kind = dtype or entry.dtype
            load = lambda load=entry.load, kind=kind: load().to(kind)  # noqa: E731
            entries.append(Entry(f"{name}.lora_{part}{suffix}.weight", entry.shape, kind, load))
    return entries


def _native(module: str, dialect: str) -> str:
    return (to_native(f"{module}.weight", dialect) or f"{module}.weight").removesuffix(".weight")


def _said(file: TensorFile) -> dict[str, Any]:
    """Return what stands beside the adapters about rank and alpha, or {} (in-file form)."""
    sidecar = (file.path if file.path.is_dir() else file.path.parent) / CONFIG_FILE
    try:
        if _DIFFUSERS_METADATA in file.metadata:
            said = json.loads(file.metadata[_DIFFUSERS_METADATA])
            said = {key.partition(".")[2]: value for key, value in said.items()}
        else:
            said = json.loads(sidecar.read_text()) if sidecar.is_file() else {}
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{sidecar} is not JSON: {error}") from None
    if not said and any(key.startswith(_PEFT_PREFIX) for key in file):
        raise CheckpointError(f"{file.path}: {CONFIG_FILE} is missing beside the adapter, which tells its scale")
    unsupported = [name for name in _NOT_PLAIN if said.get(name)]
    if unsupported or said.get("peft_type", "LORA") != "LORA":
        what = f"uses {', '.join(unsupported)}" if unsupported else f"has peft_type {said.get('peft_type')!r}"
        raise CheckpointError(f"{file.path}: {CONFIG_FILE} {what}; only plain LoRA is read")
    return said


def _peft_config(adapter: Adapter) -> dict[str, Any]:
    ranks = {module: adapter.rank(module) for module in adapter.layers}
    alphas = {module: int(a) if float(a).is_integer() else a for module, a in adapter.alpha.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": adapter.base,
        "revision": adapter.base_hash,
        "r": rank,
        "lora_alpha": alpha,
        # Whole names: exactly these layers are adapted, whatever else ends like them.
        "target_modules": sorted(ranks),
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
        "task_type": None,
        "auto_mapping": {MADE_FOR: adapter.made_for} if adapter.made_for else None,
    }

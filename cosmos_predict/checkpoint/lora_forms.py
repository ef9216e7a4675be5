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
from torch import Tensor

from cosmos_predict.checkpoint.dialects import detect_dialect, to_native, translated_names, unwrap_key
from cosmos_predict.checkpoint.stream import Entry, write_tensors
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.atomic import atomic_write_text
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.networks.lora_files import CONFIG_FILE, WEIGHTS_FILE

LORA_FORMS = ("peft", "infile", "diffusers")
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
_DIFFUSERS_METADATA = "lora_adapter_metadata"
_KEY = re.compile(
    r"(?:base_model\.model\.|transformer\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
)
_ROWS = 512  # of a weight that are merged at a time


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Adapters of a file, unread. keys: native module -> (key of A (rank, in), key of B (out, rank)); alpha per module."""

    file: TensorFile
    keys: dict[str, tuple[str, str]]
    alpha: dict[str, float]
    said: dict[str, Any]

    def rank(self, module: str) -> int:
        return self.file.shape(self.keys[module][0])[0]

    def scale(self, module: str) -> float:
        return self.alpha[module] / self.rank(module)


def is_adapter_key(key: str) -> bool:
    """Return whether `key` names a LoRA matrix, in any form."""
    return _KEY.fullmatch(key) is not None


def read_adapter(path: str | os.PathLike[str] | TensorFile, *, ema: bool = False) -> Adapter:
    """Open the adapters of a file or folder, in any form. A file without alphas has alpha = rank, as published.

    Raises CheckpointError when there are none, several under one layer, or one of the pair A, B is missing.
    """
    file = path if isinstance(path, TensorFile) else TensorFile(path)
    where = file.path
    pairs: dict[str, dict[str, str]] = {}
    adapters = set()
    named = [(key, *unwrap_key(key)) for key in file.keys()]  # noqa: SIM118
    wanted = "ema" if ema and any(part == "ema" for _, part, _ in named) else "reg"
    for key, part, name in named:
        if (match := _KEY.fullmatch(name)) and part == wanted:
            adapters.add(match["adapter"])
            pairs.setdefault(match["module"], {})[match["part"]] = key
    if not pairs:
        raise CheckpointError(f"{where}: holds no LoRA adapters (no MODULE.lora_A / lora_B weights)")
    if len(adapters) > 1:
        raise CheckpointError(
            f"{where}: holds several adapters, {sorted(map(str, adapters))}; convert a file of one at a time"
        )
    if halves := [module for module, pair in pairs.items() if len(pair) != 2]:
        raise CheckpointError(f"{where}: {halves[0]} has only one of lora_A and lora_B, both are needed")
    dialect = detect_dialect(f"{module}.weight" for module in pairs) or "predict2"
    said = _said(file, dialect)
    keys = {to_native(f"{m}.weight", dialect) or f"{m}.weight": (pair["A"], pair["B"]) for m, pair in pairs.items()}
    keys = {name.removesuffix(".weight"): pair for name, pair in keys.items()}
    alpha = {}
    for module, (a, _) in keys.items():
        rank = file.shape(a)[0]
        value = float(_pattern(said.get("alpha_pattern"), module, said.get("lora_alpha", rank)))
        alpha[module] = value * math.sqrt(rank) if said.get("use_rslora") else value
    return Adapter(file, keys, alpha, said)


def write_adapter(
    adapter: Adapter, path: str | os.PathLike[str], form: str, dtype: torch.dtype | None = None
) -> list[Path]:
    """Write adapters alone: `peft` to a folder, `diffusers` to a file (or a folder, under diffusers' usual name)."""
    path = Path(path)
    config = _peft_config(adapter)
    if form == "peft":
        if path.suffix in (".safetensors", ".pt"):
            raise ConfigError(f"{path}: the peft form is a folder of {WEIGHTS_FILE} and {CONFIG_FILE}; give a folder")
        files = write_tensors(
            path / WEIGHTS_FILE, _entries(adapter, {m: f"base_model.model.{m}" for m in adapter.keys}, dtype)
        )
        atomic_write_text(path / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
        return [*files, path / CONFIG_FILE]
    if form != "diffusers":
        raise ConfigError(
            f"the form {form!r} needs the base in the same file: give the base as input and the adapters as --lora"
        )
    names = translated_names([f"{module}.weight" for module in adapter.keys], "predict2", "diffusers")
    modules = {module: "transformer." + names[f"{module}.weight"].removesuffix(".weight") for module in adapter.keys}
    bare = {module: name.removeprefix("transformer.") for module, name in modules.items()}
    config |= {"target_modules": sorted(bare.values())}
    for pattern in ("rank_pattern", "alpha_pattern"):
        config[pattern] = {bare[module]: value for module, value in config[pattern].items()}
    metadata = {_DIFFUSERS_METADATA: json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    file = path if path.suffix == ".safetensors" else path / DIFFUSERS_FILE
    return write_tensors(file, _entries(adapter, modules, dtype), metadata=metadata)


def infile_entries(adapter: Adapter, dtype: torch.dtype | None = None) -> list[Entry]:
    """Return the adapter matrices under their in-file native names `MODULE.lora_A.default.weight`."""
    return _entries(adapter, {module: module for module in adapter.keys}, dtype, suffix=".default")


@torch.no_grad()
def merged(weight: Tensor, module: str, adapters: Iterable[Adapter]) -> Tensor:
    """Return W + sum of alpha/rank B A `(out, in)`, summed in float32 and rounded once to W's dtype, a few rows at a time.

    Raises CheckpointError when an adapter belongs to a layer of another size.
    """
    pairs = []
    for adapter in adapters:
        if module in adapter.keys:
            a, b = (adapter.file.get(key).float() for key in adapter.keys[module])
            if (b.shape[0], a.shape[1]) != tuple(weight.shape):
                raise CheckpointError(
                    f"{adapter.file.path}: the adapter of {module} is made for a layer {(b.shape[0], a.shape[1])}, the base has "
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


def _entries(adapter: Adapter, names: Mapping[str, str], dtype: torch.dtype | None, suffix: str = "") -> list[Entry]:
    entries = []
    for module, name in names.items():
        for part, key in zip("AB", adapter.keys[module], strict=True):
            kind = dtype or adapter.file.dtype(key)
            load = lambda key=key, kind=kind: adapter.file.get(key).to(kind)  # noqa: E731
            entries.append(Entry(f"{name}.lora_{part}{suffix}.weight", adapter.file.shape(key), kind, load))
    return entries


def _said(file: TensorFile, dialect: str) -> dict[str, Any]:
    """Return what stands beside the adapters about rank and alpha, with native module names, or {}."""
    sidecar = (file.path if file.path.is_dir() else file.path.parent) / CONFIG_FILE
    try:
        if _DIFFUSERS_METADATA in file.metadata:
            said = json.loads(file.metadata[_DIFFUSERS_METADATA])
            said = {key.partition(".")[2]: value for key, value in said.items()}
        else:
            said = json.loads(sidecar.read_text()) if sidecar.is_file() else {}
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{sidecar}: the adapter's configuration is not JSON: {error}") from None
    if unsupported := [
        name for name in ("use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save") if said.get(name)
    ]:
        raise CheckpointError(f"{file.path}: uses {', '.join(unsupported)}; only plain LoRA is converted")
    patterns = said.get("alpha_pattern") or {}
    said["alpha_pattern"] = {
        (to_native(f"{k}.weight", dialect) or f"{k}.weight").removesuffix(".weight"): v for k, v in patterns.items()
    }
    return said


def _pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            return value
    return default


def _peft_config(adapter: Adapter) -> dict[str, Any]:
    ranks = {module: adapter.rank(module) for module in adapter.keys}
    alphas = {module: int(a) if float(a).is_integer() else a for module, a in adapter.alpha.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": adapter.said.get("base_model_name_or_path"),
        "revision": adapter.said.get("revision"),
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
    }

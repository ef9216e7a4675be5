"""LoRA runs: the frozen base that adapters are trained beside, and what a `--lora_path` means.

A run state holds the trained tensors alone. The base is made again at every start, from its file or, without one, from
the seed; the entry `lora` of the state's index names it with its hash, and a run continues beside the same one only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_predict.checkpoint.lora_forms import CONFIG_FILE, DIFFUSERS_FILE, WEIGHTS_FILE, Adapter, read_adapter
from cosmos_predict.checkpoint.recognise import task_of
from cosmos_predict.checkpoint.run_folder import find_run_folder
from cosmos_predict.checkpoint.run_state import describe
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.models.config import ModelConfig, PipeConfig
from cosmos_predict.networks.lora import adapted_layer, linear_layers, lora_layers, nearest_layers
from cosmos_predict.parallel.mesh import Mesh
from cosmos_predict.parallel.shards import whole


def file_hash(path: str | os.PathLike[str], ema: bool = False) -> str:
    """Return `sha256:HEX` of a base's file, as `sha256sum` prints it; of the list of hashes for a folder's tensor files;
    with `#ema` behind it where the file's EMA weights are meant.
    """
    path = Path(path)
    digest = describe(path)["sha256"] if path.is_file() else ""
    if not digest:
        files = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin", ".pt"))
        digest = hashlib.sha256("".join(describe(file)["sha256"] for file in files).encode()).hexdigest()
    return f"sha256:{digest}{'#ema' if ema else ''}"


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Return `sha256:HEX` over names and values, whatever ranks they lie on: every rank must call this."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)} {weights[name].dtype} ".encode())
        digest.update(whole(weights[name]).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def lora_identity(net: nn.Module, options: ModelConfig, base: Path | None, mesh: Mesh) -> dict[str, Any]:
    """Return what the index says of a LoRA run: `base` (None: random, made from the seed) and `base_hash`, `rank`, `alpha`,
    and `made_for`, family and task.

    net: the base as it is filled, without adapters. Every rank must call this.
    """
    if base is None:
        digest = weights_hash(dict(net.named_parameters()))
    else:
        ema = options.model_manager_config.load_ema
        digest = mesh.from_main(file_hash(base, ema) if mesh.is_main else "")
    name = None if base is None else str(base)
    about = {"base": name, "base_hash": digest, "made_for": network_kind(options.pipe_config)}
    return {**about, "rank": options.lora_rank, "alpha": float(options.lora_alpha)}


def network_kind(pipe: PipeConfig) -> str | None:
    """Return family and task of a network, such as "predict2 video2world"."""
    kind = None if pipe.net is None else f"{pipe.family} {task_of(vars(pipe.net))}"
    return "predict2 text2image" if kind == "predict2 text2world" else kind  # its only one without given frames


def check_same_adapters(saved: Mapping[str, Any] | None, present: Mapping[str, Any] | None, folder: object) -> None:
    """Raise CheckpointError when a state whose index says `saved` belongs beside another base than the `present` run's, to
    adapters of another rank or scale, or to training of all weights (None).
    """
    if saved is None or present is None:
        if saved is not present:
            was, now = ("base" if entry is None else "lora" for entry in (saved, present))
            what = f"{folder} holds a run with train_architecture={was}, this one has {now}"
            raise CheckpointError(f"{what}: choose another job.name")
        return
    for key in ("rank", "alpha"):
        if saved[key] != present[key]:
            what = f"{folder} holds adapters with lora_{key}={saved[key]}, this run has lora_{key}={present[key]}"
            raise CheckpointError(f"{what}: set that, or choose another job.name")
    if saved["base_hash"] != present["base_hash"]:
        was, now = (f"{entry['base'] or 'a random base'} ({entry['base_hash']})" for entry in (saved, present))
        raise CheckpointError(
            f"the adapters of {folder} were trained beside {was}; this run's base is {now}. Give that base as "
            "checkpoint.load_path, or choose another job.name"
        )


def adapter_folder(path: str | os.PathLike[str], ema: bool = False) -> Path:
    """Return what a `--lora_path` means: an adapter folder or a file of adapters itself; of a LoRA run folder, or a folder
    `iter_..._lora` in one, the regular or the EMA adapters (of the newest complete iteration).

    Raises FileNotFoundError, or CheckpointError saying what else the path is.
    """
    path, part = Path(path), "ema" if ema else "reg"
    if not path.exists():
        raise FileNotFoundError(
            f"no LoRA adapters at {path}: give a folder with {WEIGHTS_FILE}, a file, or the folder of a LoRA run "
            "(which makes missing exports of its newest state again when it is started)"
        )
    if path.is_file() or any((path / name).is_file() for name in (WEIGHTS_FILE, DIFFUSERS_FILE)):
        return path
    if exported := [name for name in ("reg", "ema") if (path / name / CONFIG_FILE).is_file()]:
        if part not in exported:
            raise CheckpointError(f"{path} holds no {part} adapters, only {exported[0]}: ask for these")
        return path / part
    folder = find_run_folder(path)
    iteration = None if folder is None else folder.newest()
    if folder is None or iteration is None:
        what = "a run without a complete iteration yet" if folder else f"no adapter folder ({WEIGHTS_FILE}) and no run"
        raise CheckpointError(f"{path} is {what}: give a folder of LoRA adapters, or of a LoRA run")
    if "lora" not in folder.read_index(iteration):
        raise CheckpointError(f"{path} is a run that trained all weights: give it as --dit_path, not --lora_path")
    return adapter_folder(folder.adapters(iteration)["reg"].parent, ema)


@torch.no_grad()
def load_adapters(
    network: nn.Module,
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    weights: Sequence[float] = (),
    *,
    ema: bool = False,
) -> list[Adapter]:
    """Put adapters, one of each path (see `adapter_folder`), into `network`, active and frozen; return them.

    Their effects add up, each times its entry of `weights` (1 by default). `merge_lora` then removes their cost. A network
    on the meta device takes their tensors. Raises CheckpointError, before the network is changed, for adapters that do not
    fit, ConfigError for another number of weights, and what `adapter_folder` and `read_adapter` raise.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    factors = [float(weight) for weight in weights] or [1.0] * len(paths)
    if len(factors) != len(paths):
        raise ConfigError(f"{len(paths)} LoRA adapters are given and {len(factors)} weights for them: give one each")
    adapters = [read_adapter(adapter_folder(path, ema), ema=ema) for path in paths]
    for adapter in adapters:
        _check_fits(adapter, network)
    for adapter, factor in zip(adapters, factors, strict=True):
        taken, linears = {n for _, layer in lora_layers(network) for n in layer.lora_A}, dict(linear_layers(network))
        name = f"adapter{len(taken)}" if taken else "default"
        for module, pair in adapter.layers.items():
            layer = adapted_layer(network, module, linears[module])
            layer.add_adapter(name, adapter.rank(module), adapter.alpha[module], pair[0].dtype, trainable=False)
            layer.active[name] = factor
            for part, entry in zip((layer.lora_A[name], layer.lora_B[name]), pair, strict=True):
                part.load_state_dict({"weight": entry.load()}, assign=layer.weight.is_meta)
    return adapters


def _check_fits(adapter: Adapter, network: nn.Module) -> None:
    linears = dict(linear_layers(network))
    for module, (a, b) in adapter.layers.items():
        if module not in linears:
            what = f"the adapter is made for a layer {module!r}, which the network does not have"
            raise CheckpointError(f"{adapter.where}: {what}.{nearest_layers(module, linears)}")
        out_features, in_features = linears[module].weight.shape
        if a.shape[1:] != (in_features,) or b.shape != (out_features, a.shape[0]):
            layer = f"a layer of {in_features} inputs and {out_features} outputs"
            needed = (
                f"needs A (rank, {in_features}) and B ({out_features}, rank): it belongs to a network of another size"
            )
            raise CheckpointError(f"{adapter.where}: {module} has A {a.shape} and B {b.shape}; {layer} {needed}")

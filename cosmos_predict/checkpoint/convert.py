"""Published files into other published files: dialect, kind of file, weights, dtype, LoRA form. Streams tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor

from cosmos_predict.checkpoint.accounting import require_match
from cosmos_predict.checkpoint.dialects import translated_names
from cosmos_predict.checkpoint.load import select_weights
from cosmos_predict.checkpoint.lora_forms import Adapter, is_adapter_key, matrices, merged, read_adapter, write_adapter
from cosmos_predict.checkpoint.metadata import METADATA_KEY, config_to_json, diffusers_config, stated_config
from cosmos_predict.checkpoint.recognise import plain_name, recognise
from cosmos_predict.checkpoint.stream import Entry, file_entry, write_with_bar
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.accounting import shapes_of
from cosmos_predict.io.atomic import atomic_write_text
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import build_dit

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "keep": None}


@dataclasses.dataclass(frozen=True)
class Conversion:
    """How to convert. to: target dialect. source: the input's, None finds it. weights: `reg` or `ema`. dtype: None keeps it.

    merge: add the adapters (of the input, and of `lora`) to the weights. lora_form: what to do with them otherwise.
    config: the network's, where neither a published name nor the file tells it (diffusers' config.json needs it).
    """

    to: str = "predict2"
    source: str | None = None
    weights: str = "reg"
    dtype: torch.dtype | None = None
    max_shard_bytes: int | None = None
    lora: Sequence[str | os.PathLike[str]] = ()
    merge: bool = False
    lora_form: str | None = None
    config: DiTConfig | None = None


def convert(
    source: str | os.PathLike[str], target: str | os.PathLike[str], how: Conversion, *, progress: bool = False
) -> list[Path]:
    """Convert the file or folder `source` into `target` and return the files written.

    A target ending in `.pt` or `.safetensors` is a file, any other a folder (`model.safetensors`; in dialect diffusers
    `diffusion_pytorch_model.safetensors`). Dialect diffusers also writes `config.json`, with which
    `CosmosTransformer3DModel.from_pretrained` loads the folder. EMA weights are written as `net.*`.

    Memory is that of the largest tensor. Raises CheckpointError for tensors that fit no network, have no name in the
    target dialect, or weights that are absent; ConfigError for options that contradict each other.
    """
    with TensorFile(source) as file:
        has_adapters, alone = any(map(is_adapter_key, file)), how.lora_form in ("peft", "diffusers")
        if has_adapters and (alone or all(map(is_adapter_key, file))):
            return _convert_adapter(file, target, how)
        if alone:
            what = f"lora_form={how.lora_form!r} writes adapters alone, and {source} has none"
            raise ConfigError(f"{what}: give the adapters as input")
        adapters = [read_adapter(path) for path in how.lora]
        if has_adapters:
            adapters.insert(0, read_adapter(file, ema=how.weights == "ema"))
        return _convert_network(file, Path(target), how, adapters, progress)


def _convert_adapter(file: TensorFile, target: str | os.PathLike[str], how: Conversion) -> list[Path]:
    if how.merge or how.lora:
        raise ConfigError(f"{file.path}: to merge adapters give the base as input and the adapters as --lora")
    if how.lora_form is None:
        raise ConfigError(f"{file.path}: holds LoRA adapters alone; say which form to write: lora_form peft, diffusers")
    return write_adapter(read_adapter(file, ema=how.weights == "ema"), target, how.lora_form, how.dtype)


def _convert_network(
    file: TensorFile, target: Path, how: Conversion, adapters: list[Adapter], progress: bool
) -> list[Path]:
    if adapters and not how.merge and how.lora_form != "infile":
        raise ConfigError(
            f"{file.path}: with LoRA adapters say what becomes of them: merge (into the weights), lora_form infile (beside "
            "them), peft or diffusers (the adapters alone)"
        )
    if (how.merge or how.lora_form) and not adapters:
        raise ConfigError(f"{file.path}: nothing to merge or rewrite: the file has no LoRA adapters and none are given")
    selection = select_weights(file.keys(), ema=how.weights == "ema", dialect=how.source, where=file.path)
    # Names without adapters: `x.base_layer.weight` stands for `x.weight`.
    native = {plain_name(name): key for name, key in selection.network.items() if not is_adapter_key(name)}
    recognised = recognise({key: file.shape(key) for key in selection.network.values()}, file.path)
    # Nothing assumed: such a configuration is neither checked against nor written down.
    config = how.config or stated_config(recognised, file) or (recognised.config if recognised.name else None)
    if config is not None:
        net = build_dit(config, device="meta")
        found = {name: file.shape(key) for name, key in native.items()}
        require_match(found, shapes_of(net.state_dict()), file.path)
    for adapter in adapters:
        if foreign := [module for module in adapter.layers if f"{module}.weight" not in native]:
            raise CheckpointError(f"{adapter.where}: adapts {foreign[0]!r}, which {file.path} does not have")

    sidecar = None
    if how.to == "diffusers":
        sidecar = json.dumps(diffusers_config(config or recognised.require_config(file.path)), indent=2) + "\n"
    entries = _network_entries(file, native, how, adapters)
    names = translated_names([entry.name for entry in entries], "predict2", how.to)
    prefix = "" if how.to == "diffusers" else "net."
    entries = [dataclasses.replace(entry, name=prefix + names[entry.name]) for entry in entries]
    entries += _logvar_entries(file, selection.logvar, how)
    if how.to == "predict2" and (foreign := [e.name for e in entries if e.name.split(".")[1] in _ONLY_PREDICT1]):
        logger.info("Cosmos-Predict2's own software has no {}; they keep their Predict1 names", foreign)
    if target.suffix not in (".pt", ".pth", ".safetensors"):
        target = target / ("diffusion_pytorch_model.safetensors" if how.to == "diffusers" else "model.safetensors")
    metadata = {METADATA_KEY: config_to_json(config)} if config is not None and not how.lora_form else {}
    most = how.max_shard_bytes
    files = write_with_bar(target, entries, progress, max_shard_bytes=most, metadata=metadata)
    if sidecar is not None:
        atomic_write_text(target.parent / "config.json", sidecar)
        files.append(target.parent / "config.json")
    return files


_ONLY_PREDICT1 = ("repeat_frame_embedding", "traj_embeddings", "augment_sigma_embedder")


def _network_entries(file: TensorFile, native: dict[str, str], how: Conversion, adapters: list[Adapter]) -> list[Entry]:
    """Return the network's tensors under native names, adapters merged into them or beside them."""
    adapted = {module for adapter in adapters for module in adapter.layers}
    entries = []
    for name, key in native.items():
        module, _, leaf = name.rpartition(".")
        dtype = file.dtype(key)
        dtype = how.dtype or dtype if dtype.is_floating_point else dtype

        def load(key: str = key, module: str = module, leaf: str = leaf, dtype: torch.dtype = dtype) -> Tensor:
            tensor = file.get(key)
            if how.merge and leaf == "weight" and module in adapted:
                tensor = merged(tensor, module, adapters)
            return tensor.to(dtype)

        if not how.merge and module in adapted:
            name = f"{module}.base_layer.{leaf}"
        entries.append(Entry(name, file.shape(key), dtype, load))
    if not how.merge:
        if len(adapters) > 1:
            raise ConfigError("the in-file form holds one adapter; merge, or give one --lora")
        for adapter in adapters:
            entries += matrices(adapter, {module: module for module in adapter.layers}, how.dtype, suffix=".default")
    return entries


def _logvar_entries(file: TensorFile, logvar: dict[str, str], how: Conversion) -> list[Entry]:
    """Return the log-variance head, float32 as published; it is no part of the network and diffusers has none."""
    if logvar and how.to == "diffusers":
        logger.info("left out: {} (the training loss's log-variance head, no part of the network)", list(logvar))
        return []
    return [dataclasses.replace(file_entry(file, key), name=name) for name, key in logvar.items()]

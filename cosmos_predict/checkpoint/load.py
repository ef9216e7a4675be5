"""Reading published files into a DiT: strictly, tensor by tensor, whatever their dialect."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor, nn

from cosmos_predict.checkpoint.accounting import PATCH_WEIGHT, require_match
from cosmos_predict.checkpoint.dialects import detect_dialect, is_ignored, to_native, unwrap_key
from cosmos_predict.checkpoint.metadata import network_config
from cosmos_predict.checkpoint.recognise import Recognised, recognise
from cosmos_predict.errors import CheckpointError
from cosmos_predict.io.accounting import shapes_of
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import DiT, build_dit
from cosmos_predict.networks.lora import inject_lora
from cosmos_predict.networks.patch import grow_patch_weight
from cosmos_predict.parallel.shards import Part, own, part_of

Source = TensorFile | Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which tensors of a file are asked for. network: native name -> key in the file; logvar: name -> key."""

    network: dict[str, str]
    logvar: dict[str, str]


def select_weights(
    keys: Iterable[str], *, ema: bool = False, dialect: str | None = None, where: object = "the file"
) -> Selection:
    """Sort the keys of a file: the network's regular or EMA weights, under native names, and the log-variance head's.

    A file whose own name says `ema` (`iter_..._ema_model.pt`, `..._ema_bf16.pt`) holds EMA weights under `net.`.
    Names that the dialect does not know are kept as they are, for the accounting to show.

    Raises CheckpointError when the weights asked for are not in the file.
    """
    names = [(key, *unwrap_key(key)) for key in keys if not is_ignored(key)]
    logvar = {name: key for key, part, name in names if part == "logvar"}
    parts = {part for _, part, _ in names} - {"logvar"}
    part = "ema" if ema else "reg"
    if ema and parts == {"reg"} and re.search(r"(^|[_\-.])ema([_\-.]|$)", Path(str(where)).name):
        part = "reg"
    if part not in parts and parts:
        wanted, found, advice = "regular", "EMA weights (net_ema.*)", "ask for EMA (ema=True, --load_ema)"
        if ema:
            wanted, found, advice = "EMA", "regular weights (net.*)", "load without EMA, or give the file of the EMA"
        raise CheckpointError(f"{where}: {wanted} weights asked for, but the file has only {found}: {advice}")
    chosen = {name: key for key, its_part, name in names if its_part == part}
    dialect = dialect or detect_dialect(chosen) or "predict2"
    return Selection({to_native(name, dialect) or name: key for name, key in chosen.items()}, logvar)


def load_network(
    path: str | os.PathLike[str],
    *,
    ema: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    config: DiTConfig | None = None,
    lora_alpha: float | None = None,
) -> DiT:
    """Return the network of a published file (`.pt`, `.safetensors`, a sharded folder, diffusers' `transformer` folder).

    Args:
        path: the file or folder. Its dialect, and its configuration where published, are told from keys and shapes.
        ema: load the EMA weights.
        device: where the weights go; "meta" only checks names and shapes.
        dtype: of the weights; None keeps the file's.
        config: for a network that shapes do not determine (`recognise` says what is missing).
        lora_alpha: of adapters inside the file, which stores none; None is their rank, as published.

    Memory is the model and one tensor more. Raises CheckpointError (with a table of what does not fit), and what
    `io.tensors.TensorFile` raises.
    """
    with TensorFile(path) as file:
        selection = select_weights(file.keys(), ema=ema, where=path)
        shapes = {name: file.shape(key) for name, key in selection.network.items()}
        if config is None:
            recognised = recognise({key: file.shape(key) for key in selection.network.values()}, path)
            config = network_config(recognised, file)
            _log(recognised, config, path)
        if dtype is None:
            dtype = file.dtype(selection.network[PATCH_WEIGHT]) if PATCH_WEIGHT in shapes else torch.bfloat16
        net = build_dit(config, device="meta", dtype=dtype)
        if any(".lora_A." in name for name in shapes):
            _inject_lora(net, shapes, lora_alpha)
        load_state(net, file, ema=ema, device=device)
    return net


def load_state(
    net: nn.Module,
    source: Source,
    *,
    ema: bool = False,
    dialect: str | None = None,
    device: torch.device | str | None = None,
    where: object = None,
    strict: bool = True,
) -> None:
    """Fill `net` with the weights of an open file or state dict, strictly, one tensor at a time.

    Parameters on the meta device are replaced by tensors of their dtype on `device` (default CPU); others are copied into,
    sharded ones by reading this rank's part alone.
    Nothing is changed unless every name and shape fits. Raises CheckpointError with a table of what does not. Not `strict`,
    tensors that do not fit are logged and left as they are, but one must fit.
    """
    where = where or getattr(source, "path", "the given state")
    selection = select_weights(source.keys(), ema=ema, dialect=dialect, where=where)
    found = {name: _shape(source, key) for name, key in selection.network.items()}
    parameters = dict(net.state_dict(keep_vars=True))
    expected = shapes_of(parameters)
    unfit = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
    if strict or not found.keys() - unfit:
        require_match(found, expected, where)
    elif unfit:
        logger.warning("{}: {} tensors do not fit and are left: {}", where, len(unfit), sorted(unfit)[:8])
    if device is not None and torch.device(device).type == "meta":
        return
    for name, key in selection.network.items():
        if name not in unfit:
            _fill(net, name, parameters[name], _get(source, key, part_of(parameters[name])), device)


@torch.no_grad()
def load_log_variance(head: nn.Module, source: Source) -> None:
    """Fill a log-variance head (Predict1's `logvar.*`, outside `net.`); raises CheckpointError when the file has none."""
    named = ((unwrap_key(key), key) for key in source)
    keys = {name.removeprefix("logvar."): key for (part, name), key in named if part == "logvar"}
    found = {name: _shape(source, key) for name, key in keys.items()}
    require_match(found, shapes_of(head.state_dict()), f"{getattr(source, 'path', 'the state')} (logvar)")
    for name, tensor in head.state_dict().items():
        own(tensor).copy_(_get(source, keys[name], part_of(tensor)))


def grow_from_base(net: DiT, source: Source, *, ema: bool = False) -> list[str]:
    """Start `net`, already initialised, from a base with fewer inputs or controls; return the names that stay new.

    Patch columns move by channel name: new channels get zero columns, channels that `net` lacks are dropped with a warning,
    and so are the modules of controls that only the base has. Everything else must fit exactly: CheckpointError with the
    table otherwise.
    """
    where = getattr(source, "path", "the base")
    selection = select_weights(source.keys(), ema=ema, where=where)
    found = {name: _shape(source, key) for name, key in selection.network.items()}
    parameters = dict(net.state_dict(keep_vars=True))
    fields, controls = recognise(found).fields, _control_names(net.config)
    new = [name for name in parameters if name not in found and name in controls]
    channels = fields["input_channels"]
    base_controls = _control_names(net.config.replace(controls=fields["controls"], input_channels=channels))
    old_only = [name for name in found if name not in parameters and name in base_controls]
    if old_only:
        modules = sorted({name.rpartition(".")[0] for name in old_only})
        logger.warning("{}: dropped, the network has no such control: {}", where, modules)
    expected = {name: shape for name, shape in shapes_of(parameters).items() if name not in new}
    columns = sum(size for _, size in channels) * net.config.patch_volume
    expected[PATCH_WEIGHT] = (net.config.model_channels, columns)
    require_match({name: shape for name, shape in found.items() if name not in old_only}, expected, where)
    for name, key in selection.network.items():
        if name in old_only:
            continue
        part = part_of(parameters[name])
        if name == PATCH_WEIGHT:
            whole = _get(source, key)
            value = grow_patch_weight(whole, channels, net.config.input_channels, net.config.patch_volume)[part or ()]
        else:
            value = _get(source, key, part)
        _fill(net, name, parameters[name], value, None)
    return new


def _control_names(config: DiTConfig) -> set[str]:
    """Return the names of all parameters that a network of `config` has through its controls."""
    with_controls, plain = (build_dit(c, device="meta") for c in (config, config.replace(controls=())))
    return set(with_controls.state_dict()) - set(plain.state_dict())


def _log(recognised: Recognised, config: DiTConfig, path: object) -> None:
    what = recognised.name or f"a {recognised.family} {recognised.size} {recognised.task} network"
    note = "; ".join(f"assumed: {text}" for text in recognised.assumed)
    note = note if config == recognised.config else "configuration from the file"
    logger.info("{}: {}, dialect {}{}", path, what, recognised.dialect, f"; {note}" if note else "")


def _inject_lora(net: DiT, shapes: Mapping[str, tuple[int, ...]], alpha: float | None) -> None:
    """Put adapters where a file in the published in-file form has them. It stores no alpha; published: alpha = rank."""
    ranks: dict[tuple[str, int], list[str]] = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(r"(.+)\.lora_A\.(\w+)\.weight", name):
            ranks.setdefault((match[2], shape[0]), []).append(match[1])
    for (adapter, rank), modules in ranks.items():
        inject_lora(net, rank=rank, alpha=alpha, targets=modules, adapter=adapter)
        logger.info("LoRA adapter {!r}: rank {} on {} layers, alpha {:g}", adapter, rank, len(modules), alpha or rank)


@torch.no_grad()
def _fill(net: nn.Module, name: str, old: Tensor, value: Tensor, device: torch.device | str | None) -> None:
    """Copy `value` into what this rank holds of the parameter `old`, or put it in place of one on the meta device."""
    if not old.is_meta:
        own(old).copy_(value)
        return
    module_name, _, leaf = name.rpartition(".")
    module = net.get_submodule(module_name)
    value = value.to(device=device or "cpu", dtype=old.dtype)
    if isinstance(old, nn.Parameter):
        module.register_parameter(leaf, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        module.register_buffer(leaf, value)


def _shape(source: Source, key: str) -> tuple[int, ...]:
    return source.shape(key) if isinstance(source, TensorFile) else tuple(source[key].shape)


def _get(source: Source, key: str, part: Part | None = None) -> Tensor:
    if isinstance(source, TensorFile):
        return source.get(key, part)
    return source[key] if part is None else source[key][part]

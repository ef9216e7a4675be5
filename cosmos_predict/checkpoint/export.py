"""Published checkpoint files of a run, written tensor by tensor: `net.*` in bfloat16 and `net_ema.*` in float32, or adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from cosmos_predict.checkpoint.dialects import translated_names
from cosmos_predict.checkpoint.lora_forms import network_adapter, write_adapter
from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.checkpoint.stream import Entry, write_tensors
from cosmos_predict.io.atomic import atomic_write_text


def export_checkpoint(
    folder: RunFolder,
    iteration: int,
    weights: Mapping[str, Entry],
    ema: Mapping[str, Entry] | None,
) -> None:
    """Write the published files of `iteration` in the folder's layout.

    weights, ema: the model's tensors by full name, `net.*` native and perhaps `logvar.*`; each is read when its turn comes.
    Layout `predict2`: one file with `net.*` and `net_ema.*`, and `latest_checkpoint.txt` last. Layout `predict1`:
    `..._reg_model.pt` and `..._ema_model.pt`, both in Predict1's names under `net.`.
    """
    paths = folder.exports(iteration)
    if folder.layout == "predict1":
        write_tensors(paths["reg"], _entries(weights, "predict1", "net.", torch.bfloat16))
        if ema is not None:
            write_tensors(paths["ema"], _entries(ema, "predict1", "net.", torch.float32))
    else:
        entries = _entries(weights, "predict2", "net.", torch.bfloat16)
        if ema is not None:
            entries += _entries(ema, "predict2", "net_ema.", torch.float32)
        write_tensors(paths["both"], entries)
    atomic_write_text(folder.checkpoints / "latest_checkpoint.txt", f"iter_{iteration:09d}.pt\n")


def export_adapters(
    folder: RunFolder,
    iteration: int,
    net: nn.Module,
    weights: Mapping[str, Entry],
    ema: Mapping[str, Entry] | None,
    identity: Mapping[str, Any],
) -> None:
    """Write the adapters of `iteration` in PEFT's format, in the dtype they have.

    net: the adapted network; weights, ema: trained tensors by full name (`net.*`); identity: `base`, `base_hash` and `made_for`.
    """
    for part, tensors in (("reg", weights), ("ema", ema)):
        if tensors is not None:
            tensors = {name.removeprefix("net."): tensor for name, tensor in tensors.items()}
            base, mark, kind = (identity.get(name) for name in ("base", "base_hash", "made_for"))
            adapter = network_adapter(net, tensors=tensors, base=base, base_hash=mark, made_for=kind)
            write_adapter(adapter, folder.adapters(iteration)[part])
    atomic_write_text(folder.checkpoints / "latest_checkpoint.txt", f"iter_{iteration:09d}_lora\n")


def check_exportable(layout: str, names: Iterable[str]) -> None:
    """Raise CheckpointError listing the weights (`net.*` names) that the layout's dialect has no name for."""
    translated_names([name.removeprefix("net.") for name in names if name.startswith("net.")], "predict2", layout)


def _entries(tensors: Mapping[str, Entry], dialect: str, prefix: str, dtype: torch.dtype) -> list[Entry]:
    native = [name.removeprefix("net.") for name in tensors if name.startswith("net.")]
    names = translated_names(native, "predict2", dialect)
    entries = []
    for name, tensor in tensors.items():
        if name.startswith("net."):
            key, kind = prefix + names[name.removeprefix("net.")], dtype
        elif prefix == "net.":  # the log-variance head lies outside `net.` and keeps its precision
            key, kind = name, tensor.dtype
        else:
            continue
        entries.append(Entry(key, tensor.shape, kind, lambda t=tensor, d=kind: t.load().to(d)))
    return entries

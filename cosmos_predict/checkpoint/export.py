"""Published checkpoint files of a run: `net.*` in bfloat16 and `net_ema.*` in float32, written tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cosmos_predict.checkpoint.dialects import translated_names
from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.checkpoint.stream import Entry, write_tensors
from cosmos_predict.io.atomic import atomic_write_text
from cosmos_predict.parallel.mesh import Mesh
from cosmos_predict.parallel.shards import whole


def export_checkpoint(
    folder: RunFolder,
    iteration: int,
    weights: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None,
    mesh: Mesh | None = None,
) -> None:
    """Write the published files of `iteration` in the folder's layout. Every rank of `mesh` must call this.

    weights, ema: the model's tensors by full name, `net.*` native and perhaps `logvar.*`; sharded ones are gathered one
    at a time, and the main rank writes. Layout `predict2`: one file with `net.*` and `net_ema.*`, and
    `latest_checkpoint.txt` last. Layout `predict1`: `..._reg_model.pt` and `..._ema_model.pt`, both in Predict1's names
    under `net.`.
    """
    mesh = mesh or Mesh()
    paths = folder.exports(iteration)
    if folder.layout == "predict1":
        _write(paths["reg"], _entries(weights, "predict1", "net.", torch.bfloat16), mesh)
        if ema is not None:
            _write(paths["ema"], _entries(ema, "predict1", "net.", torch.float32), mesh)
    else:
        entries = _entries(weights, "predict2", "net.", torch.bfloat16)
        if ema is not None:
            entries += _entries(ema, "predict2", "net_ema.", torch.float32)
        _write(paths["both"], entries, mesh)
    if mesh.is_main:
        atomic_write_text(folder.checkpoints / "latest_checkpoint.txt", f"iter_{iteration:09d}.pt\n")


def _write(path: Path, entries: list[Entry], mesh: Mesh) -> None:
    if mesh.is_main:
        write_tensors(path, entries)
    else:  # a .pt is written in the order of its entries: gather along
        for entry in entries:
            entry.load()


def check_exportable(layout: str, names: Iterable[str]) -> None:
    """Raise CheckpointError listing the weights (`net.*` names) that the layout's dialect has no name for."""
    translated_names([name.removeprefix("net.") for name in names if name.startswith("net.")], "predict2", layout)


def _entries(tensors: Mapping[str, Tensor], dialect: str, prefix: str, dtype: torch.dtype) -> list[Entry]:
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
        entries.append(Entry(key, tuple(tensor.shape), kind, lambda t=tensor, d=kind: whole(t, d)))
    return entries

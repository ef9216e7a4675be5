"""Whether the ranks that share samples hold the same ones: what they compute parts of must be one thing.

Each rank of a context or tensor group reads the samples itself. A clip that one of them alone cannot read is replaced
there alone, and sums over parts of different clips would go on without an error, with weights that drift apart.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_predict.errors import DataError
from cosmos_predict.parallel.mesh import Mesh

KEPT_VALUES = 65_536  # of each tensor: all of a small one, evenly spaced ones of a large one


def exchange_fingerprint(mesh: Mesh, batch: Mapping[str, Any], device: torch.device) -> Tensor | None:
    """Compare `batch` over the ranks that share samples; None where none are shared. `refuse_different` reads the answer.

    device: of the exchange, int64 (2,), which the host does not wait for: the largest fingerprint, and the smallest negated.
    """
    groups = [mesh.context] if mesh.context is not None else []
    groups += [mesh.tensor.get_group()] if mesh.tensor is not None else []
    if not groups:
        return None
    own = fingerprint(batch)
    extremes = torch.tensor([own, -own], device=device)
    for group in groups:
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
    return extremes


def refuse_different(mesh: Mesh, exchanged: Sequence[tuple[Tensor, Tensor | None]]) -> None:
    """Raise DataError, on all ranks that share samples, unless they hold the same ones; waits for the device.

    exchanged: sample numbers (B,) of each micro-batch and what `exchange_fingerprint` returned of it.
    """
    for samples, extremes in exchanged:
        if extremes is not None and extremes.sum():  # the largest less the smallest
            numbers = ", ".join(str(int(number)) for number in samples)
            raise DataError(
                f"sample(s) {numbers}: the {mesh.sizes.context * mesh.sizes.tensor} processes that share them (context and "
                "tensor parallel) read different data. The file system gave one of them another clip or other bytes: its own "
                "log names a clip that it replaced. See that every machine can read it; the same command then resumes the run"
            )


def fingerprint(batch: Mapping[str, Any]) -> int:
    """Return 32 bits of the tensors of `batch`: sample numbers, pixels or latents, text. Paths may differ by machine."""
    bits = 0
    for name, value in sorted(batch.items()):
        if isinstance(value, Tensor):
            flat = value.detach().reshape(-1)
            values = flat[:: flat.numel() // KEPT_VALUES + 1].contiguous().cpu()
            bits = zlib.crc32(f"{name}{tuple(value.shape)}".encode(), bits)
            bits = zlib.crc32(values.view(torch.uint8).numpy().tobytes(), bits)
    return bits

"""This rank's part of a tensor: the one place that knows how a DTensor lies over the ranks. Plain tensors are whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

Part = tuple[slice, ...]


def part_of(tensor: Tensor) -> Part | None:
    """Return which slice of the whole this rank holds of a DTensor; None for a plain tensor, which is whole."""
    if not is_sharded(tensor):
        return None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # slow, and only for shards

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)  # type: ignore[attr-defined]
    # An empty shard's offset may lie past the end, where a slice is empty too.
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


def is_sharded(tensor: Tensor) -> bool:
    """Return whether `tensor` is a DTensor. (Asked by attribute: importing the class costs inference half a second.)"""
    return hasattr(tensor, "placements")


def own(tensor: Tensor) -> Tensor:
    """Return the plain tensor that this rank holds of `tensor`, sharing its memory."""
    with torch.no_grad():  # to detach a DTensor takes 40 microseconds, which is a lot for every tensor of every step
        return (tensor.to_local() if is_sharded(tensor) else tensor).detach()  # type: ignore[operator]


def whole(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the whole of `tensor` in `dtype`, gathered from all ranks: every rank of its mesh must call this."""
    tensor = tensor.detach().to(dtype or tensor.dtype)
    if not is_sharded(tensor):
        return tensor
    placements = list(tensor.placements)  # type: ignore[attr-defined]
    for dim, placement in enumerate(placements):
        # Summands are added up over one mesh dimension after another: torch warns of several at once.
        if placement.is_partial():
            from torch.distributed.tensor import Replicate

            placements[dim] = Replicate()
            tensor = tensor.redistribute(placements=placements)  # type: ignore[operator]
    return tensor.full_tensor()  # type: ignore[operator]


def divided_over(tensor: Tensor) -> tuple[ProcessGroup, ...]:
    """Return the groups of ranks that hold parts of `tensor`, none of which alone is the whole; () for a whole one."""
    if not is_sharded(tensor):
        return ()
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    return tuple(mesh.get_group(dim) for dim, placement in enumerate(placements) if not placement.is_replicate())


def lies_over(tensor: Tensor, axis: str) -> bool:
    """Return whether the mesh dimension called `axis` is one of those that `tensor` lies over."""
    return is_sharded(tensor) and axis in (tensor.device_mesh.mesh_dim_names or ())  # type: ignore[attr-defined]


def holds_rows(tensor: Tensor) -> bool:
    """Return whether every rank holds all of `tensor`, or a run of its whole rows."""
    placements = tensor.placements if is_sharded(tensor) else ()  # type: ignore[attr-defined]
    return all(placement.is_replicate() or getattr(placement, "dim", None) == 0 for placement in placements)


def lay_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the DTensor `tensor` as one that lies over the ranks as the DTensor `like` does; plain tensors stay."""
    if not (is_sharded(tensor) and is_sharded(like)) or tensor.placements == like.placements:  # type: ignore[attr-defined]
        return tensor
    return tensor.redistribute(placements=like.placements)  # type: ignore[operator]


def shard_like(part: Tensor, like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return `part`, what this rank holds, as a tensor that lies over the ranks as `like` does, on its device.

    shape: of the whole, where it is not that of `like`.
    """
    part = part.to(like.device)
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=like.shape if shape is None else torch.Size(shape),
        stride=like.stride() if shape is None else torch.empty(shape, device="meta").stride(),
    )

"""Growing the patch embedding: columns move with the *names* of the input channels, never by position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from loguru import logger
from torch import Tensor

from cosmos_predict.errors import ConfigError

Channels = Sequence[tuple[str, int]]


def grow_patch_weight(weight: Tensor, old_channels: Channels, new_channels: Channels, patch_volume: int) -> Tensor:
    """Return a patch weight `(D, c_new * patch_volume)` for `new_channels` made from one `(D, c_old * patch_volume)`.

    A channel of both lists keeps its columns at its new place; a new name gets zero columns, so that the network's output
    is the base's for every value of that channel; a name that the new list lacks is dropped with a warning.
    The column index is `(channel, frame, row, column)`, channel slowest.

    Raises ConfigError when `weight` does not belong to `old_channels` or a name changes its number of channels.
    """
    old_size = sum(size for _, size in old_channels) * patch_volume
    if weight.ndim != 2 or weight.shape[1] != old_size:
        what = f"a patch weight of shape {tuple(weight.shape)} does not belong to the channels {list(old_channels)}"
        raise ConfigError(f"{what}: these have {old_size} columns")
    sizes = [size * patch_volume for _, size in old_channels]
    columns = dict(zip([name for name, _ in old_channels], weight.split(sizes, dim=1), strict=True))
    grown = []
    for name, size in new_channels:
        part = columns.pop(name, weight.new_zeros(weight.shape[0], size * patch_volume))
        if part.shape[1] != size * patch_volume:
            what = f"{part.shape[1] // patch_volume} channels in the base and {size} in the grown network"
            raise ConfigError(f"input channel {name!r} has {what}; a changed channel needs a new name")
        grown.append(part)
    if columns:
        names = [name for name, _ in new_channels]
        text = "input channels {} of the base are not among the network's {}: their patch columns are dropped"
        logger.warning(text, list(columns), names)
    return torch.cat(grown, dim=1)

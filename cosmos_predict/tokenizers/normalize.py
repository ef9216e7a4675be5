"""The latent normaliser: one table for every tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.tensors import load_torch_file


class LatentNormalizer:
    """(z - mean) / std by latent channel, and for tables of several columns by latent frame.

    mean, std: (C, n) or (C,) float; n = 1 (the same for every frame) or the number of latent frames that have statistics.
    round_to: round the tables to this dtype first, as published code does when it runs in bfloat16 (off by default).
    The tables are constants in float32 on the CPU (not buffers: they are in no state dict and survive `to_empty`), moved
    to the latent's device on use.
    """

    def __init__(
        self, mean: Tensor | Sequence[float], std: Tensor | Sequence[float], *, round_to: torch.dtype | None = None
    ) -> None:
        tables = []
        for name, values in (("mean", mean), ("std", std)):
            table = torch.as_tensor(values, dtype=torch.float32, device="cpu").detach().clone()
            table = table[:, None] if table.ndim == 1 else table
            if table.ndim != 2:
                raise ConfigError(f"latent {name} of shape {tuple(table.shape)}: expected (C,) or (C, frames)")
            tables.append(table if round_to is None else table.to(round_to).float())
        self.mean, self.std = tables
        if self.mean.shape != self.std.shape:
            raise ConfigError(f"latent mean {tuple(self.mean.shape)}, std {tuple(self.std.shape)}: expected one shape")
        if not bool((self.std > 0).all()):
            raise ConfigError(f"latent std holds {self.std.min().item():g}: expected positive numbers")

    def normalize(self, latent: Tensor, chunk: int | None = None) -> Tensor:
        """Return (latent - mean) / std for (B, C, t, h, w); with `chunk`, columns start again every `chunk` frames."""
        mean, std = self._tables(latent, chunk)
        return (latent - mean) / std

    def denormalize(self, latent: Tensor, chunk: int | None = None) -> Tensor:
        """Return latent * std + mean, the inverse of `normalize`."""
        mean, std = self._tables(latent, chunk)
        return latent * std + mean

    def _tables(self, latent: Tensor, chunk: int | None) -> tuple[Tensor, Tensor]:
        """Return mean and std as (1, C, t or 1, 1, 1) in the latent's dtype and on its device."""
        (channels, columns), frames = self.mean.shape, latent.shape[2]
        if latent.shape[1] != channels:
            raise ConfigError(f"latent of {latent.shape[1]} channels: the normaliser's table has {channels}")
        mean, std = self.mean, self.std
        if columns > 1:
            period = min(frames, chunk or frames)
            if period > columns:
                what = f"{period} latent frames in one chunk: the latent statistics cover {columns}"
                raise ConfigError(f"{what}; encode in chunks (pixel_chunk_duration)")
            index = torch.arange(frames, device="cpu") % period
            mean, std = mean[:, index], std[:, index]
        return tuple(table[None, :, :, None, None].to(latent) for table in (mean, std))  # pyright: ignore


def read_mean_std(path: str | os.PathLike[str], channels: int = 16) -> LatentNormalizer:
    """Read a published `mean_std.pt`: a pair (mean, std), each C or C * frames numbers, channel by channel.

    Raises CheckpointError for other contents, and the errors of `load_torch_file`.
    """
    pair = load_torch_file(path)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(x, Tensor) for x in pair):
        raise CheckpointError(f"{path}: holds a {type(pair).__name__}, expected a pair of tensors (mean, std)")
    if any(x.numel() % channels or not x.numel() for x in pair):
        sizes = " and ".join(str(x.numel()) for x in pair)
        raise CheckpointError(f"{path}: holds {sizes} numbers, expected a multiple of {channels} channels")
    mean, std = (x.float().reshape(channels, -1) for x in pair)
    return LatentNormalizer(mean, std)

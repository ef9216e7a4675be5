"""Generated clips of which one has text of NaN, for runs that must skip its update on all ranks."""

from __future__ import annotations

from typing import Any

from cosmos_predict.config.lazy import configurable
from cosmos_predict.data.synthetic import SyntheticDataset

BROKEN = 5  # with two samples per update the second one of update 3: that of rank 1 of two


@configurable
class BrokenSample(SyntheticDataset):
    """`SyntheticDataset` with text of NaN in one sample."""

    def __getitem__(self, sample_number: int) -> dict[str, Any]:
        sample = super().__getitem__(sample_number)
        if sample_number == BROKEN:
            sample["t5_text_embeddings"].fill_(float("nan"))
        return sample

"""Random draws as a function of (seed, global sample number, purpose), never of rank, worker or accumulation step.

Imports nothing of the package; everything may import it. Torch is imported only where a torch generator is asked for.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive_seed(seed: int, sample_number: int, purpose: str) -> int:
    """Return a 63-bit seed that depends on all three arguments, the same on every machine.

    `purpose` separates independent draws of one sample: "window", "sigma", "noise", "dropout", ...
    """
    digest = hashlib.sha256(f"{int(seed)}:{int(sample_number)}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def numpy_generator(seed: int, sample_number: int, purpose: str) -> np.random.Generator:
    """Return a numpy generator for one draw of one sample."""
    import numpy as np

    return np.random.Generator(np.random.PCG64(derive_seed(seed, sample_number, purpose)))


def torch_generator(seed: int, sample_number: int, purpose: str) -> torch.Generator:
    """Return a CPU torch generator for one draw of one sample (CPU, so that the draw does not depend on the device)."""
    import torch

    return torch.Generator("cpu").manual_seed(derive_seed(seed, sample_number, purpose))

"""Weights that are a function of their names: the same float32 numbers on every machine and torch version.

The rule is that of the golden cases: a tensor's generator is numpy's PCG64, seeded with the first eight bytes,
little-endian, of sha256("SEED:NAME"), NAME being its key in the state dict.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np


def filled_weight(name: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Return the float32 array of `shape` that belongs to the tensor `name` under `seed`.

    Matrices and kernels: standard normal over the square root of fan-in (the product of all axes but the first).
    Vectors and scalars: gains (last name part weight, gamma or scale) 1 + 0.1 x normal, all others 0.1 x normal.
    """
    seed_bytes = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(seed_bytes, "little")))
    normal = generator.standard_normal(tuple(shape))  # float64, rounded once at the end
    if len(shape) > 1:
        filled = normal / math.sqrt(max(1, math.prod(shape[1:])))
    elif name.split(".")[-1] in ("weight", "gamma", "scale"):
        filled = 1.0 + 0.1 * normal
    else:
        filled = 0.1 * normal
    return np.asarray(filled, dtype=np.float32)

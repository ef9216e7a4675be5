"""Scaled dot-product attention through one function over backends; the network never names one.

Backends: `sdpa` (torch, the default: flash, cuDNN or efficient kernels on a GPU, a flash kernel on a CPU), `flash_attn_2`,
`flash_attn_3`, `transformer_engine`. One that cannot run here is refused with what to install.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from cosmos_predict.errors import ConfigError, MissingDependencyError

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v for q `(B, N, heads, d)` and k, v `(B, M, heads, d)`, without mask: `(B, N, heads, d)`."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def _flash_attn_2() -> Attention:
    from flash_attn import flash_attn_func  # type: ignore[import-not-found]

    return flash_attn_func


def _flash_attn_3() -> Attention:
    from flash_attn_interface import flash_attn_func  # type: ignore[import-not-found]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash_attn_func(q, k, v)
        return out[0] if isinstance(out, tuple) else out

    return run


def _transformer_engine() -> Attention:
    from transformer_engine.pytorch import DotProductAttention  # type: ignore[import-not-found]

    modules: dict[tuple[int, int], Attention] = {}

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, size = q.shape[2:]
        if (heads, size) not in modules:
            modules[heads, size] = DotProductAttention(heads, size, qkv_format="bshd", attn_mask_type="no_mask")
        return modules[heads, size](q, k, v).unflatten(-1, (heads, size))

    return run


_BACKENDS: dict[str, tuple[Callable[[], Attention], str]] = {
    "sdpa": (lambda: sdpa, "torch"),
    "flash_attn_2": (_flash_attn_2, "flash-attn (pip install 'cosmos_predict[gpu]')"),
    "flash_attn_3": (_flash_attn_3, "flash-attn 3, built from its hopper/ folder, on a Hopper GPU"),
    "transformer_engine": (_transformer_engine, "transformer-engine (pip install 'cosmos_predict[gpu]')"),
}


def attention_backend(name: str) -> Attention:
    """Return the attention function of backend `name`: (q, k, v) in `(B, N, heads, d)` layout -> `(B, N, heads, d)`.

    Raises ConfigError for an unknown name and MissingDependencyError, with what to install, for one that is absent.
    """
    if name not in _BACKENDS:
        raise ConfigError(f"attention_backend={name!r} is unknown; choose one of {', '.join(_BACKENDS)}")
    load, package = _BACKENDS[name]
    try:
        return load()
    except (ImportError, OSError) as error:
        advice = "Or use attention_backend='sdpa'."
        raise MissingDependencyError(f"attention_backend={name!r} needs {package}: {error}. {advice}") from error

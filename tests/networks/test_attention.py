"""Attention backends: what SDPA computes, and the refusals."""

import importlib.util

import pytest
import torch

from cosmos_predict.errors import ConfigError, MissingDependencyError
from cosmos_predict.networks.attention import attention_backend
from cosmos_predict.networks.dit import build_dit
from tests.networks.variants import VARIANTS

OPTIONAL = {
    "flash_attn_2": ("flash_attn", r"flash-attn \(pip install 'cosmos_predict\[gpu\]'\)"),
    "flash_attn_3": ("flash_attn_interface", "flash-attn 3, built from its hopper/ folder, on a Hopper GPU"),
    "transformer_engine": ("transformer_engine", r"transformer-engine \(pip install 'cosmos_predict\[gpu\]'\)"),
}


def test_sdpa_is_softmax_attention_over_all_keys() -> None:
    q, k, v = torch.randn(2, 5, 3, 8), torch.randn(2, 7, 3, 8), torch.randn(2, 7, 3, 8)
    weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / 8**0.5).softmax(-1)
    expected = torch.einsum("bhnm,bmhd->bnhd", weights, v)
    torch.testing.assert_close(attention_backend("sdpa")(q, k, v), expected)


def test_unknown_backend() -> None:
    message = "attention_backend='flash' is unknown; choose one of sdpa, flash_attn_2, flash_attn_3, transformer_engine"
    with pytest.raises(ConfigError, match=message):
        attention_backend("flash")
    with pytest.raises(ConfigError, match=message):
        build_dit(VARIANTS["predict2_video2world"].config.replace(attention_backend="flash"), device="meta")


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_absent_package_is_refused_with_what_to_install(name: str) -> None:
    module, package = OPTIONAL[name]
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed here")
    with pytest.raises(MissingDependencyError, match=f"attention_backend='{name}' needs {package}.*{module}") as error:
        attention_backend(name)
    assert "Or use attention_backend='sdpa'" in str(error.value)
    assert isinstance(error.value, ImportError)

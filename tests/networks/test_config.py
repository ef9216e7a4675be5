"""What a network configuration refuses, and what it derives."""

from typing import Any

import pytest

from cosmos_predict.conditions.view import ViewControl
from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.config import DiTConfig

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "heads": (
        {"model_channels": 96, "num_heads": 5},
        r"model_channels=96 is not divisible by num_heads=5; head counts that fit: \[1, 2, 3, 4, 6, 8",
    ),
    "no heads": ({"num_heads": 0}, "not divisible by num_heads=0"),
    "odd head": ({"model_channels": 60, "num_heads": 4}, "the head size 15 .* must be even and at least 12"),
    "small head": ({"model_channels": 64, "num_heads": 8}, "the head size 8 .* must be even and at least 12"),
    "smallest head": ({"model_channels": 8, "num_heads": 4}, "the head size 2 .* must be even and at least 12"),
    "view without its channel": (
        {"controls": (ViewControl(num_views=3, dim=5),)},
        r"ViewControl feeds the input channel 'view', which is not among input_channels \['latent', 'cond_mask', 'padding'\]",
    ),
    "no latent": ({"input_channels": (("padding", 1),)}, r"must start with 'latent' .* got \['padding'\]"),
    "latent later": ({"input_channels": (("padding", 1), ("latent", 16))}, "must start with 'latent'"),
    "twice": ({"input_channels": (("latent", 16), ("view", 1), ("view", 2))}, "name every channel once"),
    "position": ({"extra_pos_emb": "cosine"}, "extra_pos_emb='cosine' is not one of none, learnable, sincos"),
    "init": ({"initialization": "zeros"}, "initialization='zeros' is not 'trunc_normal' or 'xavier'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str) -> None:
    changes, message = REFUSED[what]
    with pytest.raises(ConfigError, match=message):
        DiTConfig(**{"model_channels": 96, "num_blocks": 1, "num_heads": 4, **changes})


def test_head_counts_that_are_proposed_fit() -> None:
    """Every proposal leaves an even head size that is large enough."""
    with pytest.raises(ConfigError) as error:
        DiTConfig(model_channels=96, num_blocks=1, num_heads=5)
    proposals = [int(n) for n in str(error.value).split("[")[1].rstrip("]").split(",")]
    for heads in proposals:
        DiTConfig(model_channels=96, num_blocks=1, num_heads=heads)


def test_derived_sizes() -> None:
    config = DiTConfig(96, 1, 4, input_channels=[["latent", 8], ["padding", 1], ["view", 7]])  # type: ignore[arg-type]
    assert config.input_channels == (("latent", 8), ("padding", 1), ("view", 7))
    assert (config.head_dim, config.in_channels, config.latent_channels, config.patch_volume) == (24, 16, 8, 4)
    assert config.mlp_channels == 384
    assert config.has_channel("view") and not config.has_channel("cond_mask")
    assert not config.projects_text and not config.replace(crossattn_proj_in_channels=1024).projects_text
    assert config.replace(crossattn_proj_in_channels=2048).projects_text

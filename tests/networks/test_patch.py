"""Patch columns move with the names of the channels."""

import pytest
import torch
from loguru import logger

from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.patch import grow_patch_weight

OLD = (("latent", 2), ("padding", 1))


def test_columns_go_where_their_names_are_and_new_ones_are_zero():
    weight = torch.arange(1.0, 1 + 5 * 3 * 4).reshape(5, 12)
    grown = grow_patch_weight(weight, OLD, (("latent", 2), ("cond_mask", 1), ("padding", 1), ("view", 3)), 4)
    assert grown.shape == (5, 28)
    assert torch.equal(grown[:, :8], weight[:, :8]) and torch.equal(grown[:, 12:16], weight[:, 8:])
    assert not grown[:, 8:12].any() and not grown[:, 16:].any()


def test_patch_volume_and_dtype():
    weight = torch.randn(3, 24).bfloat16()
    grown = grow_patch_weight(weight, OLD, (("padding", 1), ("latent", 2)), 8)
    assert grown.dtype == torch.bfloat16 and torch.equal(grown, torch.cat([weight[:, 16:], weight[:, :16]], 1))


def test_a_dropped_name_is_said():
    messages: list[str] = []
    handler = logger.add(messages.append, level="WARNING", format="{message}")
    grown = grow_patch_weight(torch.ones(2, 12), OLD, (("latent", 2),), 4)
    logger.remove(handler)
    assert grown.shape == (2, 8) and "['padding'] of the base are not among the network's ['latent']" in messages[0]


def test_what_does_not_belong_is_refused():
    with pytest.raises(ConfigError, match=r"shape \(2, 13\) does not belong.*these have 12 columns"):
        grow_patch_weight(torch.ones(2, 13), OLD, OLD, 4)
    with pytest.raises(ConfigError, match="'padding' has 1 channels in the base and 2 in the grown network"):
        grow_patch_weight(torch.ones(2, 12), OLD, (("latent", 2), ("padding", 2)), 4)

"""Choices of `optimizer=NAME` for every experiment: which AdamW, by memory. Rate, decay, betas and eps stay as they are."""

from __future__ import annotations

from cosmos_predict.config.lazy import LazyCall as L
from cosmos_predict.config.lazy import LazyDict
from cosmos_predict.config.registry import register_choice, register_group

_COMMON = {"lr": 1e-4, "weight_decay": 0.1, "betas": [0.9, 0.99], "eps": 1e-8}

register_group("optimizer", "optimizer", keep=tuple(_COMMON))
register_choice("optimizer", "adamw", lambda: L("cosmos_predict.training.optimizers.adamw")(**_COMMON))
register_choice(
    "optimizer",
    "adamw8bit",
    lambda: L("cosmos_predict.training.low_memory.adamw8bit")(**_COMMON, seed="${trainer.seed}"),
)


def adamw_bf16() -> LazyDict:
    """With the weights that it is made for."""
    choice = L("cosmos_predict.training.low_memory.adamw_bf16")(**_COMMON, moments="8bit", seed="${trainer.seed}")
    choice["_with_"] = {"model": {"dtype": "bfloat16"}}
    return choice


register_choice("optimizer", "adamw_bf16", adamw_bf16)

"""Choices of `optimizer=NAME` (which AdamW, by memory; rate, decay, betas and eps stay as they are) and `scheduler=NAME`."""

from __future__ import annotations

from cosmos_predict.config.lazy import LazyCall as L
from cosmos_predict.config.lazy import LazyDict
from cosmos_predict.config.registry import register_choice, register_group

_COMMON = {"lr": 1e-4, "weight_decay": 0.1, "betas": [0.9, 0.99], "eps": 1e-8}

register_group("optimizer", "optimizer", keep=tuple(_COMMON))
for _name in ("adamw", "fusedadamw"):  # the published name; both are fused
    register_choice("optimizer", _name, lambda: L("cosmos_predict.training.optimizers.adamw")(**_COMMON))
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

# The published group's values: a warm-up, then the base rate for ever. A schedule with the same keywords keeps its own.
_CYCLES = {"warm_up_steps": [1000], "cycle_lengths": [10**13], "f_start": [1e-6], "f_max": [1.0], "f_min": [1.0]}
_SCHEDULERS = "cosmos_predict.training.schedulers"

register_group("scheduler", "scheduler", keep=tuple(_CYCLES))
register_choice("scheduler", "constant", lambda: L(f"{_SCHEDULERS}.ConstantScheduler")())
register_choice("scheduler", "lambdalinear", lambda: L(f"{_SCHEDULERS}.LambdaLinearScheduler")(**_CYCLES))

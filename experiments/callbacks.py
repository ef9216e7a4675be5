"""What watches a run: the default callbacks of every experiment, and the choices `callbacks=NAME` that add to them.

`callbacks=[validation,samples]` adds several; `~trainer.callbacks.NAME` removes one.
"""

from __future__ import annotations

from typing import Any

from cosmos_predict.config.lazy import LazyCall as L
from cosmos_predict.config.registry import register_choice

_TRAINING = "cosmos_predict.training"


def basic_callbacks() -> dict[str, Any]:
    """Return the callbacks of every experiment. `wandb` acts where WANDB_API_KEY is set, `validation` where
    `trainer.run_validation` is."""
    return {
        "progress": L(f"{_TRAINING}.callbacks.ProgressLine")(),
        "tensorboard": L(f"{_TRAINING}.logging_callbacks.TensorBoard")(),
        "wandb": L(f"{_TRAINING}.logging_callbacks.Wandb")(),
        "validation": L(f"{_TRAINING}.validation.Validation")(enabled="${trainer.run_validation}"),
        "weights": L(f"{_TRAINING}.reports.WeightsReport")(),
    }


register_choice("callbacks", "basic", basic_callbacks)
register_choice("callbacks", "tensorboard", lambda: {"tensorboard": basic_callbacks()["tensorboard"]})
register_choice("callbacks", "wandb", lambda: {"wandb": basic_callbacks()["wandb"]})
register_choice("callbacks", "weights", lambda: {"weights": basic_callbacks()["weights"]})
register_choice(
    "callbacks",
    "validation",
    lambda: {
        "validation": L(f"{_TRAINING}.validation.Validation")(
            enabled=True, weights="reg", bands={"low": 0.1, "mid": 0.5, "high": 0.9}, seed=1, at_start=True
        )
    },
)
register_choice(
    "callbacks",
    "samples",
    lambda: {
        "samples": L(f"{_TRAINING}.sample_callback.SampleClips")(
            every_n=1000, num_clips=1, num_steps=12, guidance=1.0, ema=True, seed=0
        )
    },
)
register_choice(
    "callbacks",
    "profiler",
    lambda: {"profiler": L(f"{_TRAINING}.reports.Profiler")(skip=5, warmup=1, active=3, with_stack=False)},
)

"""The Cosmos-1.0 factories of NeMo for general and instruction post-training, by name: one recipe for both kinds of data.

`--factory NAME` and `experiment=NAME` are the same; NeMo's override keys are translated (`config/nemo_keys.py`).
"""

from __future__ import annotations

import math
import os
from typing import Any

from cosmos_predict.config.debug import shrink
from cosmos_predict.config.lazy import LazyCall as L
from cosmos_predict.config.registry import register_experiment
from cosmos_predict.errors import ConfigError
from experiments.data import nemo_cache
from experiments.predict1 import FOREVER
from experiments.predict2 import loader, post_training


def from_environment(name: str, default: int) -> int:
    """Return the whole number in the environment variable `name`, `default` without it. The command line wins over it.

    Raises ConfigError for anything else.
    """
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"environment variable {name}={text!r}: expected a whole number of at least 1")
    return int(text)


def nemo(factory: str, **changes: Any) -> dict[str, Any]:
    """Return the recipe of a factory called cosmos_diffusion_SIZE_TASK_...; changes: arguments of `post_training`.

    It starts from the Predict1 weights, the same networks; NeMo's own files go through the importer first
    (docs/coming_from_nemo.md), and `resume.restore_config.path=FILE` then names the result.
    """
    size, task = factory.split("_")[2:4]
    # Given frames are told by the data there, 1 to 4, and noised by 0.001: the recipe's own settings never take effect.
    given = {"augment_sigma_mean": math.log(0.001), "augment_sigma_std": 0.0}
    given |= {"min_num_conditional_frames": 1, "max_num_conditional_frames": 4}
    settings: dict[str, Any] = {
        "group": f"diffusion_{task}",
        "lr": 1e-6,
        "schedule": (0, FOREVER, 1.0, 1.0),  # constant
        "weight_decay": 0.0,
        "shard": 1,  # 8 ranks share the weights by tensor parallel; FSDP lines of the published files are commented out
        "max_iter": 1000,
        "save_iter": 200,
        "pipe": given if task == "video2world" else None,
        # NeMo does not raise the noise of videos. It keeps no average of the weights either; here one is kept.
        "config": {"adjust_video_noise": False},
        **changes,
    }
    dataset = nemo_cache()
    dataset.update({"num_frames": 121, "video_size": [704, 1280]})
    recipe = post_training(f"predict1_{size}_{task}", name=factory, train=loader(dataset), **settings)
    recipe["job"]["root"] = os.environ.get("EXP_DIR") or None
    recipe["model"]["with_tokenizer"] = False  # cached latents
    net = recipe["model"].config.pipe_config.net
    net.num_blocks = from_environment("NUM_LAYERS", net.num_blocks)
    recipe["optimizer"] = L("cosmos_predict.training.optimizers.adamw")(
        lr=settings["lr"], weight_decay=settings["weight_decay"], betas=[0.9, 0.999], eps=1e-8
    )
    tensor = from_environment("TENSOR_MODEL_PARALLEL_SIZE", 8)
    recipe["model_parallel"] |= {"tensor_model_parallel_size": tensor, "sequence_parallel": tensor > 1}
    total = from_environment("GLOBAL_BATCH_SIZE", 1)
    recipe["trainer"] |= {"activation_checkpointing": "full", "global_batch_size": total, "seed": 1234}
    recipe["checkpoint"] |= {"type": "predict1", "async_save": False}
    return recipe


for _size in ("7b", "14b"):
    for _task, _title in {"text2world": "Text2World", "video2world": "Video2World"}.items():
        _name = f"cosmos_diffusion_{_size}_{_task}_finetune"
        register_experiment(
            _name,
            lambda name=_name: nemo(name),
            summary=f"Cosmos-1.0 {_size.upper()} {_title} on cached clips or instructions, 121 frames 704x1280, TP 8",
            debug=shrink,
        )

"""Every published model as a choice for any experiment: `model=predict2_2b_video2world`.

A choice sets network, family, tokenizer, text encoder, given frames, loss, sampler and base checkpoint, and the frames and
size of the training clips. What is the run's own stays: average, optimizer, dataset, mesh, LoRA.
"""

from __future__ import annotations

from typing import Any

from cosmos_predict.config.registry import register_choice, register_group
from cosmos_predict.config.tree import to_tree
from cosmos_predict.models.published import PUBLISHED, clip_for, published_model

LOSS = ("p_mean", "p_std", "high_sigma_ratio", "adjust_video_noise", "loss_scale", "loss_reduce", "loss_add_logvar")


def model_choice(name: str) -> dict[str, Any]:
    """Return the tree of `model=NAME`; parts without `_target_` are merged into the experiment's."""
    tree, clip = to_tree(published_model(name)), clip_for(PUBLISHED[name].family, PUBLISHED[name].task)
    pipe, manager = tree["pipe_config"], {"dit_path": tree["model_manager_config"]["dit_path"]}
    del pipe["_target_"], pipe["ema"]
    return {
        "model": {"config": {"pipe_config": pipe, "model_manager_config": manager, **{key: tree[key] for key in LOSS}}},
        "dataloader_train": {"dataset": {"num_frames": clip.num_frames, "video_size": list(clip.video_size)}},
    }


register_group("model", "")
for name in PUBLISHED:
    register_choice("model", name, lambda name=name: model_choice(name))

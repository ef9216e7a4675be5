"""Published Cosmos-Predict1 post-training experiments on single videos: one factory, and what each changes of it.

Where the published states of March and June 2025 differ, June's is meant. June's text2world files also switch the text
dropout off and, some of them, raise the loss scale to 10: not kept, since guidance needs the branch without text.
"""

from __future__ import annotations

from typing import Any

from cosmos_predict.config.debug import shrink
from cosmos_predict.config.lazy import LazyCall as L
from cosmos_predict.config.lazy import LazyDict
from cosmos_predict.config.registry import register_experiment
from experiments.predict2 import folder, loader, post_training

FOREVER = 10**13  # the published length of a cycle that does not end
SIZES = {
    "7b": {"lr": 2**-14.3, "schedule": (2500, FOREVER, 1.0, 1.0), "weight_decay": 0.1, "shard": 32},
    # CP 16 was published for cosmos_nemo_assets; 16 does not divide the 40 heads, so 8 as for hdvila.
    "14b": {"lr": 2**-16, "schedule": (2500, 90_000, 1.0, 0.1), "weight_decay": 0.2, "shard": 64, "context": 8},
}
EPS = {"7b": 1e-10, "14b": 1e-11}
# The published LoRA: data parallel alone, on the queries and values of both attentions; scale alpha / rank = 1.
ADAPTERS = {"train_architecture": "lora", "lora_rank": 8, "lora_alpha": 8, "lora_target_modules": "q_proj,v_proj"}
LORA = {"lr": 1e-4, "schedule": (0, FOREVER, 1.0, 1.0), "shard": 1, "context": 4, "max_iter": 5000, "save_iter": 1000}


def predict1(
    name: str,
    train: LazyDict,
    *,
    accumulate: int = 1,
    checkpointing: str = "full",
    async_save: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Return the recipe called `name`, TASK_SIZE_..., on the loader `train`. changes: arguments of `post_training`.

    accumulate: micro-batches per update. checkpointing: of activations.
    """
    task, size = name.split("_")[0], "14b" if "_14b_" in name else "7b"
    settings = {"group": f"diffusion_{task}", "max_iter": 2000, "save_iter": 200, **SIZES[size], **changes}
    # The network is the published checkpoint's, learnable positions included, which some published recipes leave out.
    recipe = post_training(f"predict1_{size}_{task}", name=name, train=train, **settings)
    recipe["optimizer"]["eps"] = EPS[size]
    recipe["trainer"] |= {"activation_checkpointing": checkpointing, "grad_accum_iter": accumulate}
    recipe["checkpoint"] |= {"type": "predict1", "async_save": async_save}
    return recipe


# Published as 720 x 1280, 90 latent rows, beside a latent shape, image size and padding mask of 704: the checkpoint's 88 rows.
FULL = (704, 1280)


def clips(data: str, num_frames: int = 121, video_size: tuple[int, int] = FULL) -> LazyDict:
    return loader(folder(f"datasets/{data}", num_frames, video_size))


def bridge_instruction() -> dict[str, Any]:
    """The options of given frames that the published file leaves out have their class's values, not those of its kin."""
    train, val = (
        loader(
            L("cosmos_predict.data.bridge.BridgeInstructionDataset")(
                dataset_dir="datasets/bridge",
                num_frames=57,
                video_size=[256, 320],
                split=split,
                seed="${trainer.seed}",
            )
        )
        for split in ("train", "val")
    )
    return predict1(
        "video2world_instruction_bridge_57frames",
        train,
        val=val,
        group="diffusion_video2world_instruction",
        save_iter=500,
        checkpointing="none",
        pipe={
            "max_num_conditional_frames": 1,
            "video_condition_dropout": 0.2,
            "augment_sigma_mean": 0.0,
            "augment_sigma_std": 1.0,
            "augment_sigma_multiplier": 4.0,
        },
        config={"adjust_video_noise": False},
    )


def _register(name: str, summary: str, train: LazyDict, **changes: Any) -> None:
    register_experiment(name, lambda: predict1(name, train, **changes), summary=f"Predict1 {summary}", debug=shrink)


_SQUARE = (384, 384)
_LOW_MEMORY = {  # frames and size of what fits fewer or smaller GPUs, on cosmos_nemo_assets
    "text2world_7b": {"4gpu_80gb": (121, _SQUARE), "8gpu_40gb": (33, _SQUARE), "4gpu_40gb": (17, _SQUARE)},
    "video2world_7b": {"4gpu_80gb": (121, _SQUARE), "8gpu_40gb": (25, _SQUARE), "4gpu_40gb": (25, (192, 192))},
}
for _task, _rows in _LOW_MEMORY.items():
    _title = {"text2world_7b": "7B Text2World", "video2world_7b": "7B Video2World"}[_task]
    for _data in ("hdvila", "cosmos_nemo_assets"):
        # June accumulates over 2 micro-batches here only. video2world_7b_example_hdvila: March's lr of 0 is a slip.
        _steps = {"accumulate": 2} if (_task, _data) == ("text2world_7b", "hdvila") else {}
        _register(f"{_task}_example_{_data}", f"{_title}, 121 frames 704x1280", clips(_data), **_steps)
    for _gpus, (_frames, _size) in _rows.items():
        _few = {"average": False, "async_save": False} if _gpus.endswith("40gb") else {}
        _what = f"{_title} for {_gpus[0]} GPUs of {_gpus[5:7]} GB, {_frames} frames {_size[0]}x{_size[1]}"
        _train = clips("cosmos_nemo_assets", _frames, _size)
        _register(f"{_task}_example_cosmos_nemo_assets_{_gpus}", _what, _train, **_few)
    _train = clips("cosmos_nemo_assets", 121, (480, 848))
    _register(
        f"{_task}_lora_example_cosmos_nemo_assets",
        f"{_title}, LoRA, 121 frames 480x848",
        _train,
        checkpointing="selective",
        config=ADAPTERS,
        **LORA,
    )
for _data in ("hdvila", "cosmos_nemo_assets"):
    # Published without checkpointing but with a memory-saving network of its own, for which this stands.
    _register(
        f"text2world_14b_example_{_data}",
        "14B Text2World, 121 frames 704x1280",
        clips(_data),
        checkpointing="selective",
    )
register_experiment(
    "video2world_instruction_bridge_57frames",
    bridge_instruction,
    summary="Predict1 7B Video2World, instructions of Bridge episodes, 57 frames 256x320",
    debug=shrink,
)

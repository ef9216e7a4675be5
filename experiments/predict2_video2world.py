"""Published Cosmos-Predict2 Video2World post-training experiments."""

from __future__ import annotations

from typing import Any

from cosmos_predict.config.debug import shrink
from cosmos_predict.config.lazy import LazyCall as L
from cosmos_predict.config.registry import register_choice, register_experiment
from cosmos_predict.models.config import EMAConfig, ModelConfig, ModelManagerConfig, PipeConfig, TokenizerConfig
from cosmos_predict.models.published import PUBLISHED, published_net
from experiments.callbacks import basic_callbacks

# size: (weight decay, f_max, context parallel size, FSDP shard size)
_SIZES = {"2b": (0.1, 0.6, 2, 8), "14b": (0.2, 0.25, 8, 32)}


def video2world(size: str, name: str, dataset_dir: str) -> dict[str, Any]:
    """Return the 720p, 16 fps recipe of one size on a folder of clips."""
    weight_decay, f_max, context_parallel, shard = _SIZES[size]
    weights = f"checkpoints/nvidia/Cosmos-Predict2-{size.upper()}-Video2World"
    pipe = L(PipeConfig)(
        net=published_net(f"predict2_{size}_video2world"),
        family="predict2",
        tokenizer=L(TokenizerConfig)(name="wan2.1", path=f"{weights}/tokenizer/tokenizer.pth", options={}),
        text_encoder="t5",
        state_t=24,
        min_num_conditional_frames=1,
        max_num_conditional_frames=2,
        ema=L(EMAConfig)(enabled=True, rate=0.1, iteration_shift=0),
    )
    return {
        "job": {"project": "posttraining", "group": "video2world", "name": f"{size}_{name}"},
        "model": L("cosmos_predict.models.build.build_world_model")(
            config=L(ModelConfig)(
                pipe_config=pipe,
                model_manager_config=L(ModelManagerConfig)(dit_path=f"{weights}/model-720p-16fps.pt"),
                train_architecture="base",
                high_sigma_ratio=0.05,
                fsdp_shard_size=shard,
            )
        ),
        "optimizer": L("cosmos_predict.training.optimizers.adamw")(
            lr=2**-14.5, weight_decay=weight_decay, betas=[0.9, 0.99], eps=1e-8
        ),
        "scheduler": L("cosmos_predict.training.schedulers.LambdaLinearScheduler")(
            warm_up_steps=[0], cycle_lengths=[1000], f_start=[1e-6], f_max=[f_max], f_min=[0.0]
        ),
        "dataloader_train": L("cosmos_predict.data.loader.build_dataloader")(
            dataset=L("cosmos_predict.data.video_folder.VideoFolderDataset")(
                dataset_dir=dataset_dir, num_frames=93, video_size=[704, 1280], fit="stretch", seed="${trainer.seed}"
            ),
            batch_size=1,
            num_workers=8,
            pin_memory=True,
        ),
        "trainer": {
            "max_iter": 1000,
            "compute_dtype": "bfloat16",
            "activation_checkpointing": "selective",
            "logging_iter": 10,
            "callbacks": basic_callbacks(),
        },
        "model_parallel": {"context_parallel_size": context_parallel},
        "checkpoint": {"save_iter": 500},
    }


for _size in _SIZES:
    register_experiment(
        f"predict2_video2world_training_{_size}_cosmos_nemo_assets",
        lambda size=_size: video2world(size, "cosmos_nemo_assets", "datasets/cosmos_nemo_assets"),
        summary=f"Predict2 {_size.upper()} Video2World, 93 frames 704x1280, full fine-tuning",
        debug=shrink,
    )

for _name, _published in PUBLISHED.items():
    register_choice(
        "model",
        _name,
        lambda name=_name, family=_published.family: {
            "config": {"pipe_config": {"family": family, "net": published_net(name)}}
        },
    )

"""A world model small enough to train on a laptop: rectified flow, DCT tokenizer, a few million parameters."""

from __future__ import annotations

from typing import Any

from cosmos_predict.config.debug import shrink
from cosmos_predict.config.lazy import LazyCall as L
from cosmos_predict.config.registry import register_experiment
from cosmos_predict.models.config import EMAConfig, ModelConfig, ModelManagerConfig, PipeConfig, TokenizerConfig
from cosmos_predict.networks.config import DiTConfig
from experiments.callbacks import basic_callbacks

LATENT_CHANNELS = 32
# `fit_dct_std` on assets/robot_arm with a floor of 0.03, which keeps the model from spending itself on fine texture.
LATENT_STD = [0.327, 0.125, 0.03, 0.036, 0.08, 0.058] + [0.03] * (LATENT_CHANNELS - 6)


@register_experiment(
    "tiny_video2world",
    summary="3 M parameters, DCT tokenizer, CPU: folder of clips -> video model in minutes",
    debug=shrink,
)
def tiny_video2world() -> dict[str, Any]:
    net = L(
        DiTConfig
    )(
        model_channels=192,
        num_blocks=4,
        num_heads=4,
        adaln_lora_dim=32,
        mlp_ratio=3.0,
        input_channels=[["latent", LATENT_CHANNELS], ["cond_mask", 1], ["padding", 1]],
        out_channels=LATENT_CHANNELS,
        crossattn_emb_channels=192,  # project the 1024-wide text once: at this size its keys and values were half the work
        crossattn_proj_in_channels=1024,
    )
    pipe = L(PipeConfig)(
        net=net,
        family="predict2",
        tokenizer=L(TokenizerConfig)(name="dct", options={"channels": LATENT_CHANNELS, "std": LATENT_STD}),
        text_encoder="tiny",
        min_num_conditional_frames=1,
        max_num_conditional_frames=1,
        ema=L(EMAConfig)(enabled=True, rate=0.1),
    )
    return {
        "job": {"project": "cosmos_predict", "group": "tiny", "name": "tiny_video2world"},
        "model": L("cosmos_predict.models.build.build_world_model")(
            config=L(ModelConfig)(pipe_config=pipe, model_manager_config=L(ModelManagerConfig)(), high_sigma_ratio=0.05)
        ),
        "optimizer": L("cosmos_predict.training.optimizers.adamw")(
            lr=1e-3, weight_decay=0.01, betas=[0.9, 0.99], eps=1e-8
        ),
        "scheduler": L("cosmos_predict.training.schedulers.LambdaLinearScheduler")(
            warm_up_steps=[20], cycle_lengths=[2000], f_start=[0.01], f_max=[1.0], f_min=[0.1]
        ),
        "dataloader_train": L("cosmos_predict.data.loader.build_dataloader")(
            dataset=L("cosmos_predict.data.video_folder.VideoFolderDataset")(
                dataset_dir="datasets/robot_arm",
                num_frames=17,
                video_size=[96, 128],
                fit="crop",
                seed="${trainer.seed}",
            ),
            batch_size=4,
            num_workers=0,
        ),
        "trainer": {
            "max_iter": 400,
            "logging_iter": 20,
            "callbacks": basic_callbacks(),
        },
        "checkpoint": {"save_iter": 200, "keep_last_k": 2},
    }

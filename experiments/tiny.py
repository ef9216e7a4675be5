"""World models small enough to train on a laptop: rectified flow, DCT tokenizer, a few million parameters.

`tiny_video2world` trains from scratch (so the shipped base was made: assets/tiny_base/README.md);
`tiny_video2world_posttraining` continues from that base on another folder of clips, as the quickstart does.
"""

from __future__ import annotations

from typing import Any

from cosmos_predict.config.debug import shrink
from cosmos_predict.config.lazy import LazyCall as L
from cosmos_predict.config.registry import register_experiment
from cosmos_predict.models.config import EMAConfig, ModelConfig, ModelManagerConfig, PipeConfig, TokenizerConfig
from cosmos_predict.networks.config import DiTConfig
from experiments.callbacks import basic_callbacks

BASE = "assets/tiny_base/checkpoints/tiny_base_ema.safetensors"
# PSNR of the clips in assets/ through the tokenizer, by number of channels: 16: 24.6 dB, 24: 26.6, 32: 27.1, 48: 28.5,
# 96: 30.7. At 48 a token has 192 numbers, nearly the network's width, and training gets much slower.
LATENT_CHANNELS = 24
# `fit_dct_std` on assets/robot_arm_base with a floor of 0.02: channels that hardly move need no care.
LATENT_STD = [0.41, 0.14, 0.052, 0.048, 0.09, 0.1, 0.02, 0.02, 0.028, 0.033, 0.02, 0.02, 0.02, 0.028, 0.02, 0.02, 0.02]
LATENT_STD += [0.036, 0.037, 0.046, 0.02, 0.02, 0.02, 0.02]
LATENT_MEAN = [0.33] + [0.0] * (LATENT_CHANNELS - 1)


@register_experiment(
    "tiny_video2world",
    summary="4 M parameters, DCT tokenizer, CPU: folder of clips -> video model, from scratch",
    debug=shrink,
)
def tiny_video2world() -> dict[str, Any]:
    return _recipe("tiny_video2world", dataset_dir="assets/robot_arm_base", lr=1.5e-3, max_iter=3000)


@register_experiment(
    "tiny_video2world_posttraining",
    summary="the same model from the base in assets/tiny_base: a new task in minutes (the quickstart)",
    debug=shrink,
)
def tiny_video2world_posttraining() -> dict[str, Any]:
    return {
        **_recipe("tiny_video2world_posttraining", dataset_dir="assets/robot_arm", lr=5e-4, max_iter=450),
        "checkpoint": {"save_iter": 200, "keep_last_k": 2, "load_path": BASE},
    }


def _recipe(name: str, dataset_dir: str, lr: float, max_iter: int) -> dict[str, Any]:
    net = L(
        DiTConfig
    )(
        model_channels=256,
        num_blocks=5,
        num_heads=4,
        adaln_lora_dim=16,
        mlp_ratio=2.0,
        input_channels=[["latent", LATENT_CHANNELS], ["cond_mask", 1], ["padding", 1]],
        out_channels=LATENT_CHANNELS,
        crossattn_emb_channels=64,  # project the 1024-wide text once: at this size its keys and values were half the work
        crossattn_proj_in_channels=1024,
    )
    pipe = L(PipeConfig)(
        net=net,
        family="predict2",
        tokenizer=L(TokenizerConfig)(
            name="dct", options={"channels": LATENT_CHANNELS, "std": LATENT_STD, "mean": LATENT_MEAN}
        ),
        text_encoder="tiny",
        min_num_conditional_frames=1,
        max_num_conditional_frames=1,
        text_dropout=0.1,
        ema=L(EMAConfig)(enabled=True, rate=0.1),
    )
    return {
        "job": {"project": "cosmos_predict", "group": "tiny", "name": name},
        "model": L("cosmos_predict.models.build.build_world_model")(
            config=L(ModelConfig)(pipe_config=pipe, model_manager_config=L(ModelManagerConfig)(), high_sigma_ratio=0.05)
        ),
        "optimizer": L("cosmos_predict.training.optimizers.adamw")(
            lr=lr, weight_decay=0.01, betas=[0.9, 0.99], eps=1e-8
        ),
        "scheduler": L("cosmos_predict.training.schedulers.LambdaLinearScheduler")(
            warm_up_steps=[50], cycle_lengths=["${trainer.max_iter}"], f_start=[0.01], f_max=[1.0], f_min=[0.1]
        ),
        "dataloader_train": L("cosmos_predict.data.loader.build_dataloader")(
            dataset=L("cosmos_predict.data.video_folder.VideoFolderDataset")(
                dataset_dir=dataset_dir,
                num_frames=17,
                video_size=[96, 128],
                fit="crop",
                seed="${trainer.seed}",
            ),
            batch_size=4,
            num_workers=0,
        ),
        "trainer": {
            "max_iter": max_iter,
            "logging_iter": 20,
            "callbacks": basic_callbacks(),
        },
        "checkpoint": {"save_iter": 1000, "keep_last_k": 2},
    }

"""Datasets for any experiment: `data=video_folder`, `data=image_folder`, `data=latent_cache`, `data=synthetic`.

The size of the samples stays the experiment's; so do its frames, but for images.
"""

from __future__ import annotations

from cosmos_predict.config.lazy import LazyCall as L
from cosmos_predict.config.lazy import LazyDict
from cosmos_predict.config.registry import register_choice, register_group

KEPT = ("num_frames", "video_size", "dataset_dir", "fit", "fps", "text_encoder")
register_group("data", "dataloader_train.dataset", keep=KEPT)

SIZES = {"num_frames": 17, "video_size": [96, 128]}


def synthetic() -> LazyDict:
    return L("cosmos_predict.data.synthetic.SyntheticDataset")(**SIZES)


def video_folder() -> LazyDict:
    return L("cosmos_predict.data.video_folder.VideoFolderDataset")(
        **SIZES, dataset_dir="datasets/mine", fit="crop", fps=None, seed="${trainer.seed}", text_encoder=None
    )


def image_folder() -> LazyDict:
    """No `num_frames`: that of the experiment's videos is not kept."""
    return L("cosmos_predict.data.image_folder.ImageFolderDataset")(
        video_size=SIZES["video_size"],
        dataset_dir="datasets/mine",
        fit="crop",
        seed="${trainer.seed}",
        text_encoder=None,
    )


def latent_cache() -> LazyDict:
    return L("cosmos_predict.data.latent_cache.LatentCacheDataset")(
        **SIZES,
        cache_dir="datasets/mine_latents",
        fit="crop",
        fps=None,
        seed="${trainer.seed}",
        tokenizer="${model.config.pipe_config.tokenizer}",
    )


for make in (synthetic, video_folder, image_folder, latent_cache):
    register_choice("data", make.__name__, make)

# Captions without an embedding file are encoded when the dataset is made: `text=tiny`, `text=t5`.
register_group("text", "dataloader_train.dataset.text_encoder")
for name in ("tiny", "t5"):
    encoder = L("cosmos_predict.text_encoders.build.build_text_encoder")(name_or_path=name)
    register_choice("text", name, encoder)

"""Datasets for any experiment: `data=` video_folder, bridge, image_folder, images_and_videos, latent_cache, nemo_cache,
synthetic. `val=video_folder`: clips of another folder to validate on.

The size of the samples stays the experiment's; so do its frames, but for images. Pixels bring the tokenizer where the
experiment leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable

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
        **SIZES,
        dataset_dir="datasets/mine",
        fit="crop",
        fps=None,
        seed="${trainer.seed}",
        text_encoder=None,
        aspect_buckets=False,
        length_buckets=[],
    )


def image_folder() -> LazyDict:
    """No `num_frames`: that of the experiment's videos is not kept."""
    return L("cosmos_predict.data.image_folder.ImageFolderDataset")(
        video_size=SIZES["video_size"],
        dataset_dir="datasets/mine",
        fit="crop",
        seed="${trainer.seed}",
        text_encoder=None,
        aspect_buckets=False,
    )


def bridge() -> LazyDict:
    """Episodes of a robot arm; the text is each one's instruction."""
    return L("cosmos_predict.data.bridge.BridgeInstructionDataset")(
        **SIZES, dataset_dir="datasets/bridge", split="train", fit="crop", seed="${trainer.seed}", text_encoder=None
    )


def images_and_videos() -> LazyDict:
    """Micro-batches of images and of videos in turn; sizes are set once, beside `parts`."""
    videos, images, top = video_folder(), image_folder(), "dataloader_train.dataset"
    videos.update({name: f"${{{top}.{name}}}" for name in SIZES})
    images.update({"video_size": f"${{{top}.video_size}}", "dataset_dir": "datasets/my_images"})
    return L("cosmos_predict.data.mixed.MixedDataset")(
        **SIZES, parts={"videos": videos, "images": images}, ratio={"videos": 3, "images": 1}
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


def nemo_cache() -> LazyDict:
    """Cosmos-1.0's cached clips or instructions, as `scripts/prepare_dataset.py` writes them."""
    return L("cosmos_predict.data.nemo_cache.NemoCacheDataset")(
        **SIZES,
        dataset_dir="video_dataset_cached",
        seed="${trainer.seed}",
        tokenizer="${model.config.pipe_config.tokenizer}",
    )


def with_tokenizer(make: Callable[[], LazyDict], needed: bool) -> LazyDict:
    choice = make()
    choice["_with_"] = {"model": {"with_tokenizer": needed}}
    return choice


register_choice("data", "latent_cache", latent_cache)  # it keeps what the experiment says
register_choice("data", "nemo_cache", lambda: with_tokenizer(nemo_cache, False))
for make in (synthetic, video_folder, bridge, image_folder, images_and_videos):
    register_choice("data", make.__name__, lambda make=make: with_tokenizer(make, True))


def held_out() -> LazyDict:
    """A loader over a folder of its own; frames and size are those of the training clips."""
    sizes = {
        "num_frames": "${dataloader_train.dataset.num_frames}",
        "video_size": "${dataloader_train.dataset.video_size}",
    }
    dataset = L("cosmos_predict.data.video_folder.VideoFolderDataset")(
        **sizes, dataset_dir="datasets/mine_val", fit="crop", fps=None, seed="${trainer.seed}", text_encoder=None
    )
    return L("cosmos_predict.data.loader.build_dataloader")(dataset=dataset, batch_size=1, num_workers=2)


register_group("val", "dataloader_val")
register_choice("val", "video_folder", held_out)

# Captions without an embedding file are encoded when the dataset is made: `text=tiny`, `text=t5`, `text=cosmos_reason1`.
register_group("text", "dataloader_train.dataset.text_encoder")
for name in ("tiny", "t5", "cosmos_reason1"):
    encoder = L("cosmos_predict.text_encoders.build.LazyTextEncoder")(name_or_path=name)
    register_choice("text", name, encoder)

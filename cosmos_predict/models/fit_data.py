"""Whether a dataset's samples fit a model, told before the first step: frames, sizes, text encoder."""

from __future__ import annotations

from typing import Any

from cosmos_predict.errors import ConfigError
from cosmos_predict.io.embedding_index import check_same_encoder
from cosmos_predict.models.world_model import WorldModel


def check_data(model: WorldModel, dataset: Any, debug: bool = False) -> None:
    """Raise ConfigError (sizes) or DataError (text) where what is known of `dataset` does not fit `model`.

    Read, where the dataset has them: `shapes`, the (T, H, W) of its samples, else `num_frames` and `video_size`;
    `latent_shapes`, {(T, H, W): (C, t, h, w)} of cached latents; and `text_encoders`, {name: folder of the embeddings that it
    made}. debug: any encoder's text will do.
    """
    for made_by, folder in getattr(dataset, "text_encoders", {}).items() if not debug else ():
        wanted, setting = model.config.pipe_config.text_encoder, "model.config.pipe_config.text_encoder"
        remedy = f"make them again (scripts/get_t5_embeddings.py --overwrite), or set {setting}={made_by}"
        check_same_encoder(made_by, wanted, folder, setting, remedy)
    tokenizer, patch = model.tokenizer_holder[0], model.net.config.patch_spatial
    for (_, height, width), (*_, rows, columns) in getattr(dataset, "latent_shapes", {}).items():
        if rows % patch or columns % patch:
            raise ConfigError(
                f"cached latents of {rows} x {columns} (h x w), of frames of {height} x {width}: the network's patches need "
                f"multiples of {patch}; make the cache again with a height and width that are multiples of "
                f"{height // rows * patch}"
            )
    if tokenizer is None:  # the latents are there already
        return
    step = tokenizer.spatial_compression_factor * patch
    for frames, height, width in sorted(_shapes(dataset)):
        if frames is not None:
            try:
                tokenizer.get_latent_num_frames(int(frames))
            except ConfigError as error:
                raise ConfigError(f"dataloader_train.dataset.num_frames={frames} does not fit: {error}") from None
        if height is not None and (height % step or width % step):
            near = [sorted({max(step, n // step * step), -(-n // step) * step}) for n in (height, width)]
            raise ConfigError(
                f"dataloader_train.dataset.video_size=[{height}, {width}]: tokenizer and patches need multiples of {step}; "
                f"nearest heights: {' and '.join(map(str, near[0]))}, widths: {' and '.join(map(str, near[1]))}"
            )


def latent_frames(model: WorldModel, dataset: Any) -> dict[int, int]:
    """Return {T: latent frames of a view} of the samples of `dataset`, of all its buckets, as far as they are known.

    Read, where the dataset has them: `shapes`, else `num_frames`, and `latent_shapes` of cached latents (`check_data`).
    """
    known, tokenizer = {}, model.tokenizer_holder[0]
    if tokenizer is not None:
        counts = {int(frames) for frames, *_ in _shapes(dataset) if frames is not None}
        known = {frames: tokenizer.get_latent_num_frames(frames) for frames in counts}
    return known | {frames: t for (frames, *_), (_, t, *_) in getattr(dataset, "latent_shapes", {}).items()}


def frame_tokens(model: WorldModel, dataset: Any) -> dict[tuple[int, int], int]:
    """Return {(H, W): tokens of a latent frame} of the samples of `dataset`, of all its buckets, as far as they are known.

    Read, where the dataset has them: `shapes`, else `video_size`, and `latent_shapes` of cached latents (`check_data`).
    """
    tokenizer, patch = model.tokenizer_holder[0], model.net.config.patch_spatial
    known = {}
    if tokenizer is not None:
        step = tokenizer.spatial_compression_factor * patch
        known = {(h, w): (h // step) * (w // step) for _, h, w in _shapes(dataset) if h is not None}
    cached = getattr(dataset, "latent_shapes", {}).items()
    return known | {(height, width): (h // patch) * (w // patch) for (_, height, width), (*_, h, w) in cached}


def _shapes(dataset: Any) -> set[tuple[Any, Any, Any]]:
    """Return the (T, H, W) of the samples of a dataset, of all its buckets; None for what is not known."""
    height, width = getattr(dataset, "video_size", None) or (None, None)
    return set(getattr(dataset, "shapes", ())) or {(getattr(dataset, "num_frames", None), height, width)}

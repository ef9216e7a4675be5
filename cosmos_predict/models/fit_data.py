"""Whether a dataset's samples fit a model, told before the first step: frames, sizes, text encoder."""

from __future__ import annotations

from typing import Any

from cosmos_predict.errors import ConfigError
from cosmos_predict.io.embedding_index import check_same_encoder
from cosmos_predict.models.world_model import WorldModel


def check_data(model: WorldModel, dataset: Any) -> None:
    """Raise ConfigError (sizes) or DataError (text) where what is known of `dataset` does not fit `model`.

    Read, where the dataset has them: `shapes`, the (T, H, W) of its samples, else `num_frames` and `video_size`; and
    `text_encoders`, {name: folder of the embeddings that it made}.
    """
    for made_by, folder in getattr(dataset, "text_encoders", {}).items():
        wanted, setting = model.config.pipe_config.text_encoder, "model.config.pipe_config.text_encoder"
        remedy = f"make them again (scripts/get_t5_embeddings.py --overwrite), or set {setting}={made_by}"
        check_same_encoder(made_by, wanted, folder, setting, remedy)
    tokenizer = model.tokenizer_holder[0]
    nominal = (getattr(dataset, "num_frames", None), *(getattr(dataset, "video_size", None) or (None, None)))
    if tokenizer is None:  # the latents are there already
        return
    step = tokenizer.spatial_compression_factor * model.net.config.patch_spatial
    for frames, height, width in sorted(set(getattr(dataset, "shapes", [nominal]))):
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

"""`scripts/cache_latents.py`: encode the windows of a run's dataset once, so that training needs no tokenizer.

The overrides behind -- are those of the training command. Clips that are cached already are kept, so an interrupted run
is resumed by running it again. A file per clip; clips in buckets (aspect_buckets, length_buckets) keep theirs. With
latent_dtype the pixels give the same loss: model.config.latent_dtype=bfloat16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_predict.cli.program import command, device_of, positive_int, tell_failed
from cosmos_predict.errors import ConfigError

EPILOG = """\
example:
  python scripts/cache_latents.py --output_dir datasets/mine_latents -- experiment=tiny_video2world \\
      dataloader_train.dataset.dataset_dir=datasets/mine
  python -m train -- experiment=tiny_video2world data=latent_cache \\
      dataloader_train.dataset.cache_dir=datasets/mine_latents model.with_tokenizer=false
"""


def build_parser() -> argparse.ArgumentParser:
    lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=lines)
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="folder of the cache")
    kinds = ("bfloat16", "float16", "float32")
    add("--dtype", choices=kinds, default="bfloat16", help="of the latents (default: %(default)s)")
    interval = "source frames from one window's start to the next (default: num_frames)"
    add("--start_interval", type=positive_int, help=interval)
    add("--batch_size", type=positive_int, default=1, help="windows encoded at a time (default: %(default)s)")
    add("--device", help="where to encode (default: a GPU where there is one)")
    add("--config", metavar="FILE", help="a .py file with make_config(), or a run's config.yaml")
    add("--allow", metavar="PACKAGE", action="append", default=[], help="as in the training command")
    add("overrides", nargs="*", help="experiment=NAME key=value ...")
    return parser


def cache(args: argparse.Namespace) -> int:
    """Encode one dataset; return the exit status."""
    import torch

    from cosmos_predict.config.compose import compose
    from cosmos_predict.config.lazy import instantiate
    from cosmos_predict.data.latent_cache import cache_key, write_cache
    from cosmos_predict.data.video_folder import VideoFolderDataset
    from cosmos_predict.models.build import build_video_tokenizer

    config = compose(args.overrides, args.config, allow=args.allow)
    if config.dataloader_train is None or config.model is None:
        raise ConfigError("the configuration has no dataset or no model: give experiment=NAME behind --")
    dataset = instantiate(config.dataloader_train.dataset)
    if not isinstance(dataset, VideoFolderDataset):
        raise ConfigError(
            f"latents are cached of folders of videos or images, the run's dataset is {type(dataset).__name__}; use data=video_folder"
        )
    dataset.start_interval = args.start_interval or dataset.num_frames
    source = instantiate(config.model.config.pipe_config.tokenizer)
    key = cache_key(dataset, source, args.dtype)
    device = device_of(args.device)
    tokenizer = build_video_tokenizer(source, device)

    def encode(video: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return tokenizer.encode(video.to(device))

    report = write_cache(dataset, encode, key, args.output_dir, args.batch_size)
    status = tell_failed(report.failed)
    print(
        f"{args.output_dir}: {report.written} clips written, {report.kept} kept (already there), {len(report.failed)} "
        f"failed; {report.windows} windows, {report.bytes / 1e6:.1f} MB"
    )
    return status


main = command(cache, build_parser)

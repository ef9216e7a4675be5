"""`scripts/cache_latents.py`: encode a run's dataset once, so that training needs no tokenizer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cosmos_predict.cli.program import positive_int, run_program
from cosmos_predict.errors import ConfigError

EPILOG = """\
example:
  python scripts/cache_latents.py --output_dir datasets/mine_latents -- experiment=tiny_video2world \\
      dataloader_train.dataset.dataset_dir=datasets/mine
  python -m train -- experiment=tiny_video2world data=latent_cache \\
      dataloader_train.dataset.cache_dir=datasets/mine_latents model.with_tokenizer=false
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    run_program(cache, build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cache_latents.py",
        description="Encode the windows of a run's dataset with the run's tokenizer. The overrides behind -- are those of "
        "the training command. Clips that are cached already are kept, so an interrupted run is resumed by running it again. "
        "A file per clip; clips in buckets (aspect_buckets, length_buckets) keep theirs. With latent_dtype the pixels give the "
        "same loss: model.config.latent_dtype=bfloat16.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="folder of the cache")
    add(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        default="bfloat16",
        help="of the latents (default: %(default)s)",
    )
    add(
        "--start_interval",
        type=positive_int,
        help="source frames from one window's start to the next (default: num_frames)",
    )
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
    from cosmos_predict.models.build import torch_dtype
    from cosmos_predict.tokenizers.load import load_tokenizer

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
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = None if source.dtype is None else torch_dtype(source.dtype)
    tokenizer = load_tokenizer(source.path or source.name, device=device, dtype=dtype, **source.options)

    def encode(video: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return tokenizer.encode(video.to(device))

    report = write_cache(dataset, encode, key, args.output_dir, args.batch_size)
    for path, reason in sorted(report.failed.items()):
        print(f"failed: {path}: {reason}", file=sys.stderr)
    print(
        f"{args.output_dir}: {report.written} clips written, {report.kept} kept (already there), {len(report.failed)} "
        f"failed; {report.windows} windows, {report.bytes / 1e6:.1f} MB"
    )
    return 1 if report.failed else 0

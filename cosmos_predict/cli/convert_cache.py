"""`scripts/convert_cache.py`: cached latents of cache_latents.py to prepare_dataset.py's layout, any other from that one."""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_predict.cli.program import command


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the two folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder to read")
    parser.add_argument("target", type=Path, help="folder to write; a new one")
    return parser


def run(args: argparse.Namespace) -> None:
    """Convert, and print the overrides that train with the result."""
    from cosmos_predict.data.convert_cache import convert_cache
    from cosmos_predict.data.latent_cache import INDEX_NAME, read_index

    windows, words = convert_cache(args.source, args.target), [f"data=nemo_cache data.path={args.target}"]
    if (args.target / INDEX_NAME).is_file():
        key, words = read_index(args.target)["key"], [f"data=latent_cache data.path={args.target}"]
        same = {name: key[name] for name in ("fit", "fps") if key[name] is not None}
        words += [f"dataloader_train.dataset.{name}={value}" for name, value in same.items()]
    print(f"{args.target}: {windows} windows of {args.source}; train with: {' '.join(words)}")


main = command(run, build_parser)

"""`scripts/get_t5_embeddings_from_cosmos_nemo_assets.py`: one prompt for every clip (or image) of a dataset folder.

Gives every clip that has no caption the same prompt (metas/*.txt), then writes the text embeddings to t5_xxl/. Captions
and embeddings that are already there are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_predict.cli.get_t5_embeddings import add_encoder_arguments, embed_dataset
from cosmos_predict.cli.program import HelpFormatter, command


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; published flags keep their names and defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--dataset_path", type=Path, default=Path("datasets/cosmos_nemo_assets"), help="folder with videos/ or images/")
    add("--prompt", default="A video of sks teal robot.", help="caption of clips that have none")
    add("--is_image", action="store_true", help="the dataset holds images/, not videos/")
    add_encoder_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    from cosmos_predict.data.captions import caption_all

    written, kept = caption_all(args.dataset_path, args.prompt, images=args.is_image)
    print(f"{args.dataset_path / 'metas'}: {written} written, {kept} kept (already there)")
    return embed_dataset(args)


main = command(run, build_parser)

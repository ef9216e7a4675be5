"""`scripts/get_t5_embeddings_from_bridge.py`: a text embedding for every episode of one split of Bridge data.

Writes that of every episode annotation/SUBSET/ID.json, of the first of its texts, to annotation/SUBSET/ID.pickle. Files
that are already there are kept; those of edited texts are made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_predict.cli.get_t5_embeddings import add_encoder_arguments, embed
from cosmos_predict.cli.program import HelpFormatter, command


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; published flags keep their names and defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--dataset_path", type=Path, default=Path("datasets/bridge"), help="folder with annotation/")
    add("--subset", choices=("train", "val", "test"), default="train", help="the split")
    add_encoder_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    from cosmos_predict.data.bridge import instruction_of, list_annotations
    from cosmos_predict.errors import DataError
    from cosmos_predict.text_encoders.embed_captions import Caption

    captions: list[Caption] = []
    failed: dict[Path, str] = {}
    for path in list_annotations(args.dataset_path, args.subset):
        try:
            captions.append(Caption(path, instruction_of(path), path.with_suffix(f".{args.format}")))
        except DataError as error:
            failed[path] = str(error)
    return embed(args, captions, failed, args.dataset_path / "annotation" / args.subset)


main = command(run, build_parser)

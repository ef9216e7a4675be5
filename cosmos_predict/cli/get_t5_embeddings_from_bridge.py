"""`scripts/get_t5_embeddings_from_bridge.py`: a text embedding for every episode of one split of Bridge data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cosmos_predict.cli.get_t5_embeddings import add_encoder_arguments, embed
from cosmos_predict.cli.program import run_program


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    run_program(run, build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; published flags keep their names and defaults."""
    parser = argparse.ArgumentParser(
        prog="get_t5_embeddings_from_bridge.py",
        description="Write the text embedding of every episode annotation/SUBSET/ID.json, of the first of its texts, to "
        "annotation/SUBSET/ID.pickle. Files that are already there are kept; those of edited texts are made again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
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

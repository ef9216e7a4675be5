"""`scripts/get_t5_embeddings_from_groot_dataset.py`: captions from a table `file,prompt`, then their embeddings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cosmos_predict.cli.get_t5_embeddings import add_encoder_arguments, embed_with_table
from cosmos_predict.cli.program import run_program


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    run_program(run, build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; published flags keep their names and defaults."""
    parser = argparse.ArgumentParser(
        prog="get_t5_embeddings_from_groot_dataset.py",
        description="Write metas/NAME.txt = prefix + prompt for every line of a CSV table with the columns file and "
        "prompt, then the text embeddings to t5_xxl/. An embedding is made again where its caption has changed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset_path", type=Path, default=Path("datasets/benchmark_train/gr1"), help="folder with videos/")
    add("--meta_csv", type=Path, help="the table; by default metadata.csv of the dataset")
    add("--prompt_prefix", default="The robot arm is performing a task. ", help="put before every prompt")
    add_encoder_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    args.meta_csv = args.meta_csv or args.dataset_path / "metadata.csv"
    return embed_with_table(args)

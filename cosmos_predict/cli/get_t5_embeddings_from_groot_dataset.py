"""`scripts/get_t5_embeddings_from_groot_dataset.py`: captions from a table, then their embeddings.

Writes metas/NAME.txt = prefix + prompt for every line of a CSV table with the columns file and prompt, then the text
embeddings to t5_xxl/. An embedding is made again where its caption has changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_predict.cli.get_t5_embeddings import add_encoder_arguments, embed_with_table
from cosmos_predict.cli.program import HelpFormatter, command


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; published flags keep their names and defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--dataset_path", type=Path, default=Path("datasets/benchmark_train/gr1"), help="folder with videos/")
    add("--meta_csv", type=Path, help="the table; by default metadata.csv of the dataset")
    add("--prompt_prefix", default="The robot arm is performing a task. ", help="put before every prompt")
    add_encoder_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    args.meta_csv = args.meta_csv or args.dataset_path / "metadata.csv"
    return embed_with_table(args)


main = command(run, build_parser)

"""`scripts/import_nemo_checkpoint.py`: NeMo's distributed checkpoints of Cosmos-1.0 networks into Predict1's `model.pt`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from cosmos_predict.cli.program import run_program

_TEXT = """Write the network of a distributed NeMo checkpoint (torch_dist or zarr) as a model.pt of Cosmos-Predict1, tensor by
tensor. Best effort, unverified against the published files: every key must be understood and none may be missing."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; imports no torch."""
    parser = argparse.ArgumentParser(description=_TEXT)
    parser.add_argument(
        "input", help="folder with .metadata and .distcp files or zarr arrays, or the folder above `weights`"
    )
    parser.add_argument("output", help="a .pt or .safetensors file, or a folder for model.pt")
    kinds = ("keep", "bfloat16", "float32")
    parser.add_argument("--dtype", choices=kinds, default="keep", help="of floating tensors (default: %(default)s)")
    parser.add_argument(
        "--drop_off_diagonal", action="store_true", help="accept, and lose, what an adaLN mixes between its sub-blocks"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Import as the arguments say and print the file written."""
    from cosmos_predict.checkpoint.convert import DTYPES
    from cosmos_predict.checkpoint.nemo import import_checkpoint

    print(
        import_checkpoint(args.input, args.output, dtype=DTYPES[args.dtype], drop_off_diagonal=args.drop_off_diagonal)
    )


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line `argv` (default: the process's arguments)."""
    run_program(run, build_parser(), argv)

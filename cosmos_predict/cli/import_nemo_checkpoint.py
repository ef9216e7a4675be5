"""`scripts/import_nemo_checkpoint.py`: NeMo's distributed checkpoints of Cosmos-1.0 networks into Predict1's `model.pt`.

Reads torch_dist or zarr, tensor by tensor. Best effort, unverified against the published files: every key must be
understood and none may be missing.
"""

from __future__ import annotations

import argparse

from cosmos_predict.cli.program import command


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; imports no torch."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("input", help="folder with .metadata and .distcp files or zarr arrays, or the folder above `weights`")
    add("output", help="a .pt or .safetensors file, or a folder for model.pt")
    kinds = ("keep", "bfloat16", "float32")
    add("--dtype", choices=kinds, default="keep", help="of floating tensors (default: %(default)s)")
    lost = "accept, and lose, what an adaLN mixes between its sub-blocks"
    add("--drop_off_diagonal", action="store_true", help=lost)
    return parser


def run(args: argparse.Namespace) -> None:
    """Import as the arguments say and print the file written."""
    from cosmos_predict.checkpoint.convert import DTYPES
    from cosmos_predict.checkpoint.nemo import import_checkpoint

    dtype, drop = DTYPES[args.dtype], args.drop_off_diagonal
    print(import_checkpoint(args.input, args.output, dtype=dtype, drop_off_diagonal=drop))


main = command(run, build_parser)

"""`python scripts/import_videos.py`: a dataset folder from plain video files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from cosmos_predict.cli.program import positive_int, run_program


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/import_videos.py",
        description="Make DATASET/videos and DATASET/metas from a folder of video files. Captions come from .txt files of the same "
        "name, else --caption, else the file name.",
        epilog="next: python scripts/get_t5_embeddings.py --dataset_path DATASET",
    )
    parser.add_argument("source", help="folder with video files")
    parser.add_argument("--dataset_path", required=True, help="dataset folder to fill, for example datasets/mine")
    parser.add_argument("--caption", default="", help="caption of clips that have none")
    parser.add_argument(
        "--short_side", type=positive_int, help="copy larger clips at this size: decodes faster (default: link)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    from cosmos_predict.data.import_folder import import_videos

    for name, caption in import_videos(args.source, args.dataset_path, args.caption, args.short_side):
        print(f"{name}: {caption}")
    print(f"next: edit the captions in {args.dataset_path}/metas, then make their embeddings:")
    print(f"  python scripts/get_t5_embeddings.py --dataset_path {args.dataset_path}")
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    run_program(run, build_parser(), argv)

"""`python scripts/import_videos.py`: a dataset folder from plain video files.

Makes DATASET/videos and DATASET/metas from a folder of video files. Captions come from .txt files of the same name, else
--caption, else the file name. Next: python scripts/get_t5_embeddings.py --dataset_path DATASET
"""

from __future__ import annotations

import argparse

from cosmos_predict.cli.program import command, positive_int


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("scripts/import_videos.py", description=__doc__)
    add = parser.add_argument
    add("source", help="folder with video files")
    add("--dataset_path", required=True, help="dataset folder to fill, for example datasets/mine")
    add("--caption", default="", help="caption of clips that have none")
    add("--short_side", type=positive_int, help="copy larger clips at this size: decodes faster (default: link)")
    return parser


def run(args: argparse.Namespace) -> int:
    from cosmos_predict.data.import_folder import import_videos

    for name, caption in import_videos(args.source, args.dataset_path, args.caption, args.short_side):
        print(f"{name}: {caption}")
    print(f"next: edit the captions in {args.dataset_path}/metas, then make their embeddings:")
    print(f"  python scripts/get_t5_embeddings.py --dataset_path {args.dataset_path}")
    return 0


main = command(run, build_parser)

"""`scripts/extract_images_from_videos.py`: an image dataset from every STRIDE-th frame of a video dataset.

Saves those of INPUT/videos/* as OUTPUT/images/VIDEO_NNNNNNNN.jpg, numbered in the order saved. Images that are already
there are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_predict.cli.program import HelpFormatter, command, positive_int, tell_failed


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; published flags keep their names and defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--input_dataset_dir", type=Path, required=True, help="dataset folder with videos/")
    add("--output_dataset_dir", type=Path, required=True, help="dataset folder to fill")
    add("--stride", type=positive_int, default=30, help="frames from one image to the next")
    return parser


def run(args: argparse.Namespace) -> int:
    from cosmos_predict.data.import_folder import extract_images

    report = extract_images(args.input_dataset_dir, args.output_dataset_dir, args.stride)
    status = tell_failed(report.failed)
    print(
        f"{args.output_dataset_dir / 'images'}: {report.written} images written, {report.kept} kept (already there), "
        f"{len(report.failed)} videos failed"
    )
    return status


main = command(run, build_parser)

"""`scripts/extract_images_from_videos.py`: an image dataset from every N-th frame of a video dataset."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cosmos_predict.cli.program import positive_int, run_program


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    run_program(run, build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; published flags keep their names and defaults."""
    parser = argparse.ArgumentParser(
        prog="extract_images_from_videos.py",
        description="Save every STRIDE-th frame of INPUT/videos/* as OUTPUT/images/VIDEO_NNNNNNNN.jpg, numbered in the "
        "order saved. Images that are already there are kept.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--input_dataset_dir", type=Path, required=True, help="dataset folder with videos/")
    add("--output_dataset_dir", type=Path, required=True, help="dataset folder to fill")
    add("--stride", type=positive_int, default=30, help="frames from one image to the next")
    return parser


def run(args: argparse.Namespace) -> int:
    from cosmos_predict.data.import_folder import extract_images

    report = extract_images(args.input_dataset_dir, args.output_dataset_dir, args.stride)
    for path, reason in sorted(report.failed.items()):
        print(f"failed: {path}: {reason}", file=sys.stderr)
    print(
        f"{args.output_dataset_dir / 'images'}: {report.written} images written, {report.kept} kept (already there), "
        f"{len(report.failed)} videos failed"
    )
    return 1 if report.failed else 0

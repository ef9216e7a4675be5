"""`python scripts/contact_sheet.py`: generated and real frames in one picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from cosmos_predict.cli.program import positive_int, run_program


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/contact_sheet.py", description="Write a PNG with frames of clips side by side, one row per clip."
    )
    parser.add_argument(
        "clips",
        nargs="+",
        metavar="LABEL=VIDEO",
        help="rows, for example generated=output/clip.mp4 real=datasets/x/videos/a.mp4",
    )
    parser.add_argument("--save_path", required=True, help="PNG to write")
    parser.add_argument("--columns", type=positive_int, default=6, help="frames per row (default: %(default)s)")
    parser.add_argument(
        "--start", type=int, default=0, help="first frame of every row but the first (default: %(default)s)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    import torch

    from cosmos_predict.data import transforms, video_reader
    from cosmos_predict.errors import ConfigError
    from cosmos_predict.evaluation.contact_sheet import contact_sheet

    rows = []
    length, size, fps = None, None, 16.0
    for clip in args.clips:
        label, equals, path = clip.partition("=")
        if not equals:
            raise ConfigError(f"{clip!r} is not LABEL=VIDEO")
        info = video_reader.probe(path)
        start = args.start if rows else 0
        count = info.frames - start if length is None else min(length, info.frames - start)
        frames = torch.from_numpy(video_reader.read_frames(path, range(start, start + count))).permute(0, 3, 1, 2)
        if size is None:
            length, size, fps = count, (info.height, info.width), info.fps
        fitted = transforms.fit_frames(frames, size, "crop").frames
        rows.append((label, fitted.permute(0, 2, 3, 1).numpy()))
    contact_sheet(rows, args.save_path, args.columns, fps)
    print(args.save_path)
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    run_program(run, build_parser(), argv)

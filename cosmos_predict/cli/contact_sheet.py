"""`python scripts/contact_sheet.py`: generated and real frames in one picture.

Writes a PNG with frames of clips side by side, one row per clip. The first video decides size and length; an image is a
row of one frame.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_predict.cli.program import command, positive_int


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("scripts/contact_sheet.py", description=__doc__)
    add = parser.add_argument
    rows = "rows, for example start=first.png generated=output/clip.mp4 real=datasets/x/videos/a.mp4"
    add("clips", nargs="+", metavar="LABEL=FILE", help=rows)
    add("--save_path", required=True, help="PNG to write")
    add("--columns", type=positive_int, default=6, help="frames per row (default: %(default)s)")
    add("--start", type=int, default=0, help="first frame of every video but the first (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> int:
    import torch

    from cosmos_predict.data import transforms, video_reader
    from cosmos_predict.errors import ConfigError
    from cosmos_predict.evaluation.contact_sheet import contact_sheet

    clips, length, size, fps = [], None, None, 16.0
    for clip in args.clips:
        label, equals, path = clip.partition("=")
        if not equals:
            raise ConfigError(f"{clip!r} is not LABEL=FILE")
        if video_reader.is_image(Path(path)):
            clips.append((label, video_reader.read_image(path)[None]))
            continue
        info = video_reader.probe(path)
        if length is None:
            length, size, fps = info.frames + args.start, (info.height, info.width), info.fps
        first = args.start if any(len(frames) > 1 for _, frames in clips) else 0
        if not 0 <= first < info.frames:
            raise ConfigError(f"--start {first}: {path} has {info.frames} frames; give a number below that")
        clips.append((label, video_reader.read_frames(path, range(first, min(length, info.frames)))))
    size = size or clips[0][1].shape[1:3]
    rows = []
    for label, frames in clips:
        fitted = transforms.fit_frames(torch.from_numpy(frames).permute(0, 3, 1, 2), size, "crop").frames
        rows.append((label, fitted.permute(0, 2, 3, 1).numpy()))
    contact_sheet(rows, args.save_path, args.columns, fps)
    print(args.save_path)
    return 0


main = command(run, build_parser)

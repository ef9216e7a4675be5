"""`scripts/prepare_agibot_fisheye_data.py`: AgiBotWorld episodes of one camera as a dataset of captioned windows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cosmos_predict.cli.program import run_program
from cosmos_predict.errors import ConfigError, DataError


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    run_program(prepare, build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; published flags keep their names and defaults."""
    parser = argparse.ArgumentParser(
        prog="prepare_agibot_fisheye_data.py",
        description="Download AgiBotWorld tasks, keep one camera, cut its videos into windows (train/ and val/), and write "
        "the captions of PARENT/agibot_CAMERA.jsonl, a table of your own, to metas/. Existing files are kept, so a run can be "
        "repeated.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--task_ids", type=int, nargs="+", default=[327], help="tasks to prepare")
    add(
        "--data_dir",
        type=Path,
        default=Path("datasets/agibot"),
        help="folder with (or for) observations/ and task_info/",
    )
    add("--repo_id", default="agibot-world/AgiBotWorld-Alpha", help="where to download from")
    add("--keep_tar", action="store_true", help="keep the downloaded archives")
    add("--camera", default="head_center_fisheye_color", help="the camera to keep")
    add(
        "--delete-only",
        action="store_true",
        help="unpack and remove what is not of the camera; no download, no cutting",
    )
    add("--split-only", action="store_true", help="cut what is unpacked; no download, nothing removed")
    add("--val_episode_ids", type=int, nargs="*", default=[], help="episodes that go to val/")
    add("--window-size", type=float, default=5.0, help="seconds of a window")
    add("--min-last-window", type=float, default=7.5, help="seconds below which a rest stays one window")
    add("--yes", action="store_true", help="remove files without asking")
    return parser


def prepare(args: argparse.Namespace) -> int:
    """Download, unpack, remove, cut and caption, as the flags say; return the exit status."""
    if args.delete_only and args.split_only:
        raise ConfigError("--delete-only and --split-only exclude each other")
    if Path(args.camera).name != args.camera:
        raise ConfigError(f"--camera {args.camera!r} must be the name of a video file without its suffix")
    from cosmos_predict.data import agibot

    agibot.split_windows(1.0, args.window_size, args.min_last_window)  # bad sizes are known before hours of work
    output = args.data_dir.parent / f"agibot_{args.camera}"
    failed = {}
    for task in args.task_ids:
        task_dir = args.data_dir / "observations" / str(task)
        if not args.split_only:
            if not args.delete_only:
                _download(args, task)
            _keep_camera(args, task_dir)
        if args.delete_only:
            continue
        report = agibot.cut_episodes(
            task_dir, args.camera, output, args.val_episode_ids, args.window_size, args.min_last_window
        )
        failed |= report.failed
        print(f"task {task}: {report.written} windows written, {report.kept} kept (already there) in {output}")
    for path, reason in sorted(failed.items()):
        print(f"failed: {path}: {reason}", file=sys.stderr)
    if not args.delete_only:
        _write_captions(args, output)
    return 1 if failed else 0


def _download(args: argparse.Namespace, task: int) -> None:
    from cosmos_predict.io.hub import download_snapshot

    patterns = [f"observations/{task}/*.tar", f"task_info/task_{task}.json"]
    download_snapshot(args.repo_id, patterns, repo_type="dataset", local_dir=args.data_dir)


def _keep_camera(args: argparse.Namespace, task_dir: Path) -> None:
    """Unpack the camera's videos; remove everything else below the task's folder, after asking."""
    from cosmos_predict.data import agibot

    if not task_dir.is_dir():
        raise DataError(f"{task_dir}: no such folder; run without --delete-only to download the task")
    written, tars = agibot.unpack(task_dir, args.camera)
    print(f"{task_dir}: {written} videos unpacked from {len(tars)} archives")
    files = agibot.superfluous(task_dir, args.camera, keep_tar=args.keep_tar)
    if not files:
        return
    if not args.yes:
        question = f"remove {len(files)} files below {task_dir} that are not {args.camera}.mp4, such as {files[0]}?"
        if not sys.stdin.isatty():
            raise ConfigError(f"would {question[:-1]}; pass --yes to remove them, or --split-only to leave them")
        if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing removed")
            return
    agibot.delete(files, task_dir)
    print(f"{task_dir}: {len(files)} files removed")


def _write_captions(args: argparse.Namespace, output: Path) -> None:
    from cosmos_predict.data import agibot

    table = output.with_name(f"{output.name}.jsonl")
    if not table.is_file():
        print(
            f"no captions: {table} is not there, and the download does not hold it. Put it there, an object a line with "
            f"video_clip (the name of a window), caption and episode_id, and give the command again with --split-only; or "
            f"write {output}/{{train,val}}/metas/WINDOW.txt yourself. Text embeddings are made of metas/ after that.",
            file=sys.stderr,
        )
        return
    count, unmatched = agibot.write_captions(table, output, args.val_episode_ids)
    for line in unmatched:
        print(f"unmatched: {line}", file=sys.stderr)
    print(f"{output}: {count} captions written, {len(unmatched)} names unmatched")

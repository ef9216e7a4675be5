"""`scripts/prepare_agibot_fisheye_data.py`: AgiBotWorld episodes of one camera as a dataset of captioned windows.

Downloads tasks, keeps one camera, cuts its videos into windows (train/ and val/), and writes the captions of
PARENT/agibot_CAMERA.jsonl, a table of your own, to metas/. Existing files are kept, so a run can be repeated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cosmos_predict.cli.program import HelpFormatter, command, tell_failed
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.hub import download_snapshot


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; published flags keep their names and defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--task_ids", type=int, nargs="+", default=[327], help="tasks to prepare")
    root = Path("datasets/agibot")
    add("--data_dir", type=Path, default=root, help="folder with (or for) observations/ and task_info/")
    add("--repo_id", default="agibot-world/AgiBotWorld-Alpha", help="where to download from")
    add("--keep_tar", action="store_true", help="keep the downloaded archives")
    add("--camera", default="head_center_fisheye_color", help="the camera to keep")
    only = "unpack and remove what is not of the camera; no download, no cutting"
    add("--delete-only", action="store_true", help=only)
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
                patterns = [f"observations/{task}/*.tar", f"task_info/task_{task}.json"]
                download_snapshot(args.repo_id, patterns, repo_type="dataset", local_dir=args.data_dir)
            _keep_camera(args, task_dir)
        if args.delete_only:
            continue
        report = agibot.cut_episodes(
            task_dir, args.camera, output, args.val_episode_ids, args.window_size, args.min_last_window
        )
        failed |= report.failed
        print(f"task {task}: {report.written} windows written, {report.kept} kept (already there) in {output}")
    status = tell_failed(failed)
    if not args.delete_only:
        _write_captions(args, output)
    return status


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


main = command(prepare, build_parser)

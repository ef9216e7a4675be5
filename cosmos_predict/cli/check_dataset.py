"""`scripts/check_dataset.py`: whether datasets can be trained on, what is unusable and why, and what they fit.

Reads every sample as training does, and tells what the datasets hold and the experiments that they fit. Any layout;
nothing is changed. Exit status 1 where something is unusable.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_predict.cli.program import command, configure_logging, positive_int

if TYPE_CHECKING:
    from cosmos_predict.data.check import Report


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("dataset", type=Path, nargs="+", help="folder of a dataset, or of several (train/ and val/)")
    add("--num_frames", type=positive_int, help="frames of a sample; shorter clips are unusable (default: any length)")
    add("--every_frame", action="store_true", help="decode all of every clip, not a window of at most 121 frames")
    add("--workers", type=positive_int, default=4, help="clips read at a time (default: %(default)s)")
    add("--json", action="store_true", help="print everything that was found, as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Check and print; 1 where a sample is unusable or a dataset has none, else 0."""
    from cosmos_predict.data.check import check

    configure_logging(args.verbose, level="ERROR")  # the report says the rest
    reports = [
        report for folder in args.dataset for report in check(folder, args.num_frames, args.every_frame, args.workers)
    ]
    if args.json:
        print(json.dumps([dataclasses.asdict(report) for report in reports], indent=1))
    else:
        print("\n\n".join(text(report) for report in reports))
    return 1 if any(report.unusable or not report.samples for report in reports) else 0


def text(report: Report, listed: int = 20) -> str:
    """Return a report as a short table; at most `listed` names of a kind."""
    samples, total = list(report.samples.values()), len(report.samples) + len(report.unusable)
    frames, hours = sorted(s[0] for s in samples), sum(s[0] / s[3] for s in samples) / 3600
    lines = [f"{report.folder} ({report.layout})", f"  usable      {len(samples)} of {total}, {hours:.3f} hours"]
    if samples:
        median = frames[len(frames) // 2]
        lines.append(f"  frames      {frames[0]} to {frames[-1]}, median {median}, {sum(frames)} in all")
        sizes, rates = Counter(f"{s[1]}x{s[2]}" for s in samples), Counter(f"{s[3]:g}" for s in samples)
        lines += [f"  size (HxW)  {_counts(sizes)}", f"  fps         {_counts(rates)}"]
    if report.captions is not None:
        lines.append(f"  captions    {report.captions}")
    by = f", of the text encoder {', '.join(report.text_encoders)}" if report.text_encoders else ""
    lines.append(f"  embeddings  {report.embeddings}{by}")
    lines += [f"  the same    {' = '.join(group)}" for group in report.duplicates[:listed]]
    lines += [f"  unusable    {name}: {reason}" for name, reason in list(report.unusable.items())[:listed]]
    if (more := max(len(report.unusable), len(report.duplicates)) - listed) > 0:
        lines.append(f"  ... and {more} more (--json lists all)")
    for fit in report.experiments:
        note = fit.reason or (f"{fit.enlarged} enlarged" if fit.enlarged else "")
        names = fit.experiments[0] + (f" and {len(fit.experiments) - 1} more" if fit.experiments[1:] else "")
        needs = f"{fit.num_frames} frames of {fit.video_size[0]}x{fit.video_size[1]}"
        lines.append(f"  fits        {needs:<22}  {fit.clips} of {total}{f' ({note})' if note else ''}: {names}")
    return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    more = f" and {len(counter) - 5} more" if len(counter) > 5 else ""
    return ", ".join(f"{value} ({count})" for value, count in counter.most_common(5)) + more


main = command(run, build_parser)

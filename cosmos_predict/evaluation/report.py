"""Scores of several methods on the same clips: means, paired differences, as a table and as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cosmos_predict.evaluation.metrics import mean_interval

DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4}
Scores = Mapping[str, Mapping[str, Sequence[np.ndarray]]]  # method -> metric -> per clip, per generated frame (T,)


def summarise(scores: Scores) -> dict[str, Any]:
    """Return `methods`: per method and metric the mean over clips, half its 95 % interval (None for one clip), `per_clip` and
    `per_frame` means; and `differences`: first method less each other, clip by clip, with half the paired interval."""
    clips: dict[str, dict[str, np.ndarray]] = {}
    methods: dict[str, dict[str, Any]] = {}
    for method, metrics in scores.items():
        clips[method] = {metric: np.array([frames.mean() for frames in values]) for metric, values in metrics.items()}
        methods[method] = {metric: _mean(values) for metric, values in clips[method].items()}
        for metric, values in metrics.items():
            methods[method][metric]["per_clip"] = clips[method][metric].round(5).tolist()
            methods[method][metric]["per_frame"] = np.mean(values, axis=0).round(5).tolist()
    first, *others = clips
    differences = {
        other: {metric: _mean(values - clips[other][metric]) for metric, values in clips[first].items()}
        for other in others
    }
    return {"methods": methods, "differences": differences}


def _mean(values: np.ndarray) -> dict[str, Any]:
    mean, interval = mean_interval(values)
    return {"mean": mean, "interval": None if math.isnan(interval) else interval}


def table(summary: Mapping[str, Any]) -> str:
    """Return `summarise`'s numbers as aligned text, mean +- half of the 95 % interval."""
    first = next(iter(summary["methods"]))
    rows = [("", *(metric.upper() + " dB" * (metric == "psnr") for metric in summary["methods"][first]))]
    rows += [(name, *_cells(entries, "")) for name, entries in summary["methods"].items()]
    rows += [(f"{first} - {other}", *_cells(entries, "+")) for other, entries in summary["differences"].items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(map(str.rstrip, lines))


def _cells(entries: Mapping[str, Mapping[str, Any]], sign: str) -> list[str]:
    half = {n: "n/a" if e["interval"] is None else f"{e['interval']:.{DIGITS[n]}f}" for n, e in entries.items()}
    return [f"{e['mean']:{sign}.{DIGITS[name]}f} +- {half[name]}" for name, e in entries.items()]

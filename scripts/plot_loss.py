"""Draw the loss of training runs from their `metrics.jsonl`.

    python scripts/plot_loss.py RUN_FOLDER [...] [--key loss] [--save_path output/loss.png]

Prints the first and the last value of every run (means of a tenth of its points).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

SIZE, MARGIN = (640, 360), (56, 28)
COLORS = ((200, 60, 40), (40, 90, 200), (50, 150, 70), (130, 70, 165))


def read_curve(run: Path, key: str) -> tuple[list[float], list[float]]:
    """Return iterations and values of `key` in a run folder's metrics; raises ValueError where there are none."""
    path = run / "metrics.jsonl" if run.is_dir() else run
    if not path.is_file():
        raise ValueError(f"no metrics at {path}: give the folder of a training run")
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    points = [(float(line["iteration"]), float(line[key])) for line in lines if key in line]
    if not points:
        known = ", ".join(sorted({name for line in lines for name in line})) or "nothing"
        raise ValueError(f"{path} has no {key!r}; it has {known}")
    return [x for x, _ in points], [y for _, y in points]


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of the first and of the last tenth of the values, one at least."""
    count = max(1, len(values) // 10)
    return sum(values[:count]) / count, sum(values[-count:]) / count


def plot(curves: dict[str, tuple[list[float], list[float]]], key: str, path: Path) -> None:
    """Write a PNG with one line per curve over iterations, the vertical axis from 0."""
    from PIL import Image, ImageDraw

    from cosmos_predict.io.atomic import atomic_path

    (width, height), (left, bottom) = SIZE, MARGIN
    right, top = width - 12, 24
    most_x = max(max(xs) for xs, _ in curves.values())
    ordered = sorted(y for _, ys in curves.values() for y in ys)
    most_y = max(
        ordered[min(len(ordered) - 1, int(0.98 * len(ordered)))] * 1.1, 1e-9
    )  # the first peak may leave the top
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / most_x * (right - left), height - bottom - min(y / most_y, 1.0) * (height - bottom - top)

    for tick in range(5):
        x, y = most_x * tick / 4, most_y * tick / 4
        draw.line([at(0, y), at(most_x, y)], fill=(225, 225, 225))
        draw.text((4, at(0, y)[1] - 6), f"{y:.3g}", fill="black")
        draw.text((at(x, 0)[0] - 10, height - bottom + 6), f"{round(x, 1):g}", fill="black")
    draw.rectangle([at(0, most_y), at(most_x, 0)], outline="black")
    draw.text((left, 6), f"{key} over iterations", fill="black")
    for number, (name, (xs, ys)) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        points = [at(x, y) for x, y in zip(xs, ys, strict=True)]
        draw.line(points, fill=color, width=2)
        if len(points) == 1:
            draw.circle(points[0], 3, fill=color)
        draw.text((right - 200, top + 4 + 14 * number), name, fill=color)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--key", default="loss", help="which number (default: %(default)s)")
    parser.add_argument("--save_path", type=Path, default=Path("output/loss.png"), help="(default: %(default)s)")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    try:
        curves = {run.name: read_curve(run, args.key) for run in args.runs}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    plot(curves, args.key, args.save_path)
    for name, (xs, ys) in curves.items():
        first, last = ends(ys)
        print(f"{name}: {args.key} {first:.3f} -> {last:.3f} over {xs[-1]:.0f} iterations")
    print(args.save_path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

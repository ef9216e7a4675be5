"""`OUT/report.html`: what was kept and why the rest was not, on one page without any other file; thresholds by looking.

The page depends on what is recorded alone, so it is the same whoever made it, and when.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from cosmos_predict.curate.records import DATASET, Records
from cosmos_predict.curate.stage import is_lost
from cosmos_predict.curate.summary import present, summarise
from cosmos_predict.data.video_reader import probe, read_frames
from cosmos_predict.errors import DataError

PAGE = "report.html"
SHOWN, EXAMPLES = 24, 4  # kept clips; clips of each reason
PROBLEMS = 200  # lines
CHART, PIXELS = (520, 170), 240  # width and height of a histogram; width of a frame


def conclude(records: Records, *what: Any) -> dict[str, Any]:
    """Write summary and page from the records of an output folder; return the totals. what: as of `summarise`."""
    summary = summarise(records, *what)
    write_report(records)
    return summary


def write_report(records: Records) -> None:
    """Write the page."""
    scores, limits = defaultdict[str, list[float]](list), dict[str, float]()
    kept, rejected = list[tuple[str, str]](), defaultdict[str, list[tuple[str, str]]](list)
    seen = defaultdict[str, Counter[str]](Counter)  # by reason, "" of what is kept: how many clips show which fault
    problems, counts, source, options = list[tuple[str, str]](), Counter[str](), "", dict[str, Any]()
    partly = list[tuple[str, str]]()  # videos of which parts are in no clip
    places, pairs = dict[str, str](), defaultdict[str, list[tuple[str, str]]](list)  # by reason: what repeats what
    for relative, record in records.scan():
        options, limits = record["options"], {**limits, **record.get("limits", {})}
        source = record["video"].removesuffix(relative)
        counts.update({"videos": 1, "seconds of video": record.get("duration", 0)})
        if record["status"] == "empty":
            problems.append((relative, f"no clip: {record.get('no_clips', '')}"))
        partly += [(relative, record["left_out"])] if record.get("left_out") and not record["error"] else []
        given_up = " (tried several times)" if record["attempts"] > 1 else ""
        clips = {} if record["error"] else record["clips"]
        for where, error in [(relative, record["error"]), *((n, c["error"]) for n, c in clips.items())]:
            if error:
                place = relative if where == relative else f"{relative} {where}"
                problems.append((place, f"{error['stage']}: {error['message']}{given_up}"))
        for name, clip in clips.items():
            if is_lost(clip["error"]):
                continue
            (rejected[clip["rejected"]] if clip["rejected"] else kept).append((relative, name))
            seen[clip["rejected"]].update(faults(clip["scores"]))
            start = clip["frames"][0] / record.get("framerate", 1)
            places[name] = f"{relative} {start:.1f}..{start + clip['duration']:.1f} s"
            if other := clip["scores"].get("duplicate_of"):
                alike = f"{clip['scores']['duplicate_similarity']:.4f} as {places.get(other, other)}"
                pairs[clip["rejected"]].append((places[name], alike))
            for score, value in _numbers(clip["scores"]):
                scores[score].append(value)
            if not clip["rejected"]:
                scores["seconds of a kept clip"].append(clip["duration"])
    seconds = sum(scores["seconds of a kept clip"])
    facts = {"videos": counts["videos"], "minutes of video": f"{counts['seconds of video'] / 60:.1f}"}
    facts |= {"clips kept": len(kept), "minutes kept": f"{seconds / 60:.1f}", "problems": len(problems)}
    facts |= {"clips rejected": sum(map(len, rejected.values()))}
    with tempfile.TemporaryDirectory() as scratch:
        shown = [_figure(records, *kept[k], Path(scratch)) for k in _spread(len(kept), SHOWN)]
        refused = [
            f"<h3>{escape(reason)}: {len(clips)}</h3>{_counted(seen[reason])}{_table(pairs[reason], '')}<div class='grid'>"
            + "".join(_figure(records, *clips[k], Path(scratch)) for k in _spread(len(clips), EXAMPLES))
            + "</div>"
            for reason, clips in sorted(rejected.items(), key=lambda item: (-len(item[1]), item[0]))
        ]
    inputs = present(records)
    parts = {
        "name": escape(source.strip("/").rpartition("/")[2]),
        "facts": "".join(f"<div><b>{value}</b>{name}</div>" for name, value in facts.items()),
        "histograms": "".join(_histogram(n, v, limits.get(n)) for n, v in sorted(scores.items()) if v) or "No scores.",
        "rejected": "".join(refused) or "Nothing.",
        "kept": "".join(shown) or "Nothing.",
        "faults": _counted(seen[""]),
        "problems": _table(problems),
        "partly": _table(partly),
        "ignored": _table([*inputs.ignored.items()], count=inputs.num_ignored),
        "options": escape(json.dumps(options, indent=1)),
    }
    template = Path(__file__).with_name(PAGE).read_text(encoding="utf-8")
    records.output.write(PAGE, Template(template).substitute(parts))


def _table(lines: Sequence[tuple[str, str]], empty: str = "Nothing.", count: int = 0) -> str:
    """Return the first lines, and how many more there are; count: of all, where not all are given."""
    rows = [f"<tr><td>{escape(where)}</td><td>{escape(text)}</td></tr>" for where, text in lines[:PROBLEMS]]
    more = (count or len(lines)) - len(rows)
    rows += [f"<tr><td>and {more} more</td></tr>"] if more else []
    return f"<table>{''.join(rows)}</table>" if rows else empty


def _numbers(scores: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield (dotted name, value) of all numbers, but for those that stand for an error."""
    for name, value in () if "error" in scores else scores.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
            yield f"{prefix}{name}", float(value)


def faults(scores: Mapping[str, Any]) -> list[str]:
    """Return what a model saw in any window of a clip that was not wanted, in order; "no readable answer" is one of these."""
    windows = scores.get("filtered_windows") or []
    said = [window.get("qwen_rejection_reasons", ["no readable answer"]) for window in windows]
    return [*dict.fromkeys(name for names in said for name in names)]


def _counted(seen: Counter[str]) -> str:
    return f"<p>{escape(', '.join(f'{name}: {count}' for name, count in seen.most_common()))}</p>" if seen else ""


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` numbers below `count`, evenly spread."""
    return [k * count // min(count, most) for k in range(min(count, most))]


def _figure(records: Records, relative: str, name: str, scratch: Path) -> str:
    """Return the middle frame of a clip with its caption, scores and place."""
    from PIL import Image

    meta = json.loads(records.output.read(f"metas/v0/{name}.json") or "{}")
    rows = meta.get("windows", ())
    captions = [text for row in rows for key, text in row.items() if key.endswith("_caption") and text]
    clip = records.read(relative)["clips"][name]
    start, end = meta.get("duration_span", (0.0, clip["duration"]))
    lines = [*captions[:1], f"{relative}, {start:.1f} .. {end:.1f} s"]
    lines += [f"seen: {', '.join(found)}"] if (found := faults(clip["scores"])) else []
    lines += [f"repeats {other}"] if (other := clip["scores"].get("duplicate_of")) else []
    lines += [f"{score} {value:.4g}" for score, value in _numbers(clip["scores"])]
    picture, target = "", scratch / "clip.mp4"
    try:
        window = [f"{row['start_frame']}_{row['end_frame']}" for row in rows][:1]
        place = meta.get("clip_location") or f"{DATASET}/videos/{'_'.join([name, *window])}.mp4"
        path = records.output.fetch(place, target)
        (frame,) = read_frames(path, [probe(path).frames // 2])
        image, data = Image.fromarray(frame), io.BytesIO()
        image.resize((PIXELS, max(round(PIXELS * image.height / image.width), 1))).save(data, "JPEG", quality=75)
        picture = f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}'>"
    except DataError as error:
        lines += [str(error)] if meta else []  # rejected before it was made
    finally:
        target.unlink(missing_ok=True)
    return f"<figure>{picture}<figcaption>{'<br>'.join(map(escape, lines))}</figcaption></figure>"


def _histogram(name: str, values: Sequence[float], limit: float | None) -> str:
    """Return a drawing of how often which value is; a limit is a dashed line, with how many lie below it."""
    (width, height), foot = CHART, 34
    marks = [*values, *([] if limit is None else [limit])]
    low, high = min(marks), max(marks)
    high = high if high > low else low + max(abs(low), 1.0) * 0.1
    counts, edges = np.histogram(values, bins=30, range=(low, high))
    scale = (width - 20) / (high - low)
    drawn = [f"<text x='10' y='16'>{escape(name)}: {len(values)} clips, median {np.median(values):.4g}</text>"]
    for count, left, right in zip(counts.tolist(), edges, edges[1:], strict=False):
        tall = (height - foot - 24) * count / max(int(counts.max()), 1)
        place = f"x='{10 + (left - low) * scale:.1f}' y='{height - foot - tall:.1f}'"
        size = f"width='{max((right - left) * scale - 1, 1):.1f}' height='{tall:.1f}'"
        drawn.append(f"<rect {place} {size}><title>{count} in {left:.4g} .. {right:.4g}</title></rect>")
    for value, anchor in ((low, "start"), (high, "end")):
        at = 10 + (value - low) * scale
        drawn.append(f"<text x='{at:.1f}' y='{height - foot + 14}' text-anchor='{anchor}'>{value:.4g}</text>")
    if limit is not None:
        at, below = 10 + (limit - low) * scale, sum(value < limit for value in values)
        drawn.append(f"<line class='limit' x1='{at:.1f}' x2='{at:.1f}' y1='22' y2='{height - foot}'/>")
        anchor = "start" if at < width / 2 else "end"
        text = f"limit {limit:.4g}: {below} below"
        drawn.append(f"<text class='limit' x='{at:.1f}' y='{height - 6}' text-anchor='{anchor}'>{text}</text>")
    return f"<svg role='img' width='{width}' height='{height}' viewBox='0 0 {width} {height}'>{''.join(drawn)}</svg> "

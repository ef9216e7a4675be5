"""The report: one page that needs nothing else, with the figures of the records; a browser shows it without complaint."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmos_predict.curate.listing import Inputs
from cosmos_predict.curate.records import Records
from cosmos_predict.curate.report import SHOWN, _histogram, _numbers, _spread, write_report
from cosmos_predict.curate.summary import present, summarise
from cosmos_predict.errors import CorruptFileError
from tests.curate.footage import make_set
from tests.curate.running import run_command, run_split

OWN = """
from cosmos_predict.curate.stage import Clip, Stage

class First(Stage):
    name, scope = "first <of all>", "clip"

    def limits(self):
        return {"numbers.first_frame": 100.0}

    def process(self, item: Clip) -> None:
        item.scores["numbers"] = {"first_frame": float(item.start), "word": "no number"}
        self.decide(item)
"""


class Page(HTMLParser):
    """Collects tags, texts by the section they are in, images and whatever points outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.section = ""
        self.counts: dict[str, dict[str, int]] = {}
        self.texts: dict[str, str] = {}
        self.images: list[str] = []
        self.outside: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.section = (given.get("id") or given.get("class") or "") if tag == "section" else self.section
        counts = self.counts.setdefault(self.section, {})
        counts[tag] = counts.get(tag, 0) + 1
        for name in ("src", "href"):
            if (value := given.get(name)) is not None:
                (self.images if value.startswith("data:image/jpeg") else self.outside).append(value)
        if tag not in ("meta", "link", "img", "br", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts[self.section] = self.texts.get(self.section, "") + data


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    make_set(folder / "in", 3)
    (folder / "in" / "part0" / "film_0.txt").write_text("Blocks & <b>more</b> blocks.")
    (folder / "in" / "part0" / "broken.mp4").write_text("no video")
    (folder / "own.py").write_text(OWN)
    run_split(
        folder / "in", folder / "out", "--stage", f"{folder / 'own.py'}:First", "--splitting-algorithm", "content"
    )
    return folder


@pytest.mark.slow
def test_page_holds_the_figures_of_the_records(reported: Path) -> None:
    from PIL import Image

    text = (reported / "out" / "report.html").read_text()
    page = Page(text)
    assert page.outside == ["data:,"] and "http" not in re.sub(r"data:image/jpeg;base64,[^']*", "", text)
    facts = page.texts["facts"]
    for figure in ("4videos", "4clips kept", "3clips rejected", "1problems"):
        assert figure in facts, facts
    assert page.counts["kept"]["figure"] == 4 and page.counts["rejected"]["figure"] == 3
    assert "first <of all>: 3" in page.texts["rejected"] and "Blocks & <b>more</b> blocks." in page.texts["kept"]
    assert page.counts["histograms"]["svg"] == 2 and page.counts["histograms"]["line"] == 1
    assert "numbers.first_frame: 7 clips" in page.texts["histograms"]
    assert "limit 100: 3 below" in page.texts["histograms"]
    assert "part0/broken.mp4" in page.texts["problems"] and "ingest: " in page.texts["problems"]
    assert len(page.images) == 7
    for image in page.images:
        with Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))) as picture:
            assert picture.size == (240, 144) and np.asarray(picture.convert("L")).max() > 50
    before = (reported / "out" / "report.html").read_bytes()
    (reported / "out" / "report.html").unlink()
    status, out, _ = run_command("report", str(reported / "out"))
    assert status == 1 and "num_clips_passed                 4" in out  # 1: a video failed
    assert (reported / "out" / "report.html").read_bytes() == before


@pytest.mark.slow
def test_a_browser_shows_it(reported: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here (Debian: apt-get install chromium); the page was not opened in a browser")
    probe = (
        "<script>window.onload = () => { const seen = [...document.images].filter(i => i.naturalWidth && i.offsetHeight);"
        "const bars = [...document.querySelectorAll('svg rect')].filter(r => r.getBoundingClientRect().height > 1);"
        "document.title = `${seen.length} pictures, ${bars.length > 5} bars`; console.log('page is ready'); }</script>"
    )
    copy = tmp_path / "report.html"
    copy.write_text((reported / "out" / "report.html").read_text().replace("</head>", f"{probe}</head>"))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
        "--virtual-time-budget=5000",
    ]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()]
    done = subprocess.run([browser, *flags], capture_output=True, text=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert "<title>7 pictures, true bars</title>" in done.stdout, (done.stdout[:300], done.stderr[-2000:])
    assert len(console) == 1 and "page is ready" in console[0], console


def test_nothing_to_show(tmp_path: Path) -> None:
    write_report(Records(tmp_path, {}))
    page = Page((tmp_path / "report.html").read_text())
    assert page.texts["kept"].startswith("Nothing.") and "0videos" in page.texts["facts"]


def test_a_failed_video_keeps_no_clip(tmp_path: Path) -> None:
    """And errors, and whether anything is kept, are told of the videos that are asked for."""
    clip = {"frames": [0, 100], "duration": 4.0, "rejected": "", "rejected_by": "", "error": {}, "scores": {}}
    failure = {"stage": "write", "type": "OSError", "message": "disk full"}
    records = Records(tmp_path, {})
    for name, error in (("good.mp4", {}), ("bad.mp4", failure)):
        facts = {"video": name, "video_uuid": "id", "num_total_clips": 1, "num_clip_chunks": 1, "attempts": 1}
        facts |= {"was_remuxed": True, "duration": 5.0, "input": [7, 0]}
        status = "failed" if error else "done"
        record = {**facts, "status": status, "error": error, "clips": {name: clip}, "options": {}, "outputs": []}
        records.output.write(f"processed_videos/{name}.json", json.dumps(record))
    summary = summarise(records)
    assert summary["num_clips_passed"] == 1 and summary["total_clip_duration"] == 4.0 and not summary["bare"]
    assert summary["errors"] == {"bad.mp4": "write: disk full"}
    write_report(records)
    facts = Page((tmp_path / "report.html").read_text()).texts["facts"]
    assert "1clips kept" in facts and "1problems" in facts
    for names, errors, bare in (((), 0, False), (("good.mp4",), 0, False), (("bad.mp4",), 1, True)):
        found = summarise(records, names)
        assert (len(found["errors"]), found["bare"]) == (errors, bare) and found["num_clips_passed"] == 1
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["errors"] == summary["errors"]  # of all, there
    assert written["bad.mp4"] == {"source_video": "bad.mp4", "processed": False}
    names = ("num_input_videos", "num_processed_videos", "num_remuxed_videos", "total_video_bytes", "max_clip_duration")
    assert [written[name] for name in names] == [2, 1, 1, 7, 4.0]


def test_what_a_model_found_and_what_repeats_is_named(tmp_path: Path) -> None:
    """Under each picture, and counted: by clips, however many windows show a fault."""
    records, clips = Records(tmp_path, {}), dict[str, dict[str, Any]]()
    for name, rejected, windows in (
        ("a", "qwen_semantic", [["slideshow", "fast <zoom>"], ["slideshow"]]),
        ("b", "qwen_semantic", [["slideshow"], []]),
        ("c", "qwen_semantic", [None, None]),
        ("d", "duplicate", []),
        ("e", "", [["rotated view"], [], []]),
        ("f", "", [[], []]),
    ):
        notes = [
            {"errors": ["malformed_model_output"]} if w is None else {"qwen_rejection_reasons": w} for w in windows
        ]
        scores: dict[str, Any] = {"filtered_windows": notes}
        scores |= {"duplicate_of": "f", "duplicate_similarity": 0.99} if name == "d" else {}
        clips[name] = {"duration": 4.0, "rejected": rejected, "error": {}, "scores": scores, "frames": [48, 144]}
    clips["d"]["frames"] = [480, 576]
    record = {
        "framerate": 24.0,
        "video": "a.mp4",
        "status": "done",
        "error": {},
        "clips": clips,
        "options": {},
        "outputs": [],
        "attempts": 0,
    }
    records.output.write("processed_videos/a.mp4.json", json.dumps(record))
    write_report(records)
    text = Page((tmp_path / "report.html").read_text()).texts
    assert "qwen_semantic: 3slideshow: 2, fast <zoom>: 1, no readable answer: 1a.mp4" in text["rejected"]
    for line in ("seen: slideshow, fast <zoom>", "seen: slideshow", "seen: no readable answer", "repeats f"):
        assert line in text["rejected"]
    assert "duplicate: 1a.mp4 20.0..24.0 s0.9900 as f" in text["rejected"]  # found before this page knows f
    assert "seen: rotated view" in text["kept"] and text["kept"].count("seen: ") == 1
    assert "rotated view: 1" in "".join(text.values())


def test_a_chunk_record_that_is_none_is_named(tmp_path: Path) -> None:
    records = Records(tmp_path, {})
    record = {"video": "a.mp4", "status": "empty", "error": {}, "clips": {}}
    records.output.write("processed_videos/a.mp4.json", json.dumps(record))
    records.output.write("processed_clip_chunks/a.mp4_0.json", "{")
    with pytest.raises(CorruptFileError, match=r"a\.mp4_0\.json: not a chunk record .*remove it"):
        summarise(records)


def test_what_is_not_processed_stays_known(tmp_path: Path) -> None:
    records, ignored = Records(tmp_path, {}), {f"file_{index}": "no video" for index in range(3)}
    summarise(records, (), Inputs({"a.mp4": "/in/a.mp4"}, ignored=ignored, num_ignored=500))
    before = (tmp_path / "summary.json").read_bytes()
    summarise(records)
    assert (tmp_path / "summary.json").read_bytes() == before
    assert present(records) == Inputs({"a.mp4": "/in/a.mp4"}, ignored=ignored, num_ignored=500)
    write_report(records)
    text = Page((tmp_path / "report.html").read_text()).texts["ignored"]
    assert "file_2" in text and "and 497 more" in text
    for content in ("{", "[]", '{"ignored_files": 3}'):
        (tmp_path / "summary.json").write_text(content)
        assert present(records) == Inputs()


def test_parts() -> None:
    assert _spread(0, 4) == [] and _spread(3, 4) == [0, 1, 2] and _spread(100, 4) == [0, 25, 50, 75]
    assert SHOWN == 24
    scores = {
        "a": {"b": 1, "c": float("nan")},
        "n": {"m": -1.0, "error": "no"},
        "d": "text",
        "e": 2.5,
        "f": [1, 2],
        "g": True,
    }
    assert [*_numbers(scores)] == [("a.b", 1.0), ("e", 2.5)]
    drawn = _histogram("one value", [2.0, 2.0], None)
    assert "2 in" in drawn and "nan" not in drawn and "line" not in drawn
    assert "limit 0: 1 below" in _histogram("x", [-1.0, 1.0], 0.0)

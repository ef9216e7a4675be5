"""Captions without a model."""

import json
from pathlib import Path

import pytest
from loguru import logger

from cosmos_predict.curate.captions import sidecar, template
from cosmos_predict.curate.listing import list_videos, require_captions
from cosmos_predict.curate.media import Footage
from cosmos_predict.curate.stage import Clip, Video, Window
from cosmos_predict.curate.storage import Store
from cosmos_predict.errors import DataError

WINDOW = Window(0, 119)


def clip(folder: Path, name: str = "push_red_block_01.mp4", start: int = 240) -> Clip:
    video = Video(str(folder / name), name, folder, footage=Footage(facts={"framerate": 24.0}))
    return Clip(video, start, start + 120, "id", (start / 24, start / 24 + 5))


def test_text_beside_or_in_metas(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (tmp_path / "metas").mkdir()
    (tmp_path / "metas" / "push_red_block_01.txt").write_text("From metas.\n")
    assert sidecar(clip(folder), WINDOW) == "From metas."
    (folder / "push_red_block_01.txt").write_text("\ufeffBeside it.\n", encoding="utf-8")
    assert sidecar(clip(folder), WINDOW) == "Beside it."


def test_json_forms(tmp_path: Path) -> None:
    file = tmp_path / "push_red_block_01.json"
    for content in ({"caption": " One. "}, {"prompt": "One."}):
        file.write_text(json.dumps(content))
        assert sidecar(clip(tmp_path), WINDOW) == "One."
    parts = [{"start": 0, "end": 11, "caption": "First."}, {"start": 11, "end": 60, "caption": "Second."}]
    file.write_text(json.dumps({"caption": parts}))
    assert sidecar(clip(tmp_path), WINDOW) == "Second."  # 10 s to 15 s
    assert sidecar(clip(tmp_path, start=100), WINDOW) == "First."
    told = r"no caption of push_red_block_01\.mp4, 208\.3\.\.213\.3 s: push_red_block_01\.json has no entry for these seconds"
    with pytest.raises(DataError, match=told):
        sidecar(clip(tmp_path, start=5000), WINDOW)
    file.write_text(json.dumps({"caption": [{**parts[0]}, {**parts[1], "start": "0:08"}]}))
    with pytest.raises(DataError, match=r"push_red_block_01\.json: entry 2: start must be seconds, got '0:08'"):
        sidecar(clip(tmp_path), WINDOW)
    file.write_text(json.dumps({"caption": [{"from": 0}]}))
    with pytest.raises(DataError, match=r"push_red_block_01\.json: expected entries with caption"):
        sidecar(clip(tmp_path), WINDOW)
    file.write_text("{")
    with pytest.raises(DataError, match=r"push_red_block_01\.json: expected entries with caption"):
        sidecar(clip(tmp_path), WINDOW)


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text('file,caption\npush_red_block_01.mp4,"Red, to the left."\n')
    assert sidecar(clip(tmp_path), WINDOW) == "Red, to the left."
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "captions.jsonl").write_text('{"video_clip": "a/push_red_block_01.mp4", "caption": "From lines."}\n\n')
    assert sidecar(clip(tmp_path), WINDOW) == "From lines."
    with pytest.raises(
        DataError, match=r"no caption of other\.mp4, 10\.0\.\.15\.0 s: expected other\.txt or \.json .* template"
    ):
        sidecar(clip(tmp_path, "other.mp4"), WINDOW)
    (tmp_path / "captions.jsonl").write_text('{"video_clip": "a.mp4"}\n')
    with pytest.raises(DataError, match=r"captions\.jsonl: expected entries with caption \(and file"):
        sidecar(clip(tmp_path), WINDOW)


def test_tables_further_up(tmp_path: Path) -> None:
    """They name videos by path; the nearest one that does counts, and `day2/a.mov` is not the caption of `a.mov`."""
    for folder in ("day2", "day2/cam"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mov").touch()
    (tmp_path / "captions.csv").write_text(
        "file,caption\nday2/a.mov,Of day 2.\nday2/cam/a,Of the camera.\na.mov,Other.\n"
    )

    def found(place: str) -> str:
        made = clip(tmp_path, place)
        return sidecar(made, WINDOW)

    assert [found(place) for place in ("day2/a.mov", "day2/cam/a.mov", "a.mov")] == [
        *("Of day 2.", "Of the camera.", "Other.")
    ]
    (tmp_path / "day2" / "cam" / "captions.jsonl").write_text('{"file": "a.mov", "caption": "Near."}')
    assert found("day2/cam/a.mov") == "Near."
    (tmp_path / "captions.csv").write_text("file,caption\nday2/a.mov,Of day 2.\n")
    with pytest.raises(DataError, match=r"a\.mov, .* its line in captions\.jsonl or captions\.csv there or further up"):
        found("a.mov")


def test_lines_that_name_no_video_are_counted(tmp_path: Path) -> None:
    (tmp_path / "day2").mkdir()
    for name in ("a.mp4", "day2/b.mp4"):
        (tmp_path / name).touch()
    rows = ["a,A.", "day2/b.mp4,B.", *(f"gone_{k}.mp4,Gone." for k in range(7)), "b.mp4,Elsewhere."]
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *rows]))
    (tmp_path / "day2" / "captions.jsonl").write_text("no table")
    _, inputs = list_videos(tmp_path)
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    require_captions(Store(tmp_path), inputs)
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *rows[:2]]))
    require_captions(Store(tmp_path), inputs)
    logger.remove(sink)
    (line,) = lines
    assert line.startswith(
        "8 lines of caption tables name no video here: captions.csv: gone_0.mp4, captions.csv: gone_1.mp4"
    )
    assert "gone_5" not in line and ", ...; a table names videos by their paths" in line


def test_tables_that_name_no_video_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    for columns in ("clip_id,prompt", "Video_Clip, Text"):
        table.write_text(f"{columns}\nother,Another.\npush_red_block_01,It.\n")
        assert sidecar(clip(tmp_path), WINDOW) == "It."
    table.write_text("filename,caption\nother.mp4,Another.\npush_red_block_01.mp4,It.\n")
    message = r"captions\.csv: .*no video named in .*columns of a table: file or clip_id or .*; prompt or caption or"
    with pytest.raises(DataError, match=message):
        sidecar(clip(tmp_path), WINDOW)
    table.write_text("file,caption,start,end\npush_red_block_01.mp4,It.,,\n")
    assert sidecar(clip(tmp_path), WINDOW) == "It."
    table.write_text("file,caption,start,end\npush_red_block_01.mp4,It.,soon,\n")
    with pytest.raises(DataError, match=r"captions\.csv: entry 1: start must be seconds, got 'soon'"):
        sidecar(clip(tmp_path), WINDOW)
    table.write_text('{"file": "push_red_block_01.mp4"}')
    with pytest.raises(DataError, match=r"captions\.jsonl: .*no caption in"):
        table.rename(tmp_path / "captions.jsonl")
        sidecar(clip(tmp_path), WINDOW)


def test_a_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "push_red_block_01.txt").write_bytes("Grün.".encode("latin-1"))
    with pytest.raises(DataError, match=r"push_red_block_01\.txt: expected a caption in UTF-8, got 'utf-8' codec"):
        sidecar(clip(tmp_path), WINDOW)


def test_template(tmp_path: Path) -> None:
    caption = template("{words} | {stem} | {parent} | {duration} | {fps}")
    assert caption(clip(tmp_path / "kitchen"), WINDOW) == "push red block | push_red_block_01 | kitchen | 5.0 | 24"
    assert template("{words}")(clip(tmp_path / "kitchen", "0001.mp4"), WINDOW) == "kitchen"
    for wrong in ("{shape}", "{", "{0}"):
        with pytest.raises(DataError, match=r"--caption-template .* known: \{words\}"):
            template(wrong)

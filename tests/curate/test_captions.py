"""Captions without a model."""

import json
from pathlib import Path

import pytest

from cosmos_predict.curate.captions import sidecar, template
from cosmos_predict.curate.media import Footage
from cosmos_predict.curate.stage import Clip, Video, Window
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
    with pytest.raises(DataError, match=r"no caption of push_red_block_01\.mp4, 208\.3\.\.213\.3 s: "):
        sidecar(clip(tmp_path, start=5000), WINDOW)
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
    with pytest.raises(DataError, match=r"captions\.csv: .*could not convert string to float: 'soon'"):
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

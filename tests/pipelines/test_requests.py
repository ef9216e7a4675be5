"""Batch files, output names and sidecars."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.pipelines.requests import check_same_files, output_path, read_batch


def test_published_keys(tmp_path: Path) -> None:
    batch = tmp_path / "batch.json"
    batch.write_text(
        '[{"input_video": "a.mp4", "prompt": "one", "output_video": "o.mp4"},\n {"input_video": "b.jpg", "prompt": "two"}]'
    )
    first, second = read_batch(batch, ["prompt", "input_path"], ".mp4")
    assert first == {"save_path": "o.mp4", "input_path": "a.mp4", "prompt": "one"}
    assert second["save_path"] == "output_1.mp4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"prompt": "a"}\n{"prompt": "b"}]', r"line 3: no valid JSON: .*\n  \{\"prompt\": \"b\"\}\]"),
        ("", "line 1: no valid JSON"),
        ('{"prompt": "a"}', "line 1: expected a list of objects"),
        ('[{"prompt": "a"},\n "b"]', 'line 2: item 1 is no object\n  "b"]'),
        ('[{"prompt": "a",\n  "output_vido": "x"}]', "line 2: unknown key 'output_vido'; did you mean output_video"),
        (r'[{"prompt": "a"}, {"vid\u00e9o": "x"}]', "line 1: unknown key 'vidéo'; did you mean"),
        ('[{"prompt": "a"},\n\n {"output_video": "x.mp4"}]', "line 3: item 1: prompt is None, expected str"),
        ('[{"prompt": ""}]', "line 1: item 0: prompt is '', expected str"),
        ('[{"prompt": "a", "seed": "1"}]', "item 0: seed is '1', expected int"),
        ('[{"prompt": "a", "seed": -1}]', "item 0: seed is -1, expected int from 0 to 4294967295"),
        ('[{"prompt": "a", "seed": true}]', "item 0: seed is True, expected int"),
        (
            '[{"prompt": "a", "output_video": "x.mp4"},\n {"prompt": "b", "output_video": "x.mp4"}]',
            "line 2: item 1 writes x.mp4",
        ),
    ],
)
def test_malformed_batches_show_the_line(tmp_path: Path, text: str, message: str) -> None:
    batch = tmp_path / "batch.json"
    batch.write_text(text)
    with pytest.raises(DataError, match=message):
        read_batch(batch, ["prompt"], ".mp4")


def test_a_batch_that_is_not_utf8(tmp_path: Path) -> None:
    batch = tmp_path / "batch.json"
    batch.write_bytes('[{"prompt": "a"},\n {"prompt": "café"}]'.encode("latin-1"))
    with pytest.raises(DataError, match=r"batch.json: no UTF-8 text at line 2, byte 34 of the file \(0xe9\)"):
        read_batch(batch, ["prompt"], ".mp4")
    batch.write_bytes('\ufeff[{"prompt": "café"}]'.encode())
    assert read_batch(batch, ["prompt"], ".mp4")[0]["prompt"] == "café"


def test_no_batch_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no batch file"):
        read_batch(tmp_path / "none.json", [], ".mp4")


def test_output_names(tmp_path: Path) -> None:
    assert output_path(str(tmp_path / "new" / "clip"), (".mp4",)) == tmp_path / "new" / "clip.mp4"
    assert (tmp_path / "new").is_dir()
    assert output_path(str(tmp_path / "a.PNG"), (".jpg", ".png")).name == "a.PNG"
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "out").mkdir()
    for name in (f"{tmp_path}/folder.mp4", f"{tmp_path}/out", f"{tmp_path}/none/", ""):
        with pytest.raises(ConfigError, match="expected a file's name, and this is a folder's"):
            output_path(name, (".mp4",))
    assert not (tmp_path / "out.mp4").exists() and not (tmp_path / "none.mp4").exists()


def test_files_of_a_sidecar_are_compared_by_option(tmp_path: Path) -> None:
    old = {"command": "text2world", "arguments": {"lora_path": ["a", "b"], "dit_path": "m.pt", "prompt": "p.npy"}}
    old["hashes"] = {"lora_path": ["1", "2"], "dit_path tokenizer": "3", "prompt": "4"}
    sidecar = tmp_path / "a.json"
    sidecar.write_text(json.dumps(old))

    def check(hashes: Mapping[str, object], **arguments: object) -> None:
        new = {"arguments": {**old["arguments"], **arguments}, "hashes": {**old["hashes"], **hashes}, "environment": {}}
        check_same_files(sidecar, new)

    check({})
    check({"lora_path": ["1", "5"], "prompt": "5"}, lora_path=["a", "c"], prompt="q.npy")  # other files are meant
    check({"lora_path": []}, lora_path=[])
    check({"prompt": None}, prompt="p.npy")  # not read any more
    for hashes, message in (
        ({"lora_path": ["1", "5"]}, "b was 2 and is 5 now; give the one it was made with as --lora_path"),
        ({"dit_path tokenizer": "5"}, "the tokenizer of m.pt was 3 and is 5 now; .* --dit_path$"),
    ):
        with pytest.raises(DataError, match=message):
            check(hashes)

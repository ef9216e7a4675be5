"""What a record says of options: those of other versions, and those that a machine decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from cosmos_predict.curate.records import Records
from cosmos_predict.curate.split import open_records
from cosmos_predict.curate.stage import Clip, Video
from cosmos_predict.curate.stages import Transcode, defaults, settle
from cosmos_predict.curate.storage import Store
from cosmos_predict.errors import ConfigError
from tests.curate.footage import make_set
from tests.curate.running import options_of, run_command, run_split

BY_MODEL = ("--splitting-algorithm", "content", "--captioning-algorithm", "qwen")


def records_of(output: Path, *flags: str) -> Records:
    return open_records(
        Store(output), settle(options_of(*flags)), [name for name in options_of() if name not in defaults()]
    )


def done_by(output: Path, *flags: str) -> tuple[Path, dict[str, Any]]:
    """Write the record of a video that is done; return its file and what it says."""
    video = Video("/in/a.mp4", "a.mp4", output / "work", [1, 2])
    scores = {"motion_score": {"global_mean": 0.5, "per_patch_min_256": 0.5}}
    video.clips = [Clip(video, 0, 96, "clip", (0.0, 4.0), scores=scores)]
    records_of(output, *flags).finish(video)
    path = output / "processed_videos" / "a.mp4.json"
    return path, json.loads(path.read_text())


def left(output: Path, *flags: str) -> list[Video]:
    return records_of(output, *flags).todo([Video("/in/a.mp4", "a.mp4", output / "work", [1, 2])], "none", 3)[0]


def test_an_option_of_a_later_version(tmp_path: Path) -> None:
    """A record of before says nothing of it: that is the default, as it was then."""
    assert options_of().keys() > defaults().keys() > {"transcode_crf", "captioning_backend"}
    path, record = done_by(tmp_path, "--splitting-algorithm", "content")
    assert record["options"]["transcode_crf"] == 18  # noted, so that another default of a later version is no secret
    del record["options"]["transcode_crf"]
    path.write_text(json.dumps(record))
    assert left(tmp_path, "--splitting-algorithm", "content") == []
    with pytest.raises(ConfigError, match=r"a\.mp4: --transcode-crf was 18, is 30"):
        left(tmp_path, "--splitting-algorithm", "content", "--transcode-crf", "30")
    record["options"]["of_yore"] = "yes"  # of this version nothing is known
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="--of-yore was yes, is None"):
        left(tmp_path, "--splitting-algorithm", "content")


@pytest.mark.slow
def test_a_stage_of_another_version_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_set(tmp_path / "in", 1)
    flags = ["--splitting-algorithm", "content", "--text-encoder", "none"]
    run_split(tmp_path / "in", tmp_path / "out", *flags)
    record = tmp_path / "out" / "processed_videos" / "part0" / "film_0.mp4.json"
    assert not any(" " in name for name in json.loads(record.read_text())["options"])  # the first one says nothing
    monkeypatch.setattr(Transcode, "version", 2)
    with pytest.raises(ConfigError, match=r"film_0\.mp4: version of stage transcode was 1, is 2\n--redo changed"):
        run_split(tmp_path / "in", tmp_path / "out", *flags)
    run_split(tmp_path / "in", tmp_path / "out", *flags, "--redo", "changed")
    assert json.loads(record.read_text())["options"]["version of stage transcode"] == 2
    run_split(tmp_path / "in", tmp_path / "out", *flags)
    monkeypatch.setattr(Transcode, "version", 1)
    with pytest.raises(ConfigError, match="version of stage transcode was 2, is 1"):
        run_split(tmp_path / "in", tmp_path / "out", *flags)


@pytest.mark.slow
def test_records_of_an_older_version_can_be_revised(tmp_path: Path) -> None:
    make_set(tmp_path / "in", 1)
    flags = ["--splitting-algorithm", "content"]
    run_split(tmp_path / "in", tmp_path / "out", *flags)
    (path,) = (tmp_path / "out" / "processed_videos").rglob("*.json")
    record = json.loads(path.read_text())
    record["options"] = {
        name: record["options"][name] for name in ("splitting_algorithm", "captioning_algorithm", "stage")
    }
    path.write_text(json.dumps(record))
    status, _, err = run_command("filter", str(tmp_path / "out"))
    assert status == 0, err
    summary = run_split(tmp_path / "in", tmp_path / "out", *flags)
    assert summary["num_videos_done"] == 1


CONTENT = ("--splitting-algorithm", "content")


def test_limits_and_captions_alone_need_nothing_made_again(tmp_path: Path) -> None:
    given = ("--motion-filter", "enable", "--motion-global-mean-threshold", "0.001")
    path, record = done_by(tmp_path, *CONTENT, *given)
    with pytest.raises(ConfigError) as caught:
        left(tmp_path, *CONTENT, "--motion-filter", "enable")
    expected = (
        f"curate.py filter {tmp_path} --motion-global-mean-threshold 0.00098 applies them without decoding; "
        "split with --motion-global-mean-threshold 0.001, as recorded, goes on"
    )
    alone = "--motion-global-mean-threshold: limits alone, nothing need be made again: "
    assert str(caught.value).endswith(f"was 0.001, is 0.00098\n{alone}{expected}")
    with pytest.raises(ConfigError, match="limits alone, .*--motion-filter disable applies"):
        left(tmp_path, *CONTENT, *given[2:])
    with pytest.raises(ConfigError, match=r"--aesthetic-threshold was None, is 3\.5\n--redo changed .*folder$"):
        left(tmp_path, *CONTENT, *given, "--aesthetic-threshold", "3.5")  # nothing is scored
    with pytest.raises(ConfigError, match=r"--redo changed [^\n]*folder\n--motion-filter: limits alone"):
        left(tmp_path, *CONTENT, *given, "--motion-filter", "score-only", "--transcode-crf", "30")
    template = ("--captioning-algorithm", "template", "--caption-template", "A clip.")
    with pytest.raises(ConfigError) as caught:
        left(tmp_path, *CONTENT, *given, *template)  # the clip has no caption
    assert f"curate.py caption {tmp_path} --caption-template 'A clip.' --captioning-algorithm template" in str(
        caught.value
    )
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    path.write_text(json.dumps({**record, "outputs": ["cosmos_predict2_video2world_dataset/metas/clip_0_95.txt"]}))
    assert left(tmp_path, *CONTENT, *given, *template) == []
    logger.remove(sink)
    assert "--captioning-algorithm was sidecar, is template" in lines[-1]
    assert ": what is captioned stays so; curate.py caption OUT --all with these" in lines[-1]
    path.write_text(json.dumps({**record, "status": "empty", "clips": {}}))
    assert left(tmp_path, *CONTENT, *template) == []
    path.write_text(json.dumps({**record, "status": "failed", "attempts": 1}))
    assert len(left(tmp_path, *CONTENT, *template)) == 1
    with pytest.raises(ConfigError, match="--transcode-crf was 18, is 30\n--redo changed"):
        left(tmp_path, *CONTENT, "--transcode-crf", "30")


def test_what_runs_the_models_is_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    monkeypatch.setenv("PATH", str(tmp_path))
    path, record = done_by(tmp_path, *BY_MODEL)
    logger.remove(sink)
    assert record["options"]["captioning_backend"] == "transformers"
    assert lines[-1] == "--captioning-backend auto: transformers runs qwen\n"
    assert left(tmp_path, *BY_MODEL) == []
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o755)
    with pytest.raises(ConfigError, match="--captioning-backend was transformers, is vllm"):
        left(tmp_path, *BY_MODEL)
    assert left(tmp_path, *BY_MODEL, "--captioning-backend", "transformers") == []
    record["options"]["captioning_backend"] = "auto"  # of an older version: nobody knows
    path.write_text(json.dumps(record))
    assert left(tmp_path, *BY_MODEL) == []
    for flags in (["--captioning-algorithm", "template"], ["--captioning-algorithm", "openai"]):
        assert settle(options_of(*flags))["captioning_backend"] == "auto"  # nothing runs here
    for flags in (["--vlm-filter", "enable"], ["--enhance-captions"]):
        assert settle(options_of(*flags))["captioning_backend"] == "vllm"


def test_all_is_read_in_order(tmp_path: Path) -> None:
    records = Records(tmp_path, {})
    names = [f"{index:04d}.mp4" for index in range(1100)]
    for name in names[::2]:
        (tmp_path / "processed_videos").mkdir(exist_ok=True)
        (tmp_path / "processed_videos" / f"{name}.json").write_text(json.dumps({"video": name}))
    assert [*records.scan()] == [(name, {"video": name}) for name in names[::2]]
    found = dict(records.scan(names))
    assert [*found] == names and all(bool(record) == (name in names[::2]) for name, record in found.items())

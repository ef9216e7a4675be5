"""Limits: which of them decide nothing is told; other ones make no video again that has no clips; folders without results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from loguru import logger

from cosmos_predict.cli import curate as cli
from cosmos_predict.curate.changes import idle_limits
from cosmos_predict.curate.records import Records
from cosmos_predict.curate.revise import refilter
from cosmos_predict.curate.stage import Clip, Video
from cosmos_predict.curate.stages import build_stages
from cosmos_predict.curate.storage import Store
from cosmos_predict.curate.summary import summarise
from cosmos_predict.data.video_reader import write_video
from tests.curate.running import options_of
from tests.curate.test_revise import run_options

MOVING = {"motion_score": {"global_mean": 1.0, "per_patch_min_256": 1.0}}
CONTENT = ["--splitting-algorithm", "content"]


def recorded(output: Path, *flags: str, **scores: object) -> Records:
    """Write the record and metas of a video of three clips that are kept, the first of them with other scores."""
    options = {**options_of(*CONTENT, *flags), "stage": []}
    records = Records(output, options)
    records.limits = {name: least for stage in build_stages(options) for name, least in stage.limits().items()}
    video = Video("/in/a.mp4", "a.mp4", output / "work", [1, 2])
    video.footage.facts["framerate"] = 24.0
    for number in range(3):
        video.clips.append(Clip(video, 100 * number, 100 * number + 96, str(number), (0.0, 4.0), scores=dict(MOVING)))
    video.clips[0].scores |= scores
    records.finish(video)
    return records


def test_limits_that_reject_nothing_are_told(tmp_path: Path) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    recorded(tmp_path / "scored", "--motion-filter", "score-only")
    refilter(Store(tmp_path / "scored"), run_options(), {"motion_global_mean_threshold": 0.1})
    recorded(tmp_path / "bare")
    refilter(Store(tmp_path / "bare"), run_options(), {"vlm_filter_rejection_threshold": 0.1})
    given = {"motion_filter": "enable", "motion_global_mean_threshold": 0.1}
    refilter(Store(tmp_path / "scored"), run_options(), given)
    logger.remove(sink)
    assert [line for line in lines if "rejects nothing" in line] == [
        "--motion-global-mean-threshold 0.1 rejects nothing: --motion-filter is score-only; 0 of 3 kept clips have no "
        f"motion_score; curate.py filter {tmp_path}/scored --motion-filter enable decides by it\n",
        "--vlm-filter-rejection-threshold 0.1 rejects nothing: --vlm-filter is disable; 3 of 3 kept clips have no "
        "filtered_windows; curate.py split ... --vlm-filter enable --redo changed makes it\n",
    ]


def test_split_tells_them_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--motion-global-mean-threshold", "0.1", "--aesthetic-threshold", "3.5", "--aesthetic-filter", "disable"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["split", "--input-video-path", str(tmp_path), "--output-clip-path", str(tmp_path / "out"), *words])
    told = [line for line in capsys.readouterr().err.splitlines() if "rejects nothing" in line]
    assert ended.value.code == 2 and told == [
        "--motion-global-mean-threshold 0.1 rejects nothing: --motion-filter is disable; --motion-filter enable decides "
        "by motion_score",
        "--aesthetic-threshold 3.5 rejects nothing: --aesthetic-filter is disable; --aesthetic-filter enable decides "
        "by aesthetic_score",
    ]
    assert idle_limits(options_of("--aesthetic-threshold", "3.5", "--motion-filter", "enable")) == []


@pytest.mark.parametrize("value", [None, float("nan")])
def test_kept_clips_without_a_score_are_counted(
    tmp_path: Path, value: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    records = recorded(
        tmp_path, "--motion-filter", "enable", motion_score={"global_mean": value, "per_patch_min_256": 1}
    )
    assert summarise(records)["unscored"] == {"motion_score.global_mean": 1}
    with pytest.raises(SystemExit):
        cli.main(["filter", str(tmp_path)])
    advice = "its limit lets them pass; curate.py split ... --redo all scores them again"
    told = f"1 of 3 kept clips have no motion_score.global_mean, or NaN: {advice}\n"
    assert told in capsys.readouterr().err
    assert summarise(recorded(tmp_path, "--motion-filter", "enable"))["unscored"] == {}


def test_other_limits_do_not_make_empty_videos_again(tmp_path: Path) -> None:
    records = Records(tmp_path, {**options_of(*CONTENT), "stage": []})
    video = Video("/in/a.mp4", "a.mp4", tmp_path / "work", [1, 2])
    records.finish(video)
    for flags, again in (["--motion-filter", "enable"], 0), (["--transnetv2-crop-s", "0"], 1):
        other = Records(tmp_path, {**options_of(*CONTENT, *flags), "stage": []})
        assert len(other.todo([Video("/in/a.mp4", "a.mp4", tmp_path / "work", [1, 2])], "changed", 3)[0]) == again


@pytest.mark.parametrize("words", [["report"], ["dedup"], ["dedup", "--dry-run"], ["filter"]])
def test_folders_without_results_stay_as_they_are(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([words[0], str(tmp_path / "typo"), *words[1:]])
    assert ended.value.code == 2 and "typo: no video there that curate.py split has done" in capsys.readouterr().err
    assert words == ["filter"] or not (tmp_path / "typo").exists()


def test_check_names_the_command_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = tmp_path / "out" / "cosmos_predict2_video2world_dataset"
    for name in ("videos", "metas"):
        (dataset / name).mkdir(parents=True)
    write_video(dataset / "videos" / "a.mp4", np.zeros((94, 32, 32, 3), np.uint8), 24)
    (dataset / "metas" / "a.txt").write_text("A clip.")
    for given, command in (
        (dataset, f"scripts/get_t5_embeddings.py --dataset_path {dataset}"),
        (tmp_path / "out", f"scripts/curate.py embed {tmp_path}/out"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["check", str(given)])
        assert f"no text embeddings; make them with: python {command}\n" in capsys.readouterr().err

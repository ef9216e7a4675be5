"""The published files, field by field: metas, records of videos and of their clips, summary, captions, previews."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cosmos_predict.cli.curate import build_parser, main
from cosmos_predict.cli.curate_flags import from_file, without_published
from cosmos_predict.curate.listing import list_videos
from cosmos_predict.curate.records import DATASET
from cosmos_predict.data.video_reader import probe, write_video
from cosmos_predict.errors import ConfigError, DataError
from tests.curate.chat_server import serving
from tests.curate.footage import FPS, film, make_set
from tests.curate.running import finished, run_command, run_split, tree

META = [
    "span_uuid",
    "source_video",
    "duration_span",
    "width_source",
    "height_source",
    "framerate_source",
    "clip_location",
    "width",
    "height",
    "framerate",
    "num_frames",
    "video_codec",
    "num_bytes",
    "filtered_windows",
    "windows",
    "valid",
    "has_caption",
    "total_prompt_tokens",
    "total_output_tokens",
]
VIDEO = [
    "video",
    "height",
    "width",
    "framerate",
    "num_frames",
    "duration",
    "video_codec",
    "pixel_format",
    "audio_format",
    "num_total_clips",
    "num_clip_chunks",
    "video_uuid",
]
BY = ["motion", "aesthetic", "qwen_classifier", "qwen_semantic", "artificial_text"]
COUNTERS = [f"num_clips_filtered_by_{name}" for name in BY]
COUNTERS += [f"num_clips_{name}" for name in ("passed", "transcoded", "with_embeddings", "with_caption", "with_webp")]
CHUNK = ["video", "clip_chunk_index", *COUNTERS, "total_clip_duration", "max_clip_duration", "total_prompt_tokens"]
CHUNK += ["total_output_tokens", "clips", "filtered_clips", "all_windows", "all_windows_enhanced_caption"]
SUMMARY = [
    "num_input_videos",
    "num_processed_videos",
    "embedding_algorithm",
    "total_video_duration",
    "total_clip_duration",
    "max_clip_duration",
    "total_video_bytes",
    "num_remuxed_videos",
    "total_prompt_tokens",
    "total_output_tokens",
]
OF_VIDEO = ["source_video", "video_uuid", "num_clip_chunks", "num_total_clips", "clips", "filtered_clips", *COUNTERS]
SHORT = ["--splitting-algorithm", "content", "--text-encoder", "none"]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films, one that is too short, a picture and a text."""
    folder = tmp_path_factory.mktemp("footage")
    make_set(folder, 2)
    write_video(folder / "short.mp4", film([60], seed=3), FPS)
    (folder / "picture.jpg").write_text("a picture")
    (folder / "part0" / "notes.txt").write_text("notes")
    return folder


@pytest.fixture(scope="module")
def made(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions by a server that counts tokens, rewritten ones, and all that can be written besides."""
    output = tmp_path_factory.mktemp("made") / "out"

    def reply(request: dict[str, Any]) -> tuple[str, str, dict[str, int]]:
        rewritten = "Rewrite" in request["messages"][-1]["content"][-1]["text"]
        return ("Better." if rewritten else "Blocks."), "stop", {"prompt_tokens": 100, "completion_tokens": 7}

    with serving(reply) as server:
        flags = ["--captioning-algorithm", "openai", "--openai-base-url", server.url, "--enhance-captions"]
        flags += ["--enhance-captions-lm-variant", "openai", "--generate-previews", "--preview-height", "48"]
        run_split(footage, output, *SHORT, *flags, "--upload-clip-info-in-chunks")
    return output


@pytest.mark.slow
def test_metas(made: Path) -> None:
    paths = sorted((made / "metas" / "v0").iterdir())
    assert len(paths) == 5
    for meta in map(read, paths):
        clip = made / meta["clip_location"]
        assert {*META} <= {*meta} and {*meta} - {*META} == {"rejected", "caption_source"}
        assert meta["video_codec"] == "h264" and meta["num_bytes"] == clip.stat().st_size
        assert meta["num_frames"] == probe(clip).frames and meta["filtered_windows"] == []
        last = meta["num_frames"] - 1
        tokens = {"openai_prompt_tokens": 100, "openai_output_tokens": 7, "openai_enhanced_caption": "Better."}
        assert meta["windows"] == [{"start_frame": 0, "end_frame": last, "openai_caption": "Blocks.", **tokens}]
        assert (meta["total_prompt_tokens"], meta["total_output_tokens"]) == (100, 7)
    lines = [line for path in (made / "metas_jsonl" / "v0").iterdir() for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(json.dumps(read(path)) for path in paths)
    names = {f"{read(path)['video_uuid']}_0.jsonl" for path in (made / "processed_videos").rglob("*_?.mp4.json")}
    assert {path.name for path in (made / "metas_jsonl" / "v0").iterdir()} == names and len(names) == 2


@pytest.mark.slow
def test_records_of_videos_and_chunks(made: Path) -> None:
    for name, clips in {"part0/film_0.mp4": 2, "part1/film_1.mp4": 3, "short.mp4": 0}.items():
        video, chunk = read(made / f"processed_videos/{name}.json"), read(made / f"processed_clip_chunks/{name}_0.json")
        assert {*VIDEO} <= {*video} and video["num_clip_chunks"] == 1 and video["num_total_clips"] == clips
        assert [*chunk] == CHUNK and chunk["video"] == video["video"] and chunk["clip_chunk_index"] == 0
        assert chunk["clips"] == [*video["clips"]] and chunk["filtered_clips"] == []
        for counter in ("passed", "transcoded", "with_caption", "with_webp"):
            assert chunk[f"num_clips_{counter}"] == clips, counter
        assert chunk["num_clips_with_embeddings"] == 0 and not any(chunk[counter] for counter in COUNTERS[:5])
        seconds = [clip["duration"] for clip in video["clips"].values()]
        assert chunk["total_clip_duration"] == sum(seconds) and chunk["max_clip_duration"] == max(seconds, default=0)
        assert (chunk["total_prompt_tokens"], chunk["total_output_tokens"]) == (100 * clips, 7 * clips)
        metas = {uuid: read(made / f"metas/v0/{uuid}.json") for uuid in chunk["clips"]}
        spans = {uuid: f"0_{meta['num_frames'] - 1}" for uuid, meta in metas.items()}
        assert chunk["all_windows"] == {uuid: {span: "Blocks."} for uuid, span in spans.items()}
        assert chunk["all_windows_enhanced_caption"] == {uuid: {span: "Better."} for uuid, span in spans.items()}


@pytest.mark.slow
def test_summary_and_captions(made: Path, footage: Path) -> None:
    summary = read(made / "summary.json")
    assert {*SUMMARY} | {f"total_{name}" for name in COUNTERS} <= {*summary}
    assert (summary["num_input_videos"], summary["num_processed_videos"], summary["num_remuxed_videos"]) == (3, 3, 0)
    assert summary["total_video_bytes"] == sum(path.stat().st_size for path in footage.rglob("*.mp4"))
    assert summary["total_video_duration"] == pytest.approx((130 + 140 + 137 + 140 + 131 + 60) / FPS)
    assert (summary["total_prompt_tokens"], summary["total_output_tokens"]) == (500, 35)
    captions, total = {}, dict.fromkeys(COUNTERS, 0)
    for name in ("part0/film_0.mp4", "part1/film_1.mp4", "short.mp4"):
        chunk = read(made / f"processed_clip_chunks/{name}_0.json")
        assert {*summary[name]} == {*OF_VIDEO} and summary[name]["source_video"] == str(footage / name)
        assert {key: summary[name][key] for key in ("clips", *COUNTERS)} == {
            key: chunk[key] for key in ("clips", *COUNTERS)
        }
        total = {counter: total[counter] + chunk[counter] for counter in COUNTERS}
        captions |= {name: chunk["all_windows"]} if chunk["all_windows"] else {}
    assert {f"total_{counter}": count for counter, count in total.items()}.items() <= summary.items()
    assert total["num_clips_passed"] == 5
    assert read(made / "v0" / "all_window_captions.json") == captions
    reasons = dict(summary["ignored_files"])
    assert summary["num_ignored_files"] == 2 and reasons["part0/notes.txt"] == "captions of no video here"
    assert reasons["picture.jpg"].startswith("no video (.mp4 ")
    page = (made / "report.html").read_text()
    assert "<td>picture.jpg</td><td>no video (.mp4" in page and "<td>part0/notes.txt</td>" in page


@pytest.mark.slow
def test_previews(made: Path) -> None:
    for path in (made / "previews").rglob("*.webp"):
        meta = read(made / "metas" / "v0" / f"{path.parent.name}.json")
        assert path.stem == f"0_{meta['num_frames'] - 1}"
        with Image.open(path) as picture:
            assert picture.size == (80, 48) and getattr(picture, "n_frames", 1) == -(-meta["num_frames"] // 24)


@pytest.mark.slow
def test_what_revises_keeps_all_of_it(made: Path) -> None:
    before = tree(made)
    for command in ("filter", "report"):
        status, _, err = run_command(command, str(made))
        assert status == 0, err
    after = tree(made)
    changed = {place for place in before if before[place] != after.get(place)}
    assert {*after} == {*before} and changed <= {place for place in before if place.startswith("processed_videos/")}


@pytest.mark.slow
def test_what_filters_reject_is_counted_and_told(footage: Path, tmp_path: Path) -> None:
    """Films of 96 rows: too small for the motion filter, so nothing is kept, and the command says why."""
    status, _, err = finished(footage, tmp_path, *SHORT, "--motion-filter", "enable", "--limit-clips", "1")
    assert status == 1 and "nothing is kept" in err
    assert "rejected: 2 clips: resolution_too_small; see --motion-filter score-only" in err
    assert (
        "no clip: short.mp4: 1 shot of 60 frames, 12 cropped off both ends (--transnetv2-crop-s 0.5), 36 are left; "
        in err
    )
    assert "a clip needs 94 frames (--num-frames 93, and one to spare)" in err
    chunk = read(tmp_path / "processed_clip_chunks" / "part0" / "film_0.mp4_0.json")
    (uuid,) = chunk["filtered_clips"]
    assert chunk["clips"] == [] and chunk["num_clips_filtered_by_motion"] == 1 and chunk["num_clips_transcoded"] == 1
    meta = read(tmp_path / "metas" / "v0" / f"{uuid}.json")
    assert meta["errors"] == ["motion_decode"] and not meta["valid"] and not meta["has_caption"]
    summary = read(tmp_path / "summary.json")
    assert summary["total_num_clips_filtered_by_motion"] == 2 and summary["total_num_clips_passed"] == 0
    assert summary["part0/film_0.mp4"]["filtered_clips"] == [uuid]
    assert summary["max_clip_duration"] > 0 and "v0/all_window_captions.json" in tree(tmp_path)
    status, _, err = finished(footage, tmp_path, *SHORT, "--motion-filter", "enable", "--limit-clips", "1")
    assert status == 1 and "no clip: short.mp4: " in err  # also when there is nothing to do


@pytest.mark.slow
def test_videos_that_wait(footage: Path, tmp_path: Path) -> None:
    flags = [*SHORT, "--no-generate-captions", "--no-write-all-caption-json"]
    run_split(footage, tmp_path, *flags, "--limit", "1")
    summary = read(tmp_path / "summary.json")
    assert (summary["num_input_videos"], summary["num_processed_videos"]) == (3, 1)
    waiting = {"source_video": str(footage / "short.mp4"), "processed": False}
    assert summary["short.mp4"] == waiting and not (tmp_path / "v0").exists()
    before = tree(tmp_path)
    assert run_command("report", str(tmp_path))[0] == 0
    assert tree(tmp_path) == before  # what waits, and what is ignored, is still known
    run_split(footage, tmp_path, *flags)
    assert read(tmp_path / "summary.json")["num_processed_videos"] == 3
    assert (
        not (tmp_path / DATASET / "metas").exists()
        and read(tmp_path / "summary.json")["total_num_clips_with_caption"] == 0
    )


@pytest.mark.slow
def test_without_clips(footage: Path, tmp_path: Path) -> None:
    run_split(footage, tmp_path, *SHORT, "--no-upload-clips", "--perf-profile", "--limit", "1")
    assert not (tmp_path / "clips").exists() and len([*(tmp_path / DATASET / "videos").iterdir()]) == 2
    for path in (tmp_path / "metas" / "v0").iterdir():
        assert read(path)["clip_location"] == ""
    assert (tmp_path / "report.html").read_text().count("<img") == 2  # of the dataset's videos
    before = tree(tmp_path)
    for words in (
        ["filter"],
        ["caption"],
        ["dedup"],
        ["shard", "--output-dataset-path", str(tmp_path.parent / "tars")],
    ):
        status, _, err = run_command(words[0], str(tmp_path), *words[1:])
        assert status == 2 and "made with --no-upload-clips, so there are no clips" in err, err
    assert tree(tmp_path) == before
    stats = read(tmp_path / "performance_stats_0.json")
    assert stats["num_input_videos_selected"] == 1 and stats["pipeline_run_time"] > 0
    assert {name: row["num_items"] for name, row in stats["stages"].items()} == {
        **{"ingest": 1, "split": 1, "write": 1},
        **{"transcode": 2, "caption": 2},
    }
    assert all(row["process_time"] > 0 for row in stats["stages"].values())
    run_split(footage, tmp_path, *SHORT, "--no-upload-clips", "--perf-profile")
    assert (tmp_path / "performance_stats_1.json").is_file()


def test_a_list_of_videos(footage: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps([str(footage / "short.mp4"), str(footage / "part0" / "film_0.mp4")]))
    flags = [*SHORT, "--input-video-list-json-path", str(names), "--dry-run"]
    assert run_split(footage, tmp_path / "out", *flags) == {}
    listed, inputs = list_videos(footage, only=json.loads(names.read_text()))
    assert [*listed] == [*inputs.videos] == ["part0/film_0.mp4", "short.mp4"]
    assert inputs.beside == ["part0/film_0.txt"]
    for content, error, message in (
        ('["/elsewhere/a.mp4"]', ConfigError, "list-json-path: /elsewhere/a.mp4 does not lie below .*footage"),
        (json.dumps([str(footage / "none.mp4")]), DataError, r"footage.*/none\.mp4 is not there, 1 in all"),
        ('{"a": 1}', DataError, r"names\.json: expected a JSON array of full paths \(got"),
        ("no JSON", DataError, r"names\.json: expected a JSON array of full paths"),
    ):
        names.write_text(content)
        with pytest.raises(error, match=message):
            run_split(footage, tmp_path / "out", *flags)
    names.unlink()
    with pytest.raises(DataError, match=r"--input-video-list-json-path .*names\.json: no such file"):
        run_split(footage, tmp_path / "out", *flags)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gemini-model-name", "x"], "--gemini-model-name: --captioning-algorithm openai with --openai-base-url"),
        (["--multi-cam"], "--multi-cam: videos are curated one by one"),
        (["--qwen-video-classifier=enable"], "--qwen-video-classifier: no classifier; --vlm-filter-categories"),
        (["--upload-clip-info-in-lance"], "--upload-clip-info-in-lance: there are no Lance tables"),
        (["--transcode-max-output-frames", "300"], "--transcode-max-output-frames: clips keep their rate"),
    ],
)
def test_published_flags_that_ask_for_what_there_is_not(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["split", "--input-video-path", "in", "--output-clip-path", "out", *words])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 2 and message in lines[1], lines


def test_a_published_file_of_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = {"generate_embeddings": True, "generate_captions": True, "upload_clips": False, "qwen_filter_enable": True}
    args |= {
        "qwen_filter_rejection_threshold": 0.25,
        "preview_target_height": 120,
        "qwen_filter_prompt_variant": "default",
    }
    args |= {"qwen_filter_fp8_enable": False, "captioning_prompt_text": None, "motion_filter": "score-only", "limit": 1}
    (tmp_path / "full.json").write_text(json.dumps({"pipeline": "split", "args": args}))
    flags = from_file(tmp_path / "full.json", "split", parser := build_parser())
    assert "--no-generate-captions" not in flags and "--no-generate-embeddings" not in flags
    words = ["split", "--input-video-path", "in", "--output-clip-path", "out", *without_published(flags, parser)]
    given = parser.parse_args(words)
    assert given.no_upload_clips and given.vlm_filter == "enable" and given.vlm_filter_rejection_threshold == 0.25
    assert (given.preview_height, given.motion_filter, given.limit) == (120, "score-only", 1)
    assert capsys.readouterr().err.startswith("--qwen-filter-prompt-variant has no effect: ")
    (tmp_path / "full.json").write_text(json.dumps({"generate_captions": False, "upload_clips": True}))
    assert from_file(tmp_path / "full.json", "split", parser) == ["--no-generate-captions"]


def test_published_flags_without_a_meaning_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "options.json").write_text(
        json.dumps({"pipeline": "split", "args": {"limit": 3, "embedding_algorithm": "internvideo2", "dry_run": True}})
    )
    given = "--execution-mode BATCH --clip-re-chunk-size 32 --transcode-ffmpeg-batch-size=16 --artificial-text-filter disable"
    words = f"-v split --config {tmp_path}/options.json --vllm-use-inflight-batching {given} --qwen-batch-size 8"
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), "--input-video-path", str(tmp_path), "--output-clip-path", str(tmp_path.parent / "out")])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "no folder with videos" in err  # the command began
    told = [line.partition(" has no effect: ")[0] for line in err.splitlines() if " has no effect: " in line]
    flags = ["embedding-algorithm", "vllm-use-inflight-batching", "execution-mode", "clip-re-chunk-size"]
    flags += ["transcode-ffmpeg-batch-size", "artificial-text-filter", "qwen-batch-size"]
    assert told == [f"--{flag}" for flag in flags]

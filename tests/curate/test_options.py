"""The options: the guide's commands parse as written, published names have published defaults, none is left unread."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from loguru import logger

from cosmos_predict.cli import curate as cli
from cosmos_predict.cli.curate import build_parser, read_options
from cosmos_predict.curate.records import DATASET
from cosmos_predict.curate.stage import Clip, Video
from cosmos_predict.curate.stages import build_stages, settle, what_is_left_out, why_none
from cosmos_predict.errors import ConfigError
from tests.curate.running import REPOSITORY, options_of

GUIDE = (
    "--no-generate-embeddings --generate-cosmos-predict-dataset predict2 --splitting-algorithm transnetv2 "
    "--transnetv2-min-length-frames 120 --captioning-algorithm cosmos_r1 --limit 0"
)
PUBLISHED = {
    "limit": 0,
    "limit_clips": 0,
    "splitting_algorithm": "transnetv2",
    "fixed_stride_split_duration": 10,
    "fixed_stride_min_clip_length_s": 2,
    "transnetv2_threshold": 0.4,
    "transnetv2_min_length_s": 2.0,
    "transnetv2_min_length_frames": 48,
    "transnetv2_max_length_s": 60,
    "transnetv2_max_length_mode": "stride",
    "transnetv2_crop_s": 0.5,
    "motion_filter": "disable",
    "motion_global_mean_threshold": 0.00098,
    "motion_per_patch_min_256_threshold": 1e-6,
    "motion_decode_target_fps": 2,
    "motion_decode_target_duration_ratio": 0.5,
    "aesthetic_threshold": None,
    "aesthetic_reduction": "min",
    "vlm_filter": "disable",
    "vlm_filter_rejection_threshold": 0.5,
    "vlm_filter_model_variant": "qwen",
    "captioning_window_size": 256,
    "captioning_remainder_threshold": 128,
    "captioning_prompt_variant": "default",
    "captioning_sampling_fps": 2.0,
    "captioning_max_output_tokens": 8192,
    "qwen_num_gpus_per_worker": 1,
    "api_caption_batch_size": 8,
    "enhance_captions": False,
    "enhance_captions_lm_variant": "qwen_lm",
    "input_video_list_json_path": "",
    "no_upload_clips": False,
    "upload_clip_info_in_chunks": False,
    "generate_previews": False,
    "preview_target_fps": 1,
    "preview_height": 240,
    "transcode_use_input_video_bit_rate": False,
}


def test_the_command_of_the_guide() -> None:
    words = ["split", "--input-video-path", "in", "--output-clip-path", "out", *GUIDE.split()]
    args = build_parser().parse_args(words)
    assert args.transnetv2_min_length_frames == 120 and args.captioning_algorithm == "cosmos_r1" and args.limit == 0
    more = options_of(
        *GUIDE.split(), "--motion-filter", "enable", "--aesthetic-threshold", "3.5", "--qwen-filter", "enable",
        "--captioning-prompt-text", "Say what happens.",
    )  # fmt: skip
    assert more["aesthetic_threshold"] == 3.5 and more["captioning_prompt_text"] == "Say what happens."
    more["captioning_backend"] = "transformers"
    names = [stage.name for stage in build_stages(more)]
    assert names == ["ingest", "split", "transcode", "motion", "aesthetic", "qwen_semantic", "caption"]
    for variant in ("disable", "score-only"):
        flags = ["--motion-filter", variant, "--aesthetic-filter", variant, "--vlm-filter", variant]
        chosen = [stage.name for stage in build_stages({**more, **options_of(*flags, "--aesthetic-threshold", "3")})]
        assert ("motion" in chosen, "aesthetic" in chosen, "qwen_semantic" in chosen) == (variant == "score-only",) * 3


def test_published_defaults() -> None:
    options = options_of()
    assert {name: options[name] for name in PUBLISHED} == PUBLISHED


def test_a_file_of_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(cli, "split", lambda args: seen.append(args) or 0)
    file, words = tmp_path / "options.yaml", ["split", "--input-video-path", "in", "--output-clip-path", "out"]

    def status(*more: str) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, *more])
        return int(ended.value.code or 0)

    given = (
        "transnetv2_crop_s: 0\ntranscode-crf: 0\nlimit: 5\ncaptioning-prompt-text: -- what?\naccept_truncated: true\n"
    )
    file.write_text(f"{given}dry-run: false\naesthetic-threshold: null\nstage: [a.py:A, b.py:B]\n")
    for form in ([f"--config={file}"], ["--config", str(file)]):
        assert status("--limit", "1", *form) == 0
        args = seen.pop()
        assert (args.transnetv2_crop_s, args.transcode_crf, args.limit) == (0.0, 0, 1)
        assert args.captioning_prompt_text == "-- what?" and args.accept_truncated and not args.dry_run
        assert args.aesthetic_threshold is None and args.stage == ["a.py:A", "b.py:B"]
    file.write_text("transcode-crf: [18, 30]\n")
    assert status(f"--config={file}") == 2
    assert "options.yaml: transcode-crf: expected one value, got [18, 30]" in capsys.readouterr().err
    assert status("--conf", str(file)) == 2 and not seen  # an abbreviation would be overlooked
    assert status("--config", str(tmp_path / "none.yaml")) == 2
    assert "none.yaml: no YAML file of options" in capsys.readouterr().err


def test_a_file_with_what_there_is_not_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "options.yaml"
    for text, words, message in (
        (
            "captionning_algorithm: none",
            ["split"],
            "captionning_algorithm: no such option; did you mean 'captioning-algorithm'",
        ),
        ("limit: 3\nsimilarty: 1", ["dedup", "out"], "similarty: no such option; did you mean 'similarity'"),
        (
            "text_encodr: tiny",
            ["embed", "out"],
            "text_encodr: no such option; did you mean 'text-encoder' or 'text_encoder'",
        ),
        ("limit 3", ["filter", "out"], "no YAML file of options by name"),
    ):
        file.write_text(text)
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, "--config", str(file)])
        err = capsys.readouterr().err
        assert ended.value.code == 2 and f"--config {file}: {message}" in err.splitlines()[-1], err


def test_other_commands_take_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the options of `split` in it those that they have; flags overrule them."""
    seen: list[argparse.Namespace] = []
    for name in ("refilter", "embed"):
        monkeypatch.setattr(cli, name, lambda args: seen.append(args) or 0)
    file = tmp_path / "options.yaml"
    file.write_text(
        "input_video_path: in\noutput_clip_path: out\nclip_re_chunk_size: 3\nworkers: 3\nmotion_filter: enable\n"
        "motion_global_mean_threshold: 0.1\nmodel_weights_path: weights\ntext_encoder: tiny\n"
    )
    for words in (["filter", "out", "--workers", "1"], ["embed", "out", "--text_encoder", "t5"]):
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, "--config", str(file)])
        assert not ended.value.code
    with pytest.raises(SystemExit) as ended:
        cli.main(["filter", "out", "--conf", str(file)])  # an abbreviation would be overlooked
    assert ended.value.code == 2
    judged, embedded = seen
    assert (judged.workers, judged.motion_filter, judged.motion_global_mean_threshold) == (1, "enable", 0.1)
    assert "captioning_algorithm" not in judged and not hasattr(judged, "limit")
    assert (embedded.model_weights_path, embedded.text_encoder) == ("weights", "t5")


def test_embed_takes_t5_from_the_folder_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / DATASET / "metas").mkdir(parents=True)
    (tmp_path / "out" / DATASET / "metas" / "a.txt").write_text("A caption.")
    words = ["embed", str(tmp_path / "out"), "--model-weights-path", str(tmp_path / "weights")]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    err = capsys.readouterr().err
    assert (
        ended.value.code == 2 and f"--model-weights-path {tmp_path}/weights: no google-t5/t5-11b in it; python" in err
    )
    folder = tmp_path / "weights" / "google-t5" / "t5-11b"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "t5"}')
    sources: list[str] = []
    monkeypatch.setattr(
        "cosmos_predict.text_encoders.build.build_text_encoder", lambda source, **_: sources.append(source)
    )
    with pytest.raises(SystemExit):
        cli.main(words)
    assert sources == [str(folder)]


def test_help_is_of_a_size_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    """At most 45 options in groups; the others, with all of them, on request."""
    shown: dict[str, set[str]] = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["split", flag])
        shown[flag] = set(re.findall(r"^  --([a-z0-9-]+)", text := capsys.readouterr().out, re.MULTILINE))
        assert ended.value.code == 0 and all(f"\n{group}:\n" in text for group in read_options())
    own = {name for group in read_options().values() for name in group}
    assert len(shown["--help"] & own) <= 45 and own <= shown["--help-all"]
    advanced = {
        name for group in read_options().values() for name, row in group.items() if row[2:] and "advanced" in row[2]
    }
    assert shown["--help-all"] - shown["--help"] == advanced
    assert options_of("--accept-truncated")["accept_truncated"]  # hidden ones are there all the same


@pytest.mark.parametrize(
    ("lengths", "flags", "message"),
    [
        ([60], "", "1 shot of 60 frames, 12 cropped off both ends (--transnetv2-crop-s 0.5), 36 are left; a clip needs "
         "94 frames (--num-frames 93, and one to spare)"),
        ([60, 40], "--transnetv2-crop-s 0 --transnetv2-min-length-frames 120",
         "2 shots, the longest of 60 frames; a clip needs 120 frames (--transnetv2-min-length-frames 120)"),
        ([500], "--num-frames 16 --transnetv2-crop-s 0 --transnetv2-max-length-s 3 --transnetv2-min-length-s 5",
         "1 shot of 500 frames, cut to 72 (--transnetv2-max-length-s 3.0); a clip needs 120 frames "
         "(--transnetv2-min-length-s 5.0)"),
        ([48], "--splitting-algorithm fixed-stride --fixed-stride-split-duration 2 --fixed-stride-min-clip-length-s 4",
         "1 shot of 48 frames, by --fixed-stride-split-duration 2; a clip needs 96 frames "
         "(--fixed-stride-min-clip-length-s 4.0)"),
    ],
)  # fmt: skip
def test_why_there_is_no_clip(lengths: list[int], flags: str, message: str) -> None:
    assert why_none([(0, length) for length in lengths], 24.0, options_of(*flags.split())) == message


def test_what_is_left_out() -> None:
    video = Video("/in/a.mp4", "a.mp4", Path())

    def told(shots: list[tuple[int, int]], *flags: str) -> str:
        options = options_of(*flags)
        clips = [Clip(video, a + 12, b - 12, "", (0, 0)) for a, b in shots if b - a > 118][
            : options["limit_clips"] or None
        ]
        return what_is_left_out(clips, shots, 600, 24.0, options)

    assert told([(0, 599)]) == told([(0, 300), (301, 599)]) == ""  # cropped alone
    assert told([(0, 200), (250, 300), (301, 340), (400, 599)]) == (
        "14.6 of 25.0 s in clips: 2 of 4 shots without a clip (3.7 s), 4.7 s black or in transitions, a clip needs 94 frames "
        "(--num-frames 93, and one to spare)"
    )
    assert "1 of 2 shots without a clip (12.4 s), --limit-clips 1, " in told(
        [(0, 300), (301, 599)], "--limit-clips", "1"
    )
    clips = [Clip(video, 0, 200, "", (0, 0))]
    told_of_one = what_is_left_out(clips, [(0, 600)], 600, 24.0, options_of())
    assert told_of_one == "8.3 of 25.0 s in clips: 16.7 s off the others"


@pytest.mark.parametrize(("frames", "near"), [(93, ""), (33, ""), (34, "33 or 37"), (16, "13 or 17")])
def test_lengths_that_training_does_not_take(frames: int, near: str) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    settle(options_of("--num-frames", str(frames), "--splitting-algorithm", "content"))
    logger.remove(sink)
    assert [line for line in lines if "training takes" in line] == (
        [f"--num-frames {frames}: training takes 4 k + 1 frames, as {near}\n"] if near else []
    )


@pytest.mark.parametrize("flag", ["--limit=-1", "--limit-clips=-1", "--captioning-window-size=0", "--max-attempts=0"])
def test_numbers_that_make_no_sense(flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"{flag.replace('=', ' ')}: expected \d or more"):
        build_stages(options_of("--captioning-algorithm", "none", flag))


@pytest.mark.parametrize(("size", "warned"), [("64", True), ("93", True), ("94", False), ("256", False)])
def test_windows_too_short_to_train_on(size: str, warned: bool) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    settle(options_of("--captioning-window-size", size, "--splitting-algorithm", "content"))
    logger.remove(sink)
    assert any(f"windows may have only {size} frames" in line for line in lines) == warned


@pytest.mark.parametrize("option", [name for group in read_options().values() for name in group])
def test_every_option_is_read(option: str) -> None:
    """Each name occurs in the code, but for one that is accepted and asks for nothing."""
    folders = (REPOSITORY / "cosmos_predict" / name for name in ("curate", "cli"))
    code = "\n".join(Path(path).read_text() for folder in folders for path in sorted(folder.rglob("*.py")))
    name = option.replace("-", "_")
    pattern = rf"{name}\b|{name.removeprefix('transnetv2_')}\b" if name.startswith("transnetv2") else rf"\b{name}\b"
    assert option == "no-generate-embeddings" or re.search(pattern, code), option

"""The options: the guide's commands parse as written, published names have published defaults, none is left unread."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from loguru import logger

from cosmos_predict.cli import curate as cli
from cosmos_predict.cli.curate import build_parser, read_options
from cosmos_predict.curate.stages import build_stages, settle
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

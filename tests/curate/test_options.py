"""The options: the guide's commands parse as written, published names have published defaults, none is left unread."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cosmos_predict.cli.curate import build_parser, read_options
from cosmos_predict.curate.stages import build_stages
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


@pytest.mark.parametrize("option", [name for group in read_options().values() for name in group])
def test_every_option_is_read(option: str) -> None:
    """Each name occurs in the code, but for one that is accepted and asks for nothing."""
    folders = (REPOSITORY / "cosmos_predict" / name for name in ("curate", "cli"))
    code = "\n".join(Path(path).read_text() for folder in folders for path in sorted(folder.rglob("*.py")))
    name = option.replace("-", "_")
    pattern = rf"{name}\b|{name.removeprefix('transnetv2_')}\b" if name.startswith("transnetv2") else rf"\b{name}\b"
    assert option == "no-generate-embeddings" or re.search(pattern, code), option

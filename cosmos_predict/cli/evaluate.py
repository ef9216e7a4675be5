"""`python scripts/evaluate.py`: how near a checkpoint's clips come to the real ones of a dataset."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cosmos_predict.cli.program import positive_int, run_program
from cosmos_predict.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

EPILOG = """\
Each clip's first frames and caption are given, the rest is compared. Clip k has the noise of seed + k for every checkpoint.
`tokenizer` is the real clip encoded and decoded: what no checkpoint of that tokenizer can beat by much.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/evaluate.py",
        description="Generate a dataset's clips from their first frames and captions; print PSNR, SSIM (and LPIPS) of the "
        "generated frames with 95 % intervals, and paired differences.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("--dit_path", required=True, help="checkpoint: as inference/video2world.py takes it")
    add("--load_ema", action="store_true", help="use EMA weights, of every checkpoint")
    add("--compare_with", nargs="+", default=[], metavar="[NAME=]PATH", help="other checkpoints, of the same clip size")
    add("--baseline", choices=("copy_last_frame", "none"), default="copy_last_frame", help="(default: %(default)s)")
    add("--dataset_path", required=True, help="folder with videos/ and metas/ (or t5_xxl/)")
    add("--num_clips", type=positive_int, default=16, help="the first ones by name (default: %(default)s)")
    add("--num_conditional_frames", type=positive_int, default=1, help="given frames (default: %(default)s)")
    add("--guidance", type=float, default=0.0, help="0 is none (default: %(default)s)")
    add("--num_steps", type=positive_int, default=35, help="solver steps (default: %(default)s)")
    add("--fps", type=float, help="resample the clips, as dataloader_train.dataset.fps does (default: their own rate)")
    add("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    add("--lpips_path", nargs="+", default=[], metavar="FILE", help="weights of AlexNet and LPIPS 0.1: adds LPIPS")
    add("--tokenizer_path", default="", help="weights of the video tokenizer, or 'dct' (default: the checkpoint's)")
    add("--text_encoder", default="", help="for clips without embedding (default: the checkpoint's)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    add("--save_path", default="output/evaluation.json", help="every number (default: %(default)s)")
    add("--save_clips", default="", metavar="FOLDER", help="write the first clip of every method there as mp4")
    return parser


def run(args: argparse.Namespace) -> int:
    import dataclasses

    import torch
    from tqdm import tqdm

    from cosmos_predict.data.captions import load_text
    from cosmos_predict.data.video_folder import VideoFolderDataset
    from cosmos_predict.data.video_reader import write_video
    from cosmos_predict.evaluation import metrics, report
    from cosmos_predict.io.atomic import atomic_write_text
    from cosmos_predict.pipelines.load import load_world_model
    from cosmos_predict.pipelines.video2world import Clip, generate, to_frames
    from cosmos_predict.text_encoders.build import build_text_encoder

    paths = {"this": args.dit_path}
    for entry in args.compare_with:
        name, equals, path = entry.partition("=")
        paths[name if equals else Path(entry).name] = path if equals else entry
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    models = {
        name: load_world_model(path, load_ema=args.load_ema, tokenizer_path=args.tokenizer_path, device=device)
        for name, path in paths.items()
    }
    main = models["this"]
    frames, size = main.clip.num_frames, main.clip.video_size
    for name, other in models.items():
        if (other.clip.num_frames, other.clip.video_size) != (frames, size):
            raise ConfigError(
                f"{name} makes {other.clip.num_frames} frames of {other.clip.video_size}, {args.dit_path} {frames} of {size}: "
                "only checkpoints of one clip size can be compared"
            )
    settings = dataclasses.replace(main.settings, num_steps=args.num_steps, guidance=args.guidance)
    measures = {"psnr": metrics.psnr, "ssim": metrics.ssim}
    if args.lpips_path:
        measures["lpips"] = metrics.LPIPS(args.lpips_path)
    dataset = VideoFolderDataset(
        args.dataset_path, frames, size, fit="crop", fps=args.fps, shuffle=False,
        text_encoder=build_text_encoder(args.text_encoder or main.model.config.pipe_config.text_encoder, device=device),
    )  # fmt: skip
    clips = dataset.clips[: args.num_clips]
    given = args.num_conditional_frames
    scores: dict[str, dict[str, list[np.ndarray]]] = {}
    for number, clip in enumerate(tqdm(clips, unit="clip", desc="evaluating")):
        sample = dataset.read(clip, dataset.windows(clip)[0]).frames
        real = sample.permute(0, 2, 3, 1).numpy()
        text = load_text(dataset.texts[clip.name] if clip.embedding is None else clip.embedding)[0][None]
        wanted = Clip(real[:given], frames, size, dataset.clip_fps(clip), given, args.seed + number)
        made = {name: generate(each.model, wanted, text, settings=settings) for name, each in models.items()}
        pixels = sample.permute(1, 0, 2, 3)[None].to(device)
        if args.baseline == "copy_last_frame":
            still = pixels[:, :, [min(t, given - 1) for t in range(len(real))]]
            made["copy_last_frame"] = to_frames(main.model.decode(main.model.encode(still))[0])
        made["tokenizer"] = to_frames(main.model.decode(main.model.encode(pixels))[0])
        for name, video in made.items():
            for metric, measure in measures.items():
                values = measure(video[given:], real[given:])
                scores.setdefault(name, {}).setdefault(metric, []).append(values)
        for name, video in ({**made, "real": real} if args.save_clips and number == 0 else {}).items():
            write_video(Path(args.save_clips) / f"{name}.mp4", video, wanted.fps)
    summary = {**report.summarise(scores), "clips": [clip.name for clip in clips], "settings": vars(args)}
    atomic_write_text(args.save_path, json.dumps(summary, indent=1))
    print(f"{len(clips)} clips of {args.dataset_path}, {frames - given} generated frames each; mean +- 95 % interval")
    print(report.table(summary), args.save_path, sep="\n")
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    run_program(run, build_parser(), argv)

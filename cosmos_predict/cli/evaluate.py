"""`python scripts/evaluate.py`: how near a checkpoint's clips come to the real ones of a dataset.

Generates a dataset's clips from their first frames and captions; prints PSNR, SSIM (and LPIPS) of the generated frames
with 95 % intervals, and paired differences. Clip k has the noise of seed + k for every checkpoint. `tokenizer` is the
real clip encoded and decoded: what no checkpoint of that tokenizer can beat by much.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_predict.cli.program import command, device_of, finite, positive, positive_int, whole_seed
from cosmos_predict.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cosmos_predict.pipelines.load import Checkpoint


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("scripts/evaluate.py", description=__doc__)
    add = parser.add_argument
    add("--dit_path", required=True, help="checkpoint: as inference/video2world.py takes it")
    ema = "use EMA weights, of every checkpoint (with --lora_path: of the adapters)"
    add("--load_ema", action="store_true", help=ema)
    adapters = "adapters of --dit_path, as inference/video2world.py"
    add("--lora_path", nargs="+", default=[], metavar="PATH", help=adapters)
    add("--config", default="", help="config.yaml of --dit_path's run, for a file that was moved out of it")
    other = "other checkpoints, of the same clip size; --dit_path again: without the adapters"
    add("--compare_with", nargs="+", default=[], metavar="[NAME=]PATH", help=other)
    add("--baseline", choices=("copy_last_frame", "none"), default="copy_last_frame", help="(default: %(default)s)")
    add("--dataset_path", required=True, help="folder with videos/ and metas/ (or t5_xxl/)")
    add("--num_clips", type=positive_int, default=16, help="the first ones by name (default: %(default)s)")
    add("--num_conditional_frames", type=positive_int, default=1, help="given frames (default: %(default)s)")
    add("--guidance", type=finite, default=0.0, help="0 is none (default: %(default)s)")
    add("--num_steps", type=positive_int, default=35, help="solver steps (default: %(default)s)")
    add(
        "--fps",
        type=positive,
        help="resample the clips, as dataloader_train.dataset.fps does (default: their own rate)",
    )
    add("--seed", type=whole_seed, default=0, help="of the noise (default: %(default)s)")
    add("--lpips_path", nargs="+", default=[], metavar="FILE", help="weights of AlexNet and LPIPS 0.1: adds LPIPS")
    add("--tokenizer_path", default="", help="weights of the video tokenizer, or 'dct' (default: the checkpoint's)")
    add("--text_encoder", default="", help="for clips without embedding (default: the checkpoint's)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    kinds = ("float32", "bfloat16")
    add("--dtype", choices=kinds, help="of the networks (default: bfloat16 on a GPU, float32 on a CPU)")
    add("--save_path", default="output/evaluation.json", help="every number (default: %(default)s)")
    add("--save_clips", default="", metavar="FOLDER", help="write the first clip of every method there as mp4")
    return parser


def run(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from cosmos_predict.data.captions import load_text
    from cosmos_predict.data.video_folder import VideoFolderDataset
    from cosmos_predict.data.video_reader import write_video
    from cosmos_predict.evaluation import metrics, report
    from cosmos_predict.io.atomic import atomic_write_text
    from cosmos_predict.pipelines.requests import output_path
    from cosmos_predict.pipelines.video2world import Clip, generate, to_frames
    from cosmos_predict.text_encoders.build import LazyTextEncoder

    save_path, device = output_path(args.save_path, (".json",)), device_of(args.device)
    dtype = getattr(torch, args.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    measures = {"psnr": metrics.psnr, "ssim": metrics.ssim}
    if args.lpips_path:
        measures["lpips"] = metrics.LPIPS(args.lpips_path)
    checkpoints = open_checkpoints(args, dtype)
    frames, size = checkpoints["this"].clip.num_frames, checkpoints["this"].clip.video_size
    dataset = VideoFolderDataset(  # encodes what it must, and keeps no encoder
        args.dataset_path, frames, size, fit="crop", fps=args.fps, shuffle=False,
        text_encoder=LazyTextEncoder(checkpoints["this"].encoder(args.text_encoder), device=str(device)),
    )  # fmt: skip
    clips = dataset.clips[: args.num_clips]
    given = args.num_conditional_frames
    extra = [*([args.baseline] if args.baseline != "none" else []), "tokenizer"]
    scores: dict[str, dict[str, list[np.ndarray]]]
    scores = {name: {metric: [] for metric in measures} for name in [*checkpoints, *extra]}
    progress = tqdm(total=len(checkpoints) * len(clips), unit="clip")
    for name, found in checkpoints.items():
        progress.set_description(name)
        found.prepare(device, dtype)
        found.load(device, dtype)
        for number, clip in enumerate(clips):
            sample = dataset.read(clip, dataset.windows(clip)[0]).frames
            real = sample.permute(0, 2, 3, 1).numpy()
            text = load_text(dataset.texts[clip.name] if clip.embedding is None else clip.embedding)[0][None]
            wanted = Clip(real[:given], frames, size, dataset.clip_fps(clip), given, args.seed + number)
            made = {name: generate(found.model, wanted, text, settings=found.settings)}
            if name == "this":
                pixels = sample.permute(1, 0, 2, 3)[None].to(device)
                still = pixels[:, :, [min(t, given - 1) for t in range(len(real))]]
                for other in extra:
                    shown = pixels if other == "tokenizer" else still
                    made[other] = to_frames(found.model.decode(found.model.encode(shown))[0])
            for method, video in made.items():
                for metric, measure in measures.items():
                    scores[method][metric].append(measure(video[given:], real[given:]))
            for method, video in ({**made, "real": real} if args.save_clips and number == 0 else {}).items():
                write_video(Path(args.save_clips) / f"{method}.mp4", video, wanted.fps)
            progress.update()
        del found.model  # before the next one comes
    progress.close()
    samplers = {name: dataclasses.asdict(found.settings) for name, found in checkpoints.items()}
    summary = {**report.summarise(scores), "clips": [clip.name for clip in clips], "samplers": samplers}
    summary["settings"] = vars(args)
    atomic_write_text(save_path, json.dumps(summary, indent=1))
    print(f"{len(clips)} clips of {args.dataset_path}, {frames - given} generated frames each; mean +- 95 % interval")
    print(report.table(summary), save_path, sep="\n")
    return 0


def open_checkpoints(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Checkpoint]:
    """Return the checkpoints by name, `this` first, each with its own sampler and the steps and guidance of `args`, without
    weights. Raises ConfigError for one of another clip size or text encoder, for clips that one cannot make, for equal names.
    """
    from cosmos_predict.io.embedding_index import encoder_name
    from cosmos_predict.pipelines.load import read_checkpoint
    from cosmos_predict.pipelines.video2world import Clip, latent_shape

    own = {"load_ema": args.load_ema, "tokenizer_path": args.tokenizer_path}
    main = read_checkpoint(args.dit_path, lora_paths=args.lora_path, config=args.config, **own)
    checkpoints, taken = {"this": main}, {"this", "tokenizer", "copy_last_frame", "real"}
    for entry in args.compare_with:
        name, path = entry.split("=", 1) if "=" in entry else (Path(entry).name, entry)
        if name in taken:
            raise ConfigError(f"--compare_with {entry}: the name {name} is taken; give another, as NAME={path}")
        taken.add(name)
        same = {"load_ema": main.ema, "config": args.config} if path == args.dit_path else {}
        checkpoints[name] = read_checkpoint(path, **(own | same))
    given, expected = args.num_conditional_frames, main.clip
    encoder = encoder_name(main.encoder(args.text_encoder))
    for name, found in checkpoints.items():
        if (found.clip.num_frames, found.clip.video_size) != (expected.num_frames, expected.video_size):
            raise ConfigError(
                f"{name} makes {found.clip.num_frames} frames of {found.clip.video_size}, {args.dit_path} "
                f"{expected.num_frames} of {expected.video_size}: only checkpoints of one clip size can be compared"
            )
        if (other := encoder_name(found.encoder(args.text_encoder))) != encoder:
            raise ConfigError(
                f"{name} reads text through {other}, {args.dit_path} through {encoder}: only checkpoints of one text encoder "
                "can be compared (--text_encoder, if one of the two says it wrong)"
            )
        found.settings = dataclasses.replace(found.settings, num_steps=args.num_steps, guidance=args.guidance)
        shape = (expected.num_frames, expected.video_size, expected.fps, given)
        latent_shape(found.prepare("cpu", dtype), Clip("the clips", *shape))
        del found.model
    return checkpoints


main = command(run, build_parser)

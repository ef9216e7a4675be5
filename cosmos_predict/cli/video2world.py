"""`python inference/video2world.py`: continue an image or a clip with a published or post-trained checkpoint."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cosmos_predict.cli.program import positive_int, run_program

EPILOG = """\
examples:
  python inference/video2world.py --dit_path checkpoints/cosmos_predict/tiny/tiny_video2world \\
      --input_path assets/robot_arm/first_frame.png --prompt "The robot arm pushes the red block." --save_path output/clip.mp4
  python inference/video2world.py --dit_path checkpoints/nvidia/Cosmos-Predict2-2B-Video2World/model-720p-16fps.pt \\
      --input_path start.jpg --prompt "..." --guidance 7

Guidance g means x0 = cond + g (cond - uncond): g = 7 is 8 in the other usual convention, g = 0 is none.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inference/video2world.py",
        description="Continue an image or a video clip.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dit_path", required=True, help="run folder, exported .pt, .safetensors, or a published file")
    add("--load_ema", action="store_true", help="use the EMA weights of the checkpoint")
    add("--input_path", required=True, help="image, or video whose last frames are continued")
    add("--prompt", default="", help="what happens in the clip")
    add("--negative_prompt", default="", help="what guidance moves away from (default: no text at all)")
    add(
        "--save_path",
        default="output/generated_video.mp4",
        help="mp4 to write (default: %(default)s); settings go beside it as .json",
    )
    add(
        "--num_conditional_frames",
        type=positive_int,
        default=1,
        help="given frames: 1, or 5 of a video (default: %(default)s)",
    )
    add(
        "--num_frames",
        type=positive_int,
        help="frames to make, given ones included (default: what the checkpoint was made for)",
    )
    add(
        "--size",
        type=positive_int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="pixels (default: what the checkpoint was made for)",
    )
    add(
        "--resolution",
        choices=("480", "512", "720", "1024"),
        help="published size class, with --aspect_ratio, instead of --size",
    )
    add("--aspect_ratio", choices=("1:1", "4:3", "3:4", "16:9", "9:16"), default="16:9", help="(default: %(default)s)")
    add("--fps", type=float, help="frames per second (default: what the checkpoint was made for)")
    add("--guidance", type=float, default=7.0, help="strength of guidance, 0 is none (default: %(default)s)")
    add("--num_steps", type=positive_int, default=35, help="solver steps (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    add("--text_encoder", help="t5, tiny, or a folder (default: the checkpoint's)")
    add("--tokenizer_path", default="", help="weights of the video tokenizer (default: the checkpoint's)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    add(
        "--dtype", choices=("float32", "bfloat16"), help="of the network (default: bfloat16 on a GPU, float32 on a CPU)"
    )
    return parser


def generate_clip(args: argparse.Namespace) -> int:
    import torch
    from loguru import logger
    from tqdm import tqdm

    from cosmos_predict.data.transforms import RESOLUTION_BUCKETS
    from cosmos_predict.data.video_reader import write_video
    from cosmos_predict.io.atomic import atomic_write_text
    from cosmos_predict.models.sampling import SamplerSettings
    from cosmos_predict.pipelines.load import load_world_model
    from cosmos_predict.pipelines.video2world import Clip, generate
    from cosmos_predict.text_encoders.build import build_text_encoder

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, args.dtype or ("bfloat16" if device != "cpu" else "float32"))
    if not Path(args.input_path).exists():
        raise FileNotFoundError(f"no input at {args.input_path}: --input_path takes an image or a video")
    loaded = load_world_model(
        args.dit_path, load_ema=args.load_ema, tokenizer_path=args.tokenizer_path, device=device, dtype=dtype
    )
    pipe = loaded.model.config.pipe_config

    encoder = build_text_encoder(args.text_encoder or pipe.text_encoder, device=device)
    text, _ = encoder.encode([args.prompt])
    negative = encoder.encode([args.negative_prompt])[0] if args.negative_prompt else None
    del encoder

    size = tuple(args.size) if args.size else loaded.video_size
    if args.resolution:
        width, height = RESOLUTION_BUCKETS[args.resolution][args.aspect_ratio]
        size = (height, width)
    clip = Clip(
        args.input_path,
        args.num_frames or loaded.num_frames,
        size,
        args.fps or loaded.fps,
        args.num_conditional_frames,
        args.seed,
    )
    base = SamplerSettings.for_family(pipe.family)
    settings = SamplerSettings(**{**vars(base), "num_steps": args.num_steps, "guidance": args.guidance})
    with tqdm(total=len(settings.sigmas()) - 1, desc="sampling", unit="step") as bar:

        def advance(*_: object) -> None:
            bar.update()

        frames = generate(loaded.model, clip, text, negative, settings, on_step=advance)
    save_path = Path(args.save_path)
    write_video(save_path, frames, clip.fps)
    sidecar: dict[str, Any] = {
        **{key: value for key, value in vars(args).items() if key != "verbose"},
        "checkpoint": str(loaded.checkpoint),
        "num_frames": len(frames),
        "size": list(clip.size),
        "fps": clip.fps,
        "device": str(device),
        "torch": torch.__version__,
    }
    atomic_write_text(save_path.with_suffix(".json"), json.dumps(sidecar, indent=1))
    logger.info("{}: {} frames of {} x {} at {:g} fps", save_path, len(frames), clip.size[0], clip.size[1], clip.fps)
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    run_program(generate_clip, build_parser(), argv)

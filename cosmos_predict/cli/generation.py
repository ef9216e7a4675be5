"""The options of `inference/video2world.py`, `text2world.py` and `text2image.py`. Imports no torch."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from cosmos_predict.cli import program

COMMANDS = {
    "video2world": "Continue an image or a video clip.",
    "text2world": "Make a video from text: a first frame and its continuation, or both by one model (--dit_path).",
    "text2image": "Make an image from text.",
}
PROMPT = "A robot arm in a bright kitchen lifts a red apple out of a wooden bowl and sets it down on a white plate."
EPILOG = """example:
  python inference/{}.py --dit_path checkpoints/PROJECT/GROUP/NAME --prompt "A robot arm sorts apples."
Further names of a flag, such as --num_input_frames, are those of Cosmos-Predict1 and NeMo, for their checkpoints.
Guidance g means x0 = cond + g (cond - uncond): g = 7 is 8 in the other usual convention, g = 0 is none and costs half.
docs/inference.md says more.
"""
SWITCHES = {
    "load_ema": "use the EMA weights (with --lora_path: of the adapters)",
    "use_fast_tokenizer": "the published 0.6B's other tokenizer, which is not built here: refused",
    "natten": "the published checkpoint with sparse attention; with --dit_path: such a one under another name",
    "cfg_parallel": "half of the processes compute each branch of guidance",
    "compile": "compile the network's blocks (pays from the second clip on)",
    "use_cuda_graphs": "no effect here: see --compile",
    "offload": "network and tokenizer take turns on the GPU",
    "offload_text_encoder": "always so: it is gone before the network is loaded",
    "downcast_text_encoder": "text encoder in bfloat16",
    "benchmark": "make each clip 4 times, report the mean time of the last 3",
    "disable_guardrail": "no effect: there are no guardrails here, neither prompts nor clips are checked",
    "offload_guardrail": "no effect, as above",
    "disable_prompt_refiner": "no effect: there is no prompt refiner here, prompts are used as they are",
    "offload_prompt_refiner": "no effect, as above",
}
LORA_SWITCHES = {
    "use_lora": "make sure that there are adapters, in the file of --dit_path or as --lora_path",
    "init_lora_weights": "no effect: adapters are read",
}
# What a flag here is called by Cosmos-Predict1 and its forerunner in NeMo.
PREDICT1_NAMES = {
    "--dit_path": ("--nemo_checkpoint",),
    "--input_path": ("--input_image_or_video_path", "--conditioned_image_or_video_path"),
    "--num_conditional_frames": ("--num_input_frames",),
    "--batch_input_json": ("--batch_input_path",),
    "--save_path": ("--video_save_path",),
    "--num_frames": ("--num_video_frames",),
    "--num_gpus": ("--num_devices",),
    "--offload": ("--offload_diffusion_transformer", "--offload_tokenizer"),
    "--offload_text_encoder": ("--offload_text_encoder_model",),
    "--offload_guardrail": ("--offload_guardrail_models",),
    "--disable_prompt_refiner": ("--disable_prompt_upsampler", "--enable_prompt_upsampler"),
    "--offload_prompt_refiner": ("--offload_prompt_upsampler",),
    "--checkpoint_dir": ("--cosmos_assets_dir",),
    "--diffusion_transformer_dir": ("--model",),
}
# Flags for its checkpoints alone: what takes their place for others ("": nothing), the default, and what they say.
_NONE = "no effect: there is none here"
_ONLY = {
    "--checkpoint_dir": ("--dit_path", "checkpoints", "where downloads lie"),
    "--diffusion_transformer_dir": ("--dit_path", "", "folder there with model.pt (published: Cosmos-Predict1-7B-...)"),
    "--tokenizer_dir": ("--tokenizer_path", "", "folder there of the tokenizer, or 'dct' (default: the checkpoint's)"),
    "--video_save_folder": ("--save_path", "outputs/", "with --video_save_name in place of --save_path"),
    "--video_save_name": ("--save_path", "output", "file without .mp4; the prompt goes beside it as .txt"),
    "--height": ("--size", None, "of the clip (default: the checkpoint's)"),
    "--width": ("--size", None, "of the clip (default: the checkpoint's)"),
    "--subject_name": ("--prompt for the whole text", "", "S: the prompt is 'A video of sks S. ' and --prompt"),
    "--sampler": ("", None, "Euler is Predict1's, RES NeMo's (default: Euler)"),
    "--cp_size": ("", None, "NeMo: must be --num_gpus, there is no tensor parallel here"),
    **dict.fromkeys(("--prompt_upsampler_dir", "--guardrail_dir", "--word_limit_to_skip_upsampler"), ("", "", _NONE)),
}
ONLY_PREDICT1 = {flag: instead for flag, (instead, _, _) in _ONLY.items()}
for _flag, _names in PREDICT1_NAMES.items():
    ONLY_PREDICT1 |= dict.fromkeys(_names, ONLY_PREDICT1.get(_flag, _flag))
ONLY_PREDICT2 = {
    **dict.fromkeys(("--model_size", "--dit_path_text2image", "--dit_path_video2world"), "--dit_path"),
    **dict.fromkeys(("--resolution", "--aspect_ratio"), "--height and --width"),
    "--distill_steps": "--num_steps",
    "--natten": "",
}


class _Spelled(argparse.Action):
    """Stores a value (a switch: True), and in `given` the name of the flag that gave it."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, True if self.nargs == 0 else values)
        namespace.given = (*namespace.given, option_string)


def build_parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command of `COMMANDS`, with the published flags and defaults."""
    raw = argparse.RawDescriptionHelpFormatter
    texts = COMMANDS[command], EPILOG.format(command)
    parser = argparse.ArgumentParser(f"inference/{command}.py", None, *texts, formatter_class=raw)
    image, video = command == "text2image", command == "video2world"

    place: Any = parser

    def add(flag: str, text: str, default: Any = None, when: bool = True, **options: Any) -> None:
        if when:
            shown = "" if default is False or default in (None, "", []) else " (default: %(default)s)"
            names = () if image else PREDICT1_NAMES.get(flag, ())
            place.add_argument(flag, *names, help=text + shown, default=default, action=_Spelled, **options)
        else:
            parser.set_defaults(**{flag.removeprefix("--"): default})

    whole, positive = program.positive_int, program.positive
    add("--model_size", "of the published checkpoint", "2B", choices=["0.6B"] * image + ["2B", "14B"])
    add("--dit_path", "run folder, exported .pt, .safetensors, or published file (default: as published)", "")
    add("--dit_path_text2image", "without --dit_path: what makes the first frame", "", command == "text2world")
    add("--dit_path_video2world", "without --dit_path: what continues it", "", command == "text2world")
    add("--lora_path", "adapter folders or files, or LoRA run folders", [], nargs="+", metavar="PATH")
    add("--lora_rank", "that adapters must have; their file says which they have", None, video, type=whole)
    add("--lora_alpha", "of adapters inside the file of --dit_path (default: their rank)", None, video, type=positive)
    add("--lora_target_modules", "no effect: the file says which layers are adapted", "", video)
    add("--config", "config.yaml of the checkpoint's run, for a file that was moved out of it", "")
    add("--tokenizer_path", "weights of the video tokenizer, or 'dct' (default: the checkpoint's)", "")
    encoders = "t5, cosmos_reason1, tiny, or a folder of one of the first two (default: the checkpoint's)"
    add("--text_encoder", encoders, "")
    add("--distill_steps", "of a distilled image model", 0, not video, type=int, choices=range(5))
    add("--prompt", "text, a .txt file, or a file of a precomputed embedding", "" if video else PROMPT)
    negative = "''" if image else "a description of poor video"
    add("--negative_prompt", f"what guidance moves away from, as --prompt; '' is no text (default: {negative})")
    add("--input_path", "image, or video to be continued", "assets/video2world/input0.jpg", video)
    add("--num_conditional_frames", "given frames: 1, or 5 of a video", 1, video, type=whole)
    add("--num_chunks", "chunks of a long video, each continues the last", 1, video, type=whole)
    batch = "list of objects with prompt, input_video, output_video or output_image, seed (Predict1: lines)"
    add("--batch_input_json", batch)
    output = "output/generated_image.jpg" if image else "output/generated_video.mp4"
    add("--save_path", "file to write; every setting goes beside it as .json", output)
    add("--from_sidecar", "take every option from the .json beside a clip; those given here win", metavar="JSON")
    add("--num_frames", "of a chunk, given ones included (default: the checkpoint's)", None, not image, type=whole)
    add("--fps", "frames per second (default: the checkpoint's; published: 16)", None, not image, type=positive)
    sizes = ("480", "512", "720", "1024")
    add("--resolution", "size class (default: the checkpoint's; published: 720)", None, not image, choices=sizes)
    ratios = ("1:1", "4:3", "3:4", "16:9", "9:16")
    add("--aspect_ratio", "width to height (default: the checkpoint's; published: 16:9)", choices=ratios)
    add("--size", "pixels, in place of these two", type=whole, nargs=2, metavar=("HEIGHT", "WIDTH"))
    add("--seed", "of the noise", 0, type=program.whole_seed)
    add("--guidance", "0 is none", 4.0 if image else 7.0, type=program.finite)
    add("--num_steps", "solver steps", 35, type=whole)
    add("--num_gpus", "processes that torchrun starts: each computes a part of the frames", type=whole)
    add("--cfg_batch", "branches of guidance in one batch (auto: short clips)", "auto", choices=("auto", "on", "off"))
    add("--device", "cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    kinds = ("float32", "bfloat16")
    add("--dtype", "of the network (default: bfloat16 on a GPU, float32 on a CPU)", choices=kinds)
    for name, text in {**SWITCHES, **(LORA_SWITCHES if video else {})}.items():
        add(f"--{name}", text, False, nargs=0)
    program.add_verbose(parser)
    if not image:
        place = parser.add_argument_group("for checkpoints of Cosmos-Predict1 alone")
    for flag, (_, default, text) in _ONLY.items():
        options = {"choices": ("RES", "Euler")} if flag == "--sampler" else {"type": whole} if default is None else {}
        add(flag, text, default, not image, **options)
    parser.set_defaults(command=command, given=())
    return parser


def main(command: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command of `COMMANDS`, and end the program, on every process alike; one of them shows what went wrong."""
    parser = build_parser(command)
    number = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    with contextlib.redirect_stderr(sys.stderr if number == "0" else io.StringIO()):
        args = parser.parse_args(argv)
    program.configure_logging(args.verbose)

    def body() -> int:
        from cosmos_predict.cli.generate import generate, use_sidecar
        from cosmos_predict.pipelines.processes import fails_first

        try:
            if args.from_sidecar:
                use_sidecar(parser, args)
            return generate(parser.parse_args(argv))
        except Exception as error:
            if fails_first() or args.verbose:
                raise
            return 2 if isinstance(error, program.BAD_INPUT) else 1

    status = program.status_of(body, args.verbose)
    from cosmos_predict.parallel.distributed import finish_distributed

    finish_distributed(status)

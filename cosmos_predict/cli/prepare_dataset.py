"""`scripts/prepare_dataset.py`, `prepare_instruction_dataset.py`: videos to Cosmos-1.0's cached latents."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cosmos_predict.cli.program import HelpFormatter, device_of, positive_int, run_program, tell_failed
from cosmos_predict.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from cosmos_predict.tokenizers.base import VideoTokenizer

TOKENIZER = "nvidia/Cosmos-1.0-Tokenizer-CV8x8x8"
LOCAL = ("Cosmos-Tokenize1-CV8x8x8-720p", TOKENIZER)  # in checkpoints/: that of the experiments, that of Cosmos-1.0
PATCH = 2  # latent pixels of a side that a published network makes one token of
DESCRIPTION = """Encode windows of {of}, to 0.video_latent.pth, 0.conditioning_latent.pth, 0.t5_text_embeddings.pth,
0.t5_text_mask.pth, 0.info.json, 1.video_latent.pth, ... Whole samples that are there are kept, so an interrupted run is
resumed by running it again."""


def main(prog: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command of this name and exit."""
    run_program(prepare, build_parser(prog), argv)


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of `prepare_dataset.py` or `prepare_instruction_dataset.py`; published flags keep their names."""
    instructions = prog == "prepare_instruction_dataset.py"
    each = "DATASET/videos/NAME.mp4, each with the language_instruction_0 of DATASET/instructions/NAME.json"
    text = DESCRIPTION.format(of=each if instructions else "a folder of videos, all with one prompt")
    parser = argparse.ArgumentParser(prog=prog, description=text, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--dataset_path", type=Path, default=Path("video_dataset"), help="folder of the videos, or of videos/")
    add("--output_path", type=Path, default=Path("video_dataset_cached"), help="folder of the samples")
    parser.set_defaults(prompt=None)
    if not instructions:
        add("--prompt", default="a video of sks.", help="text of every sample")
    add("--num_chunks", type=positive_int, default=5, help="windows of " + ("each" if instructions else "all videos"))
    add("--num_frames", type=positive_int, default=121, help="of a window")
    add("--height", type=positive_int, default=704, help="in pixels")
    add("--width", type=positive_int, default=1280, help="in pixels")
    add("--tokenizer_dir", "--tokenizer", default="", help=f"folder, file or dct; by default {' or '.join(LOCAL)}")
    add("--text_encoder", default="t5", help="t5, tiny (offline, for tiny models only), a T5 folder or hub name")
    add("--cache_dir", type=Path, help="T5 folder, or where to look for it and to download it to")
    add("--text_dtype", default="float32", help="of the T5 weights: float32, bfloat16, float16 or int8")
    add("--dtype", choices=("float32", "bfloat16"), help="of the tokenizer; by default bfloat16 on a GPU, else float32")
    add("--device", help="where to compute; by default a GPU where there is one")
    add("--fit", choices=("published", "stretch", "crop"), default="published", help="how frames get their size")
    add("--seed", type=int, default=0, help="of the windows")
    add("--num_workers", type=positive_int, default=1, help="threads that decode ahead; each holds a window in memory")
    add("--no_conditioning_latent", action="store_true", help="leave out what no training reads: twice as fast")
    return parser


def prepare(args: argparse.Namespace) -> int:
    """Prepare one dataset; return the exit status."""
    if args.prompt is not None and not args.prompt.strip():
        raise DataError("the prompt is empty; give the text that describes every video: --prompt 'a video of sks.'")
    import torch

    from cosmos_predict.data.latent_cache import tokenizer_key
    from cosmos_predict.data.prepare_nemo import draw_chunks, read_instruction, write_chunks
    from cosmos_predict.io.hub import download_snapshot
    from cosmos_predict.models.config import TokenizerConfig
    from cosmos_predict.tokenizers.load import load_tokenizer

    def prompt_of(video: Path) -> str:
        return args.prompt or read_instruction(args.dataset_path / "instructions" / f"{video.stem}.json")

    folder = args.dataset_path if args.prompt else args.dataset_path / "videos"
    chunks, failed = draw_chunks(folder, prompt_of, args.num_frames, args.num_chunks, args.seed, not args.prompt)
    local = [str(path) for path in (Path("checkpoints", name) for name in LOCAL) if path.is_dir()]
    source = args.tokenizer_dir or (local[0] if local else str(download_snapshot(TOKENIZER)))
    options: dict[str, Any] = {"channels": 16, "temporal": 8} if source == "dct" else {}
    device = device_of(args.device)
    dtype = args.dtype or ("bfloat16" if device.type != "cpu" and source != "dct" else "float32")
    tokenizer = load_tokenizer(source, device=device, dtype=getattr(torch, dtype), **options)
    shape = latent_shape(tokenizer, args.num_frames, args.height, args.width)
    step = PATCH * tokenizer.spatial_compression_factor
    if args.height % step or args.width % step:
        need = f"the published networks need multiples of {step}, and cannot be trained on this cache"
        print(f"warning: --height {args.height} --width {args.width}: {need}", file=sys.stderr)
    print(f"{len(chunks)} windows, latents {' x '.join(map(str, shape))}, tokenizer {source}", file=sys.stderr)
    names = ("num_frames", "height", "width", "fit", "num_chunks", "seed", "prompt", "text_dtype")
    settings = {name: getattr(args, name) for name in names} | {"conditioning_latent": not args.no_conditioning_latent}
    settings |= {"text_encoder": "tiny" if args.text_encoder == "tiny" else "t5"}
    config = TokenizerConfig(_name_of(tokenizer), "" if source == "dct" else source, options)
    settings |= tokenizer_key(config) | {"tokenizer_dtype": None if dtype == "float32" else dtype}

    def encode(video: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return tokenizer.encode(video)

    def embed(texts: Sequence[str]) -> dict[str, torch.Tensor]:
        from cosmos_predict.text_encoders.build import build_text_encoder

        encoder = build_text_encoder(args.text_encoder, args.text_dtype, device, cache_dir=args.cache_dir)
        encoded = ((text, *encoder.encode([text])) for text in texts)
        return {text: rows[0, mask[0]].to("cpu", torch.bfloat16) for text, rows, mask in encoded}

    began = time.monotonic()
    report = write_chunks(chunks, args.output_path, settings, encode, embed, device, args.num_workers)
    failed |= report.failed
    status = tell_failed(failed)
    print(
        f"{args.output_path}: {report.written} samples written, {report.kept} kept (already there), {len(failed)} videos failed; "
        f"{report.windows} windows encoded, {report.written - report.windows} saved (the same window again); {report.prompts} "
        f"texts encoded, {report.written - report.prompts} saved; {report.windows / (time.monotonic() - began):.3g} windows/s"
    )
    return status


def latent_shape(tokenizer: VideoTokenizer, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return (C, t, h, w) of a window's latent; raises ConfigError for sizes that the tokenizer cannot take."""
    step = tokenizer.spatial_compression_factor
    for name, size in (("height", height), ("width", width)):
        if size % step:
            near = f"{max(step, size // step * step)} or {size // step * step + step}"
            raise ConfigError(f"--{name} {size}: the tokenizer needs a multiple of {step}, such as {near}")
    return tokenizer.latent_ch, tokenizer.get_latent_num_frames(num_frames), height // step, width // step


def _name_of(tokenizer: VideoTokenizer) -> str:
    """What a configuration calls a loaded tokenizer."""
    time, space = tokenizer.temporal_compression_factor, tokenizer.spatial_compression_factor
    named = {"DCTTokenizer": "dct", "WanVAE": "wan2.1"}
    return named.get(type(tokenizer).__name__, f"cosmos_cv{time}x{space}x{space}")

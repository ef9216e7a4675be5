"""What the flags of Cosmos-Predict1 and its NeMo forerunner mean for `cli/generate.py`: places, defaults, wrong ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_predict.checkpoint.nemo import find_checkpoint
from cosmos_predict.cli.generation import ONLY_PREDICT1, ONLY_PREDICT2
from cosmos_predict.errors import ConfigError
from cosmos_predict.pipelines.load import Checkpoint
from cosmos_predict.tokenizers.load import TOKENIZERS


def find_files(args: argparse.Namespace) -> None:
    """Turn the flags that say where network and tokenizer lie into `args.dit_path` and `args.tokenizer_path`.

    Without any flag of Predict1 alone nothing changes. Raises FileNotFoundError or ConfigError saying what to do.
    """
    root, name = Path(args.checkpoint_dir), args.diffusion_transformer_dir
    if name and {"--dit_path", "--nemo_checkpoint"} & {*args.given}:
        raise ConfigError("--dit_path and --diffusion_transformer_dir both say which network to use: give one of them")
    if name or (not args.dit_path and any(flag in ONLY_PREDICT1 for flag in args.given)):
        kind = "Video2World" if args.command == "video2world" else "Text2World"
        folder = _place(root, name or f"Cosmos-Predict1-7B-{kind}")
        whole = folder.is_file() or (folder / "checkpoints").is_dir() or find_checkpoint(folder)
        file = folder if whole else folder / "model.pt"
        if not file.exists():
            raise FileNotFoundError(
                f"no checkpoint at {file}: download it (scripts/download_diffusion_checkpoints.py), copy a post-trained one "
                f"there (cp RUN/checkpoints/iter_000001000_ema_model.pt {file}), or give --dit_path RUN"
            )
        args.dit_path = str(file)
    if nemo := find_checkpoint(args.dit_path):
        raise ConfigError(
            f"{args.dit_path} is a distributed checkpoint of NeMo: import it first, and give the file as --dit_path:\n"
            f"  python scripts/import_nemo_checkpoint.py {nemo} {root}/Cosmos-Predict1-NAME_post-trained/model.pt"
        )
    if given := args.tokenizer_dir:
        args.tokenizer_path = given if given in TOKENIZERS else str(_place(root, given))
        if given not in TOKENIZERS and not Path(args.tokenizer_path).exists():
            raise FileNotFoundError(f"no video tokenizer at {root / given}: --tokenizer_dir names a folder there")


def _place(root: Path, name: str) -> Path:
    """Return `name` in `root`, or where else it is: in the folder of downloads of Cosmos-1.0, or as it stands."""
    return next((path for path in (root / name, root / "nvidia" / name, Path(name)) if path.exists()), root / name)


def settle(args: argparse.Namespace, found: Checkpoint, processes: int) -> None:
    """Refuse flags of the other family than that of `found`, and fill in what Predict1 leaves open otherwise than Predict2.

    args.family becomes that of `found`. A sidecar has everything filled in already.
    """
    args.family = found.config.pipe_config.family
    predict1 = args.family == "predict1"
    other, wrong = ("Predict2", ONLY_PREDICT2) if predict1 else ("Predict1", ONLY_PREDICT1)
    if flag := next((flag for flag in args.given if flag in wrong and args.command != "text2image"), None):
        advice = f"use {wrong[flag]}" if wrong[flag] else "leave it out"
        raise ConfigError(f"{flag} is for Cosmos-{other}, and {found.path} is a {args.family} network: {advice}")
    if not predict1 or args.command == "text2image":
        return
    if args.cp_size not in (None, processes):
        raise ConfigError(
            f"--cp_size {args.cp_size} with {processes} process(es): the rest would be tensor parallel, which generation does "
            f"not have; give --cp_size {processes}, or leave it out"
        )
    named = {"--video_save_folder", "--video_save_name"} & {*args.given}
    if named or not (args.from_sidecar or {"--save_path", "--video_save_path"} & {*args.given}):
        args.save_path = f"{args.video_save_folder}/{args.video_save_name.removesuffix('.mp4')}.mp4"
    if "--seed" not in args.given and not args.from_sidecar:
        args.seed = 1
    if args.height or args.width:
        height, width = args.size or found.clip.video_size
        args.size = [args.height or height, args.width or width]
    local = Path(args.checkpoint_dir) / "google-t5" / "t5-11b"
    if not args.text_encoder and found.config.pipe_config.text_encoder == "t5" and local.is_dir():
        args.text_encoder = str(local)

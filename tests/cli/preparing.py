"""`scripts/prepare_dataset.py` on clips of moving pictures, at tiny sizes and without weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cosmos_predict.cli.prepare_dataset import build_parser, prepare
from cosmos_predict.data import video_reader

OFFLINE = ["--tokenizer", "dct", "--text_encoder", "tiny", "--height", "48", "--width", "64", "--device", "cpu"]
KINDS = ["conditioning_latent.pth", "info.json", "t5_text_embeddings.pth", "t5_text_mask.pth", "video_latent.pth"]


def moving(count: int, height: int = 40, width: int = 56) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 of a picture that moves to the right, each unlike the others."""
    ramp = (np.arange(height)[:, None, None] + 2 * np.arange(width)[None, :, None] + 40 * np.arange(3)).astype(np.uint8)
    return np.stack([np.roll(ramp, shift, axis=1) + np.uint8(shift) for shift in range(count)])


def write_videos(folder: Path) -> Path:
    """Write clips of 125 and 123 frames of 40 x 56, so with five and three windows of 121 frames; return their folder."""
    for name, count in (("one", 125), ("two", 123)):
        video_reader.write_video(folder / "videos" / f"{name}.mp4", moving(count), fps=24)
    return folder / "videos"


def call(dataset: Path, output: Path, *flags: str, prog: str = "prepare_dataset.py") -> int:
    where = ["--dataset_path", str(dataset), "--output_path", str(output)]
    return prepare(build_parser(prog).parse_args([*where, *OFFLINE, *flags]))


def call_instructions(dataset: Path, output: Path, *flags: str) -> int:
    return call(dataset, output, *flags, prog="prepare_instruction_dataset.py")


def load(path: Path) -> torch.Tensor:
    return torch.load(path, weights_only=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}

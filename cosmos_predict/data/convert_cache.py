"""Cached latents from one layout to the other: ours (`latent_cache`) and Cosmos-1.0's (`nemo_cache`). Latents stay as they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from cosmos_predict.data import latent_cache, nemo_cache
from cosmos_predict.data.captions import TEXT_LENGTH
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.atomic import atomic_path, atomic_write_text

# What both layouts note of how a cache was made, with what is true of the published ones.
SHARED = {"fit": "published", "fps": None, "sequence_interval": 1, "text_encoder": "t5", "tokenizer_file": ""}
SHARED |= {"tokenizer": "cosmos_cv8x8x8", "tokenizer_options": {}}


def convert_cache(source: Path, target: Path) -> int:
    """Convert a cache to the other layout; return the number of windows.

    To Cosmos-1.0's: texts are rounded to bfloat16, there is no conditioning latent (it needs the pixels), and info.json has
    the size of the resized frames. To ours: of the same window twice one is kept, and the tokenizer's dtype is not noted, so
    that training compares none: it is unknown of a published cache, and less than what bfloat16 rounds.

    Raises DataError for a source that is no cache or not finished, or a target that holds files; ConfigError for what the
    layout cannot say: several sizes, padded frames.
    """
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target}: holds files; give a new folder")
    return _to_nemo(source, target) if (source / latent_cache.INDEX_NAME).is_file() else _from_nemo(source, target)


def _to_nemo(source: Path, target: Path) -> int:
    index = latent_cache.read_index(source)
    if index["clips"] is None:
        raise DataError(f"{source}: the cache is not finished; run the command that makes it again")
    shapes = sorted({tuple(clip["shape"]) for clip in index["clips"]})
    if len(shapes) > 1:
        raise ConfigError(
            f"{source}: holds clips of several sizes (T, H, W) {shapes}; Cosmos-1.0's layout has one a folder"
        )
    settings = {name: index["key"][name] for name in (*SHARED, "tokenizer_dtype") if name in index["key"]}
    nemo_cache.write_settings(target, settings, finished=False)
    number = 0
    for clip in tqdm(index["clips"], unit="clip", desc="samples"):
        tensors = load_file(source / "latents" / f"{clip['name']}.safetensors")
        if tensors["padding_mask"].any():
            raise ConfigError(f"{source}: clip {clip['name']} has padded pixels, which Cosmos-1.0's layout cannot say")
        frames, height, width = clip["shape"]
        info = {"height": height, "width": width, "fps": clip["fps"], "num_frames": frames, "video_path": clip["name"]}
        for latent, start in zip(tensors["latent"], tensors["start"].tolist(), strict=True):
            text = tensors["t5_xxl"][:TEXT_LENGTH]
            nemo_cache.write_sample(target, str(number), [latent], text, {**info, "start_frame": start})
            number += 1
    nemo_cache.write_settings(target, settings, finished=True)
    return number


def _from_nemo(source: Path, target: Path) -> int:
    dataset = nemo_cache.NemoCacheDataset(source, strict=True)
    made = (nemo_cache.read_settings(source) or {"settings": {}})["settings"]
    groups: dict[tuple[str, float, bytes], dict[int, str]] = {}  # a video and its text: {first frame: sample}
    for name in dataset.names:
        info, text = nemo_cache.read_info(source, name), nemo_cache.read_text(source, name).float()
        digest = hashlib.sha256(text.numpy().tobytes()).digest()
        windows = groups.setdefault((info.get("video_path", name), info["fps"], digest), {})
        windows.setdefault(int(info.get("start_frame", len(windows))), name)
    shape, clips, dtype = list(dataset.shapes[0]), list[dict[str, Any]](), ""
    for (video, fps, _), windows in tqdm(groups.items(), unit="clip", desc="clips"):
        names = [windows[start] for start in sorted(windows)]
        tensors = {
            "latent": torch.stack([dataset.read_sample(name)[1] for name in names]),
            "start": torch.tensor(sorted(windows)),
            "padding_mask": torch.zeros(1, *shape[1:], dtype=torch.uint8),
            "image_size": torch.tensor(shape[1:] * 2),
            "t5_xxl": nemo_cache.read_text(source, names[0]).float(),
        }
        dtype = str(tensors["latent"].dtype).removeprefix("torch.")
        stem = f"{len(clips):05d}-{Path(video).stem}"
        with atomic_path(target / "latents" / f"{stem}.safetensors") as path:
            save_file(tensors, path)
        clips.append({"name": stem, "windows": len(names), "fps": fps, "shape": shape})
    key = {name: made.get(name, value) for name, value in SHARED.items() if name in made or value != ""}
    key |= {"format": latent_cache.FORMAT, "num_frames": shape[0], "video_size": shape[1:], "shapes": [shape]}
    key |= {"start_interval": None, "dtype": dtype}
    atomic_write_text(target / latent_cache.INDEX_NAME, json.dumps({"key": key, "clips": clips}, indent=1))
    return sum(clip["windows"] for clip in clips)

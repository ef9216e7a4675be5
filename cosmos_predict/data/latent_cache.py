"""Latents encoded once: training on them needs neither tokenizer nor text encoder.

    <cache_dir>/index.json                    the key (below), and the clips in their order once all are written
    <cache_dir>/latents/<clip>.safetensors    latent (n, C, t, h, w), start (n,), padding_mask, image_size, t5_xxl (m, 1024)

A file per clip, each written whole or not at all, so an interrupted run goes on where it was. Clips of a bucket have the
shape of their bucket.

Cached are the windows that start at multiples of `start_interval`, since causal tokenizers encode a window's first frame
in its own way: latents of one window cannot be cut out of another. `LatentCacheDataset` then has, for each sample number,
the window that `VideoFolderDataset` with the same seed and `start_interval` has; with start_interval=1 that is every
window of the pixel dataset, at a latent of T frames for every source frame. The latents are what the tokenizer returns,
not multiplied by sigma_data. The key says how they were made (`cache_key`): another key is refused, naming both values.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from cosmos_predict.config.lazy import configurable
from cosmos_predict.data import clip_sampler
from cosmos_predict.data.bad_items import BadItems, WriteReport
from cosmos_predict.data.captions import load_text
from cosmos_predict.data.loader import NumberedDataset
from cosmos_predict.data.video_folder import Clip, VideoFolderDataset
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.atomic import atomic_path, atomic_write_text
from cosmos_predict.io.embeddings import read_embedding

INDEX_NAME = "index.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMAT = 2
Encode = Callable[[torch.Tensor], torch.Tensor]  # uint8 videos (B, 3, T, H, W) to latents (B, C, t, h, w)
_MAKE = "python scripts/cache_latents.py --output_dir {} -- experiment=NAME"


class TokenizerSource(Protocol):
    """Which tokenizer: `cosmos_predict.models.config.TokenizerConfig` is one."""

    name: str
    path: str
    options: dict[str, Any]
    dtype: str | None


@dataclass
class CacheReport(WriteReport):
    """What `write_cache` did with clips; windows and bytes in all."""

    windows: int = 0
    bytes: int = 0


def cache_key(dataset: VideoFolderDataset, tokenizer: TokenizerSource, dtype: str) -> dict[str, Any]:
    """Return what the latents of a dataset depend on, as plain values. Raises ConfigError for an unknown dtype."""
    if dtype not in DTYPES:
        raise ConfigError(f"unknown cache dtype {dtype!r}; known: {', '.join(DTYPES)}")
    return {
        "format": FORMAT,
        **tokenizer_key(tokenizer),
        "num_frames": dataset.num_frames,
        "video_size": list(dataset.video_size),
        "fit": dataset.fit,
        "fps": dataset.fps,
        "sequence_interval": dataset.sequence_interval,
        "start_interval": dataset.start_interval,
        "shapes": sorted([frames, *size] for frames in dataset.lengths for size in dataset.sizes),
        "text_encoder": next(iter(dataset.text_encoders), ""),
        "dtype": dtype,
    }


def write_cache(
    dataset: VideoFolderDataset, encode: Encode, key: Mapping[str, Any], cache_dir: str | Path, batch_size: int = 1
) -> CacheReport:
    """Encode every window of a dataset; what is there already, of the same files and key, is kept.

    encode: to latents in the tokenizer's own scale. key: `cache_key`'s.
    A clip that fails is reported and left out, the others go on. The cache can be used once this has returned.

    Raises ConfigError where `cache_dir` holds a cache of another key.
    """
    cache_dir = Path(cache_dir)
    index_file = cache_dir / INDEX_NAME
    if index_file.is_file():
        refuse_difference(read_index(cache_dir)["key"], key, cache_dir, "in this run; choose another folder")
    report, clips = CacheReport(), []
    mark = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    for clip in tqdm(dataset.clips, unit="clip", desc="latents"):
        target = cache_dir / "latents" / f"{clip.name}.safetensors"
        try:
            windows = dataset.windows(clip)
            text = dataset.texts[clip.name].tobytes() if clip.embedding is None else b""
            made_of = _stamp(clip.embedding) if clip.embedding else hashlib.sha256(text).hexdigest()
            metadata = {"source": json.dumps([mark, made_of, _stamp(clip.video)])}
            if _metadata(target).get("source") == metadata["source"]:
                report.kept += 1
            else:
                tensors = _encode_clip(dataset, clip, windows, encode, DTYPES[key["dtype"]], batch_size)
                if not report.written:  # from here on the files are not those that an older index lists
                    atomic_write_text(index_file, json.dumps({"key": key, "clips": None}, indent=1))
                with atomic_path(target) as temporary:
                    save_file(tensors, str(temporary), metadata)
                report.written += 1
        except (DataError, OSError) as error:
            report.failed[clip.video] = str(error)
            continue
        report.windows += len(windows)
        report.bytes += target.stat().st_size
        fps, shape = dataset.clip_fps(clip), list(clip.shape)
        clips.append({"name": clip.name, "windows": len(windows), "fps": fps, "shape": shape})
    if not clips:
        raise DataError(f"{cache_dir}: no clip could be cached: {next(iter(report.failed.values()))}")
    atomic_write_text(index_file, json.dumps({"key": key, "clips": clips}, indent=1))
    return report


def _encode_clip(
    dataset: VideoFolderDataset, clip: Clip, windows: Any, encode: Encode, dtype: torch.dtype, batch_size: int
) -> dict[str, torch.Tensor]:
    latents = []
    padding_mask = image_size = torch.empty(0)
    for start in range(0, len(windows), batch_size):
        fitted = [dataset.read(clip, ids) for ids in windows[start : start + batch_size]]
        video = torch.stack([one.frames.permute(1, 0, 2, 3) for one in fitted])
        latents.append(encode(video.contiguous()).to("cpu", dtype))
        padding_mask, image_size = fitted[0].padding_mask, fitted[0].image_size
    latent = torch.cat(latents).contiguous()
    if not latent.isfinite().all():
        raise DataError(f"{clip.video}: its latents do not fit {dtype}; use bfloat16 or float32")
    text = dataset.texts[clip.name] if clip.embedding is None else read_embedding(clip.embedding)
    return {
        "latent": latent,
        "start": torch.from_numpy(windows[:, 0].copy()),
        "padding_mask": padding_mask.to(torch.uint8),
        "image_size": image_size,
        "t5_xxl": torch.from_numpy(text.copy()),
    }


@configurable
class LatentCacheDataset(NumberedDataset):
    """The samples of a cache: as `VideoFolderDataset`'s, with `latent` (C, t, h, w) in the cache's dtype for `video`.

    Sample numbers mean the same clips and windows as in a `VideoFolderDataset` of the same seed, `start_interval` and
    clips. The other arguments are compared with the cache.

    Args:
        cache_dir: the folder that `scripts/cache_latents.py` wrote.
        num_frames, video_size, fit, fps, sequence_interval: as in `VideoFolderDataset`. Its buckets are the cache's own.
        seed, shuffle: of the order and the windows.
        tokenizer: the run's; name, options, dtype and (where its file is there) the file's hash are compared, as far as the
            cache notes them. None: not compared.
        strict, max_bad_share: as in `VideoFolderDataset`, of cache files that are missing or damaged.

    Raises:
        DataError: no cache, or an unfinished one.
        ConfigError: a cache made with other values; the message names both.
    """

    def __init__(
        self,
        cache_dir: str | Path,
        num_frames: int,
        video_size: Sequence[int],
        fit: str = "stretch",
        fps: float | None = None,
        sequence_interval: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        tokenizer: TokenizerSource | None = None,
        strict: bool = False,
        max_bad_share: float = 0.1,
    ) -> None:
        self.cache_dir = Path(cache_dir)
        self.num_frames, self.video_size = int(num_frames), (int(video_size[0]), int(video_size[1]))
        index = read_index(self.cache_dir)
        wanted = {"format": FORMAT, "num_frames": self.num_frames, "video_size": list(self.video_size)}
        wanted |= {"fit": fit, "fps": fps, "sequence_interval": sequence_interval}
        if tokenizer is not None:
            wanted |= noted_tokenizer(index["key"], tokenizer)
        refuse_difference(index["key"], wanted, self.cache_dir, "in the configuration; set it, or make another cache")
        if index["clips"] is None:
            raise DataError(f"{self.cache_dir}: the cache is not finished; run again: {_MAKE.format(self.cache_dir)}")
        self.key, self.clips = index["key"], index["clips"]
        self.text_encoders = {self.key["text_encoder"]: self.cache_dir} if self.key["text_encoder"] else {}
        files = [self.cache_dir / "latents" / f"{clip['name']}.safetensors" for clip in self.clips]
        shapes = [tuple(clip["shape"]) for clip in self.clips]
        # A latent cannot be cut to another shape.
        bad = BadItems(self.cache_dir, files, shapes, int(seed), strict, max_bad_share, same_shape=True)
        super().__init__(bad, shuffle)

    @property
    def latent_shapes(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """{(T, H, W): (C, t, h, w)} of the samples, from the header of the first readable file of each size."""
        found: dict[tuple[int, ...], tuple[int, ...]] = {}
        for shape, path in zip(self.shapes, self.bad.files, strict=True):
            if shape not in found:
                with contextlib.suppress(SafetensorError, OSError), safe_open(str(path), framework="pt") as file:
                    found[shape] = tuple(file.get_slice("latent").get_shape()[1:])
        return found

    def load_item(self, item: int, sample_number: int, shape: tuple[int, ...]) -> dict[str, Any]:
        clip, path = self.clips[item], self.bad.files[item]
        window = clip_sampler.draw_start(clip["windows"] - 1, seed=self.seed, sample_number=sample_number)
        try:
            with safe_open(str(path), framework="pt") as file:
                latent = file.get_slice("latent")[window : window + 1][0]  # the other windows are not read
                small = {name: file.get_tensor(name) for name in ("start", "padding_mask", "image_size", "t5_xxl")}
            start = int(small["start"][window])
        except (SafetensorError, OSError, IndexError) as error:  # fewer windows than the index says: of another run
            raise DataError(f"{path}: cannot be read ({error}); run again: {_MAKE.format(self.cache_dir)}") from error
        embeddings, mask = load_text(small["t5_xxl"].numpy())
        return {
            "latent": latent,
            "t5_text_embeddings": embeddings,
            "t5_text_mask": mask,
            "fps": float(clip["fps"]),
            "num_frames": shape[0],
            "image_size": small["image_size"],
            "padding_mask": small["padding_mask"].float(),
            "video_name": {"latent_path": str(path), "start_frame_id": str(start)},
        }


def tokenizer_key(tokenizer: TokenizerSource, missing_ok: bool = False) -> dict[str, Any]:
    """Name, options and file hash; without the hash where the file is not there and `missing_ok`."""
    key = {"tokenizer": tokenizer.name, "tokenizer_options": json.loads(json.dumps(dict(tokenizer.options)))}
    key["tokenizer_dtype"] = tokenizer.dtype
    path = tokenizer.path or (tokenizer.name if "/" in tokenizer.name else "")
    if path and Path(path).exists():
        key["tokenizer_file"] = _content_hash(Path(path))
    elif path and not missing_ok:
        raise ConfigError(f"no tokenizer at {path}: give a file or a folder")
    return key


def noted_tokenizer(made: Mapping[str, Any], tokenizer: TokenizerSource) -> dict[str, Any]:
    """Return of `tokenizer_key` what `made`, the notes of a cache, says too: other tools do not note everything."""
    return {name: value for name, value in tokenizer_key(tokenizer, missing_ok=True).items() if name in made}


def _content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.name.encode() if path.is_dir() else b"")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def refuse_difference(cached: Mapping[str, Any], wanted: Mapping[str, Any], cache_dir: Path, where: str) -> None:
    """Raise ConfigError where a value of `wanted` is not that of the cache, naming both; where: whose `wanted` is."""
    differing = [name for name in wanted if cached.get(name) != wanted[name]]
    if differing:
        lines = [f"{name} is {cached.get(name)!r} in the cache, {wanted[name]!r} {where}" for name in differing]
        raise ConfigError(f"{cache_dir}: " + "\n  ".join(lines))


def read_index(cache_dir: Path) -> dict[str, Any]:
    path = cache_dir / INDEX_NAME
    if not path.is_file():
        raise DataError(f"{path}: no such file; make the cache with: {_MAKE.format(cache_dir)}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return {"key": dict(index["key"]), "clips": index["clips"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not the index of a latent cache ({error!r}); remove it and make the cache again"
        ) from error


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a cache file; empty where it is missing or damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]

"""Cached latents: the windows, samples and training loss of the pixel dataset, resume, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loguru import logger
from safetensors.torch import load_file

from cosmos_predict.config.compose import compose
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.data.latent_cache import CacheReport, LatentCacheDataset, cache_key, write_cache
from cosmos_predict.data.loader import build_dataloader
from cosmos_predict.data.video_folder import VideoFolderDataset
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.models.config import TokenizerConfig
from cosmos_predict.models.world_model import WorldModel
from cosmos_predict.text_encoders.tiny import TinyTextEncoder
from cosmos_predict.tokenizers.dct import DCTTokenizer
from tests.data.conftest import counting_frames

DCT = TokenizerConfig(name="dct", options={"channels": 16})


def pixels(folder: Path, **options: Any) -> VideoFolderDataset:
    return VideoFolderDataset(folder, **{"num_frames": 9, "video_size": (48, 64), "fit": "crop", "seed": 3, **options})


def cached(cache_dir: Path, **options: Any) -> LatentCacheDataset:
    options = {"num_frames": 9, "video_size": (48, 64), "fit": "crop", "seed": 3, "tokenizer": DCT, **options}
    return LatentCacheDataset(cache_dir, **options)


def make(dataset: VideoFolderDataset, cache_dir: Path, dtype: str = "bfloat16", **options: Any) -> CacheReport:
    encode = options.pop("encode", DCTTokenizer(16).encode)
    return write_cache(dataset, encode, cache_key(dataset, DCT, dtype), cache_dir, **options)


@pytest.mark.parametrize(
    ("options", "keys"),
    [({"start_interval": 1}, {}), ({"start_interval": 4}, {}), ({"start_interval": 2, "fps": 5.0}, {"fps": 5.0})],
)
def test_sample_numbers_mean_the_windows_of_the_pixel_dataset(
    make_folder: Callable[..., Path], tmp_path: Path, options: dict[str, Any], keys: dict[str, Any]
) -> None:
    dataset = pixels(make_folder({"a": 20, "b": 33, "c": 17}), **options)
    report = make(dataset, tmp_path / "cache", "float32", batch_size=3)
    assert (report.written, report.kept, report.failed) == (3, 0, {})
    assert report.windows == sum(len(dataset.windows(clip)) for clip in dataset.clips)
    latents, encode = cached(tmp_path / "cache", **keys), DCTTokenizer(16).encode
    for number in range(7):
        a, b = dataset[number], latents[number]
        assert a["video_name"]["start_frame_id"] == b["video_name"]["start_frame_id"]
        torch.testing.assert_close(b["latent"], encode(a["video"][None])[0], rtol=0, atol=1e-6)
        for name in ("t5_text_embeddings", "t5_text_mask", "padding_mask", "image_size", "sample_number"):
            assert torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype
        assert (a["fps"], a["num_frames"]) == (b["fps"], b["num_frames"])


@pytest.mark.parametrize(
    ("dtype", "latent_dtype"), [("float32", None), ("bfloat16", "bfloat16"), ("float16", "float16")]
)
def test_the_training_loss_is_that_of_pixels(
    make_folder: Callable[..., Path], tmp_path: Path, dtype: str, latent_dtype: str | None
) -> None:
    dataset = pixels(make_folder({"a": 20, "b": 33}), start_interval=2)
    make(dataset, tmp_path / "cache", dtype)
    config = compose(["experiment=tiny_video2world", "data=synthetic", "debug=true"])
    torch.manual_seed(0)
    with_pixels: WorldModel = instantiate(config.model)
    with_pixels.config.latent_dtype = latent_dtype
    without = WorldModel(with_pixels.config, with_pixels.net, None)
    batches = zip(build_dataloader(dataset, 2), build_dataloader(cached(tmp_path / "cache"), 2), strict=False)
    for _, (a, b) in zip(range(2), batches, strict=False):
        assert b["latent"].dtype == getattr(torch, dtype) and "video" not in b
        expected, loss = with_pixels.training_loss(a).loss, without.training_loss(b).loss
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        if latent_dtype is not None:
            with_pixels.config.latent_dtype = None
            exact = float(with_pixels.training_loss(a).loss.detach())  # so it is the rounding that counts
            assert abs(exact / float(expected.detach()) - 1) > 2e-6
            with_pixels.config.latent_dtype = latent_dtype
    other = dict(b, latent=b["latent"] + 0.5)
    assert (
        abs(float(without.training_loss(other).loss.detach()) - float(loss.detach())) > 1e-4
    )  # the comparison can fail


def test_a_cache_is_resumed(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder, cache = make_folder({"a": 9, "b": 9, "c": 9}), tmp_path / "cache"
    dataset, calls = pixels(folder), 0

    def stop_at_second(video: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return DCTTokenizer(16).encode(video)

    with pytest.raises(KeyboardInterrupt):
        make(dataset, cache, encode=stop_at_second)
    with pytest.raises(DataError, match="the cache is not finished; run again: python scripts/cache_latents.py"):
        cached(cache)
    report = make(dataset, cache)
    assert (report.written, report.kept) == (2, 1) and len(cached(cache)) == 3
    whole = (cache / "latents" / "b.safetensors").read_bytes()
    (cache / "latents" / "b.safetensors").write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"b.safetensors: cannot be read .* run again"):
        for number in range(3):
            cached(cache, strict=True)[number]
    (folder / "videos" / "c.mp4").touch()  # a changed video is encoded again
    report = make(pixels(folder), cache)
    assert (report.written, report.kept) == (2, 1)
    assert load_file(cache / "latents" / "b.safetensors")["latent"].shape == (1, 16, 3, 6, 8)
    assert sorted(path.name for path in (cache / "latents").iterdir()) == [f"{n}.safetensors" for n in "abc"]


def test_an_interrupted_change_is_not_taken_for_a_finished_cache(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder, cache = make_folder({"a": 20, "b": 20, "c": 20}), tmp_path / "cache"
    make(pixels(folder), cache)
    for name in "ab":  # fewer windows than before
        write_video(folder / "videos" / f"{name}.mp4", counting_frames(9), fps=10)
    old, calls = cached(cache, strict=True, shuffle=False), 0

    def stop_at_second(video: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return DCTTokenizer(16).encode(video)

    with pytest.raises(KeyboardInterrupt):
        make(pixels(folder), cache, encode=stop_at_second)
    with pytest.raises(DataError, match="the cache is not finished; run again: python scripts/cache_latents.py"):
        cached(cache)
    with pytest.raises(DataError, match=r"a.safetensors: cannot be read .* run again"):  # opened before that
        for number in range(0, 60, 3):
            old[number]
    report = make(pixels(folder), cache)
    assert (report.written, report.kept) == (1, 2) and [clip["windows"] for clip in cached(cache).clips] == [1, 1, 12]


def test_a_damaged_file_is_named_counted_and_replaced(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    cache, lines = tmp_path / "cache", list[str]()
    make(pixels(make_folder({"a": 9, "b": 9, "c": 9, "short": 5}), length_buckets=[5]), cache)
    whole = [cached(cache)[n] for n in range(12)]
    (cache / "latents" / "b.safetensors").write_bytes(b"nothing")
    handle = logger.add(lambda message: lines.append(str(message)), level="WARNING", format="{message}")
    try:
        dataset, again = cached(cache), cached(cache)
        samples = [dataset[n] for n in range(12)]
    finally:
        logger.remove(handle)
    assert len(lines) == 1 and "b.safetensors: replaced by another clip (1 failed so far): " in lines[0]
    for number, (good, sample) in enumerate(zip(whole, samples, strict=True)):
        before, after = (Path(one["video_name"]["latent_path"]).stem for one in (good, sample))
        assert after == before if before != "b" else after in "ac"  # of the same shape
        assert again[number]["video_name"] == sample["video_name"] and sample["latent"].shape == good["latent"].shape
    assert "b" in {Path(one["video_name"]["latent_path"]).stem for one in whole}
    (cache / "latents" / "a.safetensors").unlink()
    with pytest.raises(DataError, match=r"cache: 2 of 4 clips cannot be read, more than max_bad_share=0.1: "):
        for number in range(12):
            dataset[number]


def test_latent_frames_are_read_from_the_files(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    make(pixels(make_folder({"a": 9, "b": 9, "short": 5}), length_buckets=[5]), cache)
    (cache / "latents" / "a.safetensors").write_bytes(b"nothing")
    assert {s[0]: latent[1] for s, latent in cached(cache).latent_shapes.items()} == {9: 3, 5: 2}


def test_text_encoded_at_start_is_cached(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder({"a": 9})
    (folder / "t5_xxl" / "a.pickle").unlink()
    dataset = pixels(folder, text_encoder=TinyTextEncoder())
    assert make(dataset, tmp_path / "cache").written == 1 and make(dataset, tmp_path / "cache").kept == 1
    assert torch.equal(cached(tmp_path / "cache")[0]["t5_text_embeddings"], dataset[0]["t5_text_embeddings"])
    (folder / "metas" / "a.txt").write_text("another caption")
    assert make(pixels(folder, text_encoder=TinyTextEncoder()), tmp_path / "cache").written == 1


def test_a_clip_that_fails_is_left_out_and_named(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder({"a": 9, "b": 9})
    dataset = pixels(folder)
    (folder / "videos" / "b.mp4").write_bytes(b"nothing")
    report = make(dataset, tmp_path / "cache")
    assert "not a readable video" in report.failed[folder / "videos" / "b.mp4"]
    assert [clip["name"] for clip in cached(tmp_path / "cache").clips] == ["a"]
    with pytest.raises(DataError, match="do not fit torch.float16"):
        make(dataset, tmp_path / "huge", "float16", encode=lambda video: DCTTokenizer(16).encode(video) * 1e9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 5}, "num_frames is 9 in the cache, 5 in the configuration"),
        ({"video_size": (32, 64)}, r"video_size is \[48, 64\] in the cache, \[32, 64\] in the configuration"),
        ({"fit": "stretch"}, "fit is 'crop' in the cache, 'stretch' in the configuration"),
        ({"fps": 10}, "fps is None in the cache, 10 in the configuration"),
        ({"tokenizer": TokenizerConfig(name="wan2.1")}, "tokenizer is 'dct' in the cache, 'wan2.1' in the conf"),
        (
            {"tokenizer": TokenizerConfig("dct", "", {"channels": 8})},
            r"\{'channels': 16\} in the cache, \{'channels': 8\}",
        ),
    ],
)
def test_a_cache_of_other_values_is_refused(
    make_folder: Callable[..., Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    make(pixels(make_folder({"a": 9})), tmp_path / "cache")
    with pytest.raises(ConfigError, match=message):
        cached(tmp_path / "cache", **options)


def test_bad_caches_are_named(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    dataset, cache = pixels(make_folder({"a": 9})), tmp_path / "cache"
    with pytest.raises(DataError, match="cache/index.json: no such file; make the cache with"):
        cached(cache)
    with pytest.raises(ConfigError, match="unknown cache dtype 'int8'"):
        cache_key(dataset, DCT, "int8")
    with pytest.raises(ConfigError, match="no tokenizer at /nowhere/tokenizer.pth"):
        cache_key(dataset, TokenizerConfig("wan2.1", "/nowhere/tokenizer.pth"), "bfloat16")
    make(dataset, cache)
    with pytest.raises(ConfigError, match="dtype is 'bfloat16' in the cache, 'float32' in this run; choose another"):
        make(dataset, cache, "float32")
    weights = tmp_path / "tokenizer.pth"
    weights.write_bytes(b"one")
    one = cache_key(dataset, TokenizerConfig("wan2.1", str(weights)), "bfloat16")
    weights.write_bytes(b"two")
    assert cache_key(dataset, TokenizerConfig("wan2.1", str(weights)), "bfloat16") != one
    (cache / "index.json").write_text(json.dumps([]))
    with pytest.raises(DataError, match="not the index of a latent cache"):
        cached(cache)

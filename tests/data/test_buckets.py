"""Buckets and mixed datasets: one shape per micro-batch, nothing lost or repeated, the whole state one integer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cosmos_predict.config.compose import compose
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.data import loader
from cosmos_predict.data.image_folder import ImageFolderDataset
from cosmos_predict.data.latent_cache import LatentCacheDataset, cache_key, write_cache
from cosmos_predict.data.loader import BatchPlan, batch_decides_order, build_dataloader, item_index
from cosmos_predict.data.mixed import MixedDataset
from cosmos_predict.data.transforms import RESOLUTION_BUCKETS, aspect_sizes
from cosmos_predict.data.video_folder import VideoFolderDataset
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import ConfigError
from cosmos_predict.io.embeddings import write_embedding
from cosmos_predict.models.config import TokenizerConfig
from cosmos_predict.models.fit_data import check_data
from cosmos_predict.tokenizers.dct import DCTTokenizer
from tests.data.conftest import counting_frames

# (height, width, frames) of clips: landscape, portrait and square ones, long and short.
CLIPS = {f"wide{k}": (48, 64, 20) for k in range(4)} | {f"tall{k}": (64, 48, 20) for k in range(3)}
CLIPS |= {f"short{k}": (48, 64, 7) for k in range(2)} | {"square": (48, 48, 12), "tiny": (48, 64, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("buckets")
    for name, (height, width, count) in CLIPS.items():
        write_video(folder / "videos" / f"{name}.mp4", counting_frames(count, height, width), fps=10)
        write_embedding(folder / "t5_xxl" / f"{name}.pickle", np.ones((2, 1024), np.float16))
    (folder / "images").mkdir()
    for number in range(3):
        Image.fromarray(counting_frames(3)[number]).save(folder / "images" / f"p{number}.png")
        write_embedding(folder / "t5_xxl" / f"p{number}.pickle", np.ones((2, 1024), np.float16))
    return folder


def bucketed(folder: Path, **options: Any) -> VideoFolderDataset:
    options = {"num_frames": 9, "video_size": (48, 64), "fit": "crop", "aspect_buckets": True, **options}
    return VideoFolderDataset(folder, length_buckets=[5, 17], **options)


def names(batch: dict[str, Any]) -> list[str]:
    return [Path(path).stem for path in batch["video_name"]["video_path"]]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_plan_loses_and_repeats_nothing(size: int, shuffle: bool) -> None:
    labels = [0] * 11 + [1] * 6 + [2] * 2 + [3]
    plan, read, batches = BatchPlan(labels, seed=5, shuffle=shuffle), Counter[int](), {}
    for batch in range(len(labels) * size):  # `size` * `size` epochs, so that every bucket comes out even
        items = batches[batch] = plan.items(range(batch * size, (batch + 1) * size))
        assert len({labels[item] for item in items}) == 1
        read.update(items)
        for label in range(4):  # no item of a bucket is ever ahead of another by more than one
            counts = [read[item] for item in range(len(labels)) if labels[item] == label]
            assert max(counts) - min(counts) <= 1
    assert set(read.values()) == {size * size}
    assert batches == {b: plan.items(range(b * size, (b + 1) * size)) for b in reversed(range(len(batches)))}
    if shuffle:
        assert [labels[batches[b][0]] for b in range(len(batches))] != sorted(labels[batches[b][0]] for b in batches)


def test_an_epoch_reads_a_bucket_within_one_batch_of_its_size() -> None:
    labels, size = [0] * 10 + [1] * 7, 4
    plan = BatchPlan(labels, seed=0)
    ends = [sum((e + 1) * n // size for n in (10, 7)) for e in range(6)]  # micro-batches up to the end of epoch e
    for epoch, end in enumerate(ends):
        read = Counter(labels[i] for b in range(end) for i in plan.items(range(b * size, (b + 1) * size)))
        assert all((epoch + 1) * n - size < read[label] <= (epoch + 1) * n for label, n in ((0, 10), (1, 7)))


def test_one_bucket_is_the_plain_order_and_far_numbers_are_quick() -> None:
    plan = BatchPlan(["x"] * 5, seed=3)
    assert plan.items(range(7, 11)) == [item_index(n, 5, 3) for n in range(7, 11)]
    far = BatchPlan([0, 0, 1], seed=3)
    assert len(far.items(range(2**40 + 1, 2**40 + 4))) == 3


def test_the_orders_of_many_buckets_are_kept_while_they_are_read_in_turn() -> None:
    loader._epoch_order.cache_clear()
    for _ in range(3):
        for items in range(10, 110):
            item_index(0, items, seed=1)
    assert loader._epoch_order.cache_info().misses == 100


def test_published_and_derived_sizes() -> None:
    assert aspect_sizes((704, 1280)) == [(h, w) for w, h in RESOLUTION_BUCKETS["720"].values()]
    assert (432, 768) in aspect_sizes((768, 432)) and (480, 480) in aspect_sizes((768, 432))
    derived = aspect_sizes((96, 128))
    assert derived[0] == (96, 128) and len(derived) == 5
    assert all(h % 16 == w % 16 == 0 and 0.7 < h * w / (96 * 128) < 1.4 for h, w in derived)


def test_clips_go_to_their_nearest_bucket(folder: Path) -> None:
    dataset = bucketed(folder)
    shapes = {clip.name: clip.shape for clip in dataset.clips}
    assert shapes["wide0"] == (9, 48, 64) and shapes["tall0"] == (9, 64, 48) and shapes["square"] == (9, 48, 48)
    assert shapes["short0"] == (5, 48, 64) and "tiny" not in shapes
    assert "clip too short: 3 frames, a window of 5 needs 5" in dict(dataset.report.skipped)["tiny.mp4"]
    sample = next(s for s in (dataset[n] for n in range(40)) if "tall" in s["video_name"]["video_path"])
    assert sample["video"].shape == (3, 9, 64, 48) and sample["num_frames"] == 9
    assert sample["image_size"].tolist() == [64, 48, 64, 48] and sample["padding_mask"].shape == (1, 64, 48)


def test_ranks_workers_and_resumes_read_the_same_batches(folder: Path) -> None:
    dataset = bucketed(folder, seed=4)

    def batches(count: int, **options: Any) -> list[tuple[list[str], tuple[int, ...], list[int]]]:
        loader = iter(build_dataloader(dataset, 2, **options))
        found = [next(loader) for _ in range(count)]
        return [(names(b), tuple(b["video"].shape), b["sample_number"].tolist()) for b in found]

    whole = batches(8)
    assert len({shape for _, shape, _ in whole}) >= 3
    assert batches(3) + batches(5, start_sample=6) == whole
    assert batches(8, num_workers=2) == whole
    ranks = [batches(4, rank=rank, world=2) for rank in range(2)]
    assert [batch for step in zip(*ranks, strict=True) for batch in step] == whole


def test_a_bad_clip_is_replaced_by_one_of_the_batch_s_shape(folder: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "data"
    shutil.copytree(folder, broken)
    dataset = bucketed(broken, max_bad_share=0.3)
    for name in ("square", "short0"):
        (broken / "videos" / f"{name}.mp4").write_bytes(b"nothing")
    whole, seen = bucketed(folder, max_bad_share=0.3), Counter[str]()
    for number in range(0, 40, 2):
        good, other = (next(iter(build_dataloader(d, 2, start_sample=number))) for d in (whole, dataset))
        assert good["video"].shape == other["video"].shape
        for name, replacement in zip(names(good), names(other), strict=True):
            seen[name] += name != replacement
            assert replacement not in ("square", "short0") and (name == replacement) == (
                name not in ("square", "short0")
            )
    assert seen["square"] and seen["short0"]


def test_a_cache_keeps_the_buckets(folder: Path, tmp_path: Path) -> None:
    pixels, encode = bucketed(folder, seed=2, start_interval=3), DCTTokenizer(16).encode
    source = TokenizerConfig(name="dct", options={"channels": 16})
    write_cache(pixels, encode, cache_key(pixels, source, "float32"), tmp_path, batch_size=2)
    cached = LatentCacheDataset(tmp_path, 9, (48, 64), fit="crop", seed=2, tokenizer=source)
    loaders = [iter(build_dataloader(dataset, 2)) for dataset in (pixels, cached)]
    shapes = set()
    for _ in range(8):
        a, b = (next(loader) for loader in loaders)
        torch.testing.assert_close(encode(a["video"]), b["latent"], rtol=0, atol=1e-5)
        assert torch.equal(a["num_frames"], b["num_frames"]) and torch.equal(a["image_size"], b["image_size"])
        shapes.add(tuple(b["latent"].shape))
    assert len(shapes) >= 3


@pytest.fixture
def mixed(folder: Path) -> MixedDataset:
    images = ImageFolderDataset(folder, (48, 64), fit="crop")
    videos = VideoFolderDataset(folder, 5, (48, 64), fit="crop")
    return MixedDataset({"videos": videos, "images": images}, {"videos": 3, "images": 1}, 5, (48, 64))


def test_images_and_videos_alternate_at_their_ratio(mixed: MixedDataset) -> None:
    def frames(count: int, **options: Any) -> list[tuple[int, list[int], tuple[str, ...]]]:
        loader = iter(build_dataloader(mixed, 2, **options))
        found = [next(loader) for _ in range(count)]
        return [(b["video"].shape[2], b["sample_number"].tolist(), tuple(names(b))) for b in found]

    whole = frames(12)
    assert Counter(count for count, _, _ in whole) == {5: 9, 1: 3}
    assert all(Counter(c for c, _, _ in whole[k : k + 4]) == {5: 3, 1: 1} for k in range(9))
    assert [number for _, numbers, _ in whole for number in numbers] == list(range(24))
    read = Counter(name for count, _, batch in whole for name in batch if count == 1)
    assert read == {"p0": 2, "p1": 2, "p2": 2}  # two epochs of the images
    assert frames(5) + frames(7, start_sample=10, num_workers=2) == whole
    ranks = [frames(6, rank=rank, world=2) for rank in range(2)]
    assert [batch for step in zip(*ranks, strict=True) for batch in step] == whole


def test_images_train_as_images_and_videos_as_videos(mixed: MixedDataset) -> None:
    config = compose(["experiment=tiny_video2world", "data=images_and_videos", "debug=true"])
    assert config.dataloader_train is not None and config.dataloader_train.dataset.parts.videos.num_frames == 5
    model = instantiate(config.model)
    check_data(model, mixed)
    assert batch_decides_order(mixed) and not batch_decides_order(mixed.parts["images"])
    kinds = []
    for _, batch in zip(range(4), build_dataloader(mixed, 2), strict=False):
        kinds.append(model.prepare(batch)[1].data_type)
        assert torch.isfinite(model.training_loss(batch).loss)
    assert Counter(kinds) == {"video": 3, "image": 1}


def test_bad_ratios_are_named(mixed: MixedDataset) -> None:
    for ratio in ({"videos": 1}, {"videos": 0, "images": 0}, {"videos": 0.5, "images": 1}, {"videos": -1, "images": 2}):
        with pytest.raises(ConfigError, match="must name the parts videos, images, each with a whole number"):
            MixedDataset(mixed.parts, ratio)  # type: ignore[arg-type]
    assert list(MixedDataset(mixed.parts, {"videos": 2, "images": 0}).parts) == ["videos"]

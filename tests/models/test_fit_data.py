"""What does not fit a run is told before its first step: buckets and ranks, base checkpoints, batch sizes of a resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cosmos_predict.config.compose import compose
from cosmos_predict.data.convert_cache import convert_cache
from cosmos_predict.data.latent_cache import cache_key, write_cache
from cosmos_predict.data.video_folder import VideoFolderDataset
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.embeddings import write_embedding
from cosmos_predict.models.config import TokenizerConfig
from cosmos_predict.parallel.mesh import MeshSizes
from cosmos_predict.tokenizers.dct import DCTTokenizer
from cosmos_predict.training.trainer import Trainer
from tests.data.conftest import counting_frames
from tests.training.tiny_run import run

BASE = ["experiment=tiny_video2world", "debug=true"]
SIZES = ["dataloader_train.dataset.num_frames=13", "dataloader_train.dataset.video_size=[48,64]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clips with room for 13 frames (4 latent frames), two with room for 9 (3)."""
    for name, count in {"a": 16, "b": 16, "short": 10, "shorter": 10}.items():
        write_video(tmp_path / "data" / "videos" / f"{name}.mp4", counting_frames(count), fps=10)
        write_embedding(tmp_path / "data" / "t5_xxl" / f"{name}.pickle", np.ones((2, 1024), np.float16))
    return tmp_path / "data"


def build(context: int, *overrides: str) -> Trainer:
    """Build a run whose samples `context` ranks share: what does not fit is told before any rank is asked for anything."""
    trainer = Trainer(compose([*BASE, *SIZES, *overrides], report=[]), device="cpu")
    trainer.sizes = MeshSizes(1, 1, context)
    trainer.build()
    return trainer


@pytest.mark.parametrize("buckets", ["length_buckets=[9]", "length_buckets=[9,5]"])
def test_a_bucket_that_context_ranks_cannot_share_is_refused(folder: Path, buckets: str) -> None:
    data = ["data=video_folder", f"dataloader_train.dataset.dataset_dir={folder}"]
    with pytest.raises(
        ConfigError, match=r"samples of 9 frames .*: context_parallel_size=2 must divide the 3 latent fr"
    ):
        build(2, *data, f"dataloader_train.dataset.{buckets}")
    with pytest.raises(ConfigError, match="context_parallel_size=3 must divide the 4 latent frames"):
        build(3, *data)


def test_so_is_one_of_cached_latents(folder: Path, tmp_path: Path) -> None:
    source = TokenizerConfig(name="dct", options={"channels": 16})
    pixels = VideoFolderDataset(folder, 13, (48, 64), fit="crop", length_buckets=[9])
    write_cache(pixels, DCTTokenizer(16).encode, cache_key(pixels, source, "float32"), tmp_path / "cache")
    cache = f"dataloader_train.dataset.cache_dir={tmp_path / 'cache'}"
    with pytest.raises(
        ConfigError, match=r"samples of 9 frames .*: context_parallel_size=2 must divide the 3 latent fr"
    ):
        build(2, "data=latent_cache", cache, "model.with_tokenizer=false")


@pytest.mark.parametrize("kind", ["latent_cache", "nemo_cache"])
def test_latents_that_patches_do_not_divide(kind: str, folder: Path, tmp_path: Path) -> None:
    pixels = VideoFolderDataset(folder, 13, (40, 64), fit="crop")
    source = TokenizerConfig(name="dct", options={"channels": 16})
    write_cache(pixels, DCTTokenizer(16).encode, cache_key(pixels, source, "float32"), tmp_path / "latent_cache")
    convert_cache(tmp_path / "latent_cache", tmp_path / "nemo_cache")
    sizes = ["num_frames=13", "video_size=[40,64]"]
    where = [f"dataloader_train.dataset.{text}" for text in sizes]
    with pytest.raises(ConfigError, match=r"of 5 x 8 \(h x w\), of frames of 40 x 64: .* patches .* multiples of 16"):
        build(1, f"data={kind}", f"data.path={tmp_path / kind}", "model.with_tokenizer=false", *where)


def test_a_base_of_another_size_is_refused_with_both(tmp_path: Path) -> None:
    base = run(tmp_path / "base", "trainer.max_iter=1")
    wider = ["model.config.pipe_config.net.model_channels=256", f"checkpoint.load_path={base.folder.root}"]
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path / "wider", *wider)
    message, width = str(caught.value), base.model.net.config.model_channels
    assert str(base.folder.root) in message and width != 256
    assert f"({width}, {width})" in message and "(256, 256)" in message, message


def test_another_batch_size_is_refused_where_it_decides_the_order(folder: Path, tmp_path: Path) -> None:
    def start(root: str, updates: int, size: int, *more: str) -> None:
        data = ["data=video_folder", f"dataloader_train.dataset.dataset_dir={folder}", *SIZES, *more]
        batch = [f"dataloader_train.batch_size={size}", "trainer.global_batch_size=2"]
        run(tmp_path / root, *data, *batch, "dataloader_train.num_workers=0", f"trainer.max_iter={updates}")

    buckets = "dataloader_train.dataset.length_buckets=[9]"
    start("buckets", 1, 2, buckets)
    with pytest.raises(
        CheckpointError, match=r"trained with batch size 2, this run has 1: .*set dataloader_train.batch_s"
    ):
        start("buckets", 2, 1, buckets)
    start("buckets", 2, 2, buckets)
    start("plain", 1, 2)
    start("plain", 2, 1)

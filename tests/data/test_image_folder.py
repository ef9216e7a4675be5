"""The image folder dataset on small real images, and text that is encoded when a dataset is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cosmos_predict.config.compose import compose
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.data.captions import load_text
from cosmos_predict.data.image_folder import ImageFolderDataset
from cosmos_predict.data.loader import build_dataloader
from cosmos_predict.data.transforms import fit_frames
from cosmos_predict.data.video_folder import VideoFolderDataset
from cosmos_predict.errors import DataError
from cosmos_predict.io.embeddings import write_embedding
from cosmos_predict.text_encoders.tiny import TinyTextEncoder
from tests.data.conftest import counting_frames


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images of 64 x 48 with captions, without embeddings."""
    folder = tmp_path / "pictures"
    (folder / "images").mkdir(parents=True)
    (folder / "metas").mkdir()
    for number, frame in enumerate(counting_frames(4)):
        Image.fromarray(frame).save(folder / "images" / f"p{number}.png")
        (folder / "metas" / f"p{number}.txt").write_text(f"picture {number}")
    return folder


def test_a_sample_is_a_clip_of_one_frame(images: Path) -> None:
    for number in range(4):
        write_embedding(images / "t5_xxl" / f"p{number}.pickle", np.full((2, 1024), number, np.float16))
    dataset = ImageFolderDataset(images, (32, 32), fit="crop", shuffle=False)
    sample = dataset[6]  # the second epoch's third
    frame = torch.from_numpy(counting_frames(4)[2:3]).permute(0, 3, 1, 2)
    assert torch.equal(sample["video"], fit_frames(frame, (32, 32), "crop").frames.permute(1, 0, 2, 3))
    assert sample["video"].shape == (3, 1, 32, 32) and sample["fps"] == 16.0 and sample["num_frames"] == 1
    assert (sample["t5_text_embeddings"][:2] == 2).all() and int(sample["t5_text_mask"].sum()) == 2
    batch = next(iter(build_dataloader(dataset, 3)))
    assert batch["video"].shape == (3, 3, 1, 32, 32)


def test_bad_images_are_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text embeddings; make them with"):
        ImageFolderDataset(images, (32, 32))
    (images / "images" / "p1.png").write_bytes(b"nothing")
    dataset = ImageFolderDataset(images, (32, 32), text_encoder=TinyTextEncoder())
    assert len(dataset) == 3 and "not a readable image" in dict(dataset.report.skipped)["p1.png"]
    with pytest.raises(DataError, match="num_frames=5: an image dataset has samples of 1 frame"):
        ImageFolderDataset(images, (32, 32), num_frames=5)
    with pytest.raises(DataError, match=r"nowhere/images: no such folder; a dataset is DIR/images/\*.jpg"):
        ImageFolderDataset(tmp_path / "nowhere", (32, 32))


def test_text_is_encoded_where_files_are_missing(make_folder: Callable[..., Path]) -> None:
    folder, encoder = make_folder({"a": 9, "b": 9, "c": 9}), TinyTextEncoder()
    (folder / "t5_xxl" / "a.pickle").unlink()
    (folder / "t5_xxl" / "c.pickle").unlink()
    (folder / "metas" / "c.txt").write_text(" ")
    dataset = VideoFolderDataset(folder, 9, (24, 32), shuffle=False, text_encoder=encoder)
    assert [clip.name for clip in dataset.clips] == ["a", "b"]
    assert "the caption is empty" in dict(dataset.report.skipped)["c.mp4"]
    embeddings, mask = encoder.encode(["clip a"])
    torch.testing.assert_close(dataset[0]["t5_text_embeddings"], embeddings[0].half().float())
    assert torch.equal(dataset[0]["t5_text_mask"], mask[0].long())
    assert dataset[0]["video_name"]["t5_embedding_path"] == ""
    assert torch.equal(dataset[1]["t5_text_embeddings"], load_text(folder / "t5_xxl" / "b.pickle")[0])

    (folder / "t5_xxl.json").write_text('{"text_encoder": "t5"}')
    with pytest.raises(DataError, match="made by the text encoder 't5', the dataset's text_encoder is 'tiny'"):
        VideoFolderDataset(folder, 9, (24, 32), text_encoder=encoder)


def test_the_encoder_is_built_only_for_captions_without_embedding(make_folder: Callable[..., Path]) -> None:
    """`text=t5` costs nothing where all embeddings are there: no weights are looked for."""
    folder = make_folder({"a": 9, "b": 9})
    config = compose(["experiment=tiny_video2world", "debug=true", "data=video_folder", "text=t5"])
    assert config.dataloader_train is not None
    data = config.dataloader_train.dataset
    data.dataset_dir, data.num_frames, data.text_encoder.name_or_path = str(folder), 9, "/nowhere/t5"
    assert len(instantiate(data)) == 2
    (folder / "t5_xxl" / "a.pickle").unlink()
    with pytest.raises(FileNotFoundError, match="/nowhere/t5"):
        instantiate(data)
    data.text_encoder.name_or_path = "tiny"
    embeddings, _ = TinyTextEncoder().encode(["clip a"])
    assert torch.equal(torch.from_numpy(instantiate(data).texts["a"]), embeddings[0][: len("clip a") + 1].half())


def test_a_configuration_builds_it(images: Path) -> None:
    overrides = ["experiment=tiny_video2world", "data=image_folder", f"dataloader_train.dataset.dataset_dir={images}"]
    config = compose(["text=tiny", *overrides])
    assert config.dataloader_train is not None
    dataset = instantiate(config.dataloader_train.dataset)
    assert isinstance(dataset, ImageFolderDataset) and dataset[0]["video"].shape == (3, 1, 96, 128)

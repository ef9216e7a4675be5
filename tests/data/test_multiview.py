"""Clips of several cameras: order of the views, ids, text of each, splits, what is unusable and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmos_predict.data import probe_index, video_folder
from cosmos_predict.data.multiview import MultiviewDataset
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import DataError
from cosmos_predict.io.embeddings import write_embedding
from tests.data.conftest import counting_frames, frame_numbers
from tests.data.test_captions import run

CAMERAS = ("left", "front")


def make_views(folder: Path, names: str = "abcde", frames: int = 12) -> Path:
    """Clips of both cameras, the left one's mirrored in brightness: frame k of 30 is its frame 30 - k."""
    for name in names:
        write_video(folder / "videos" / "front" / f"{name}.mp4", counting_frames(frames), fps=10, quality=9)
        mirrored = counting_frames(31)[::-1][:frames]
        write_video(folder / "videos" / "left" / f"{name}.mp4", mirrored, fps=10, quality=9)
        for number, camera in enumerate(CAMERAS):
            write_embedding(folder / "t5_xxl" / camera / f"{name}.pkl", np.full((3 + number, 1024), 1.0 + number))
    return folder


def open_views(folder: Path, **options: Any) -> MultiviewDataset:
    return MultiviewDataset(folder, **{"num_frames": 5, "video_size": (24, 32), "camera_keys": CAMERAS, **options})


def test_views_are_joined_along_time(tmp_path: Path) -> None:
    folder = make_views(tmp_path)
    dataset = open_views(folder, camera_to_view_id={"front": 0, "left": 4}, seed=1)
    for number in range(6):
        sample = dataset[number]
        start = int(sample["video_name"]["start_frame_id"])
        ids = list(range(start, start + 5))
        assert frame_numbers(sample["video"].permute(1, 2, 3, 0).numpy()) == [30 - i for i in ids] + ids
    assert sample["num_frames"] == 5 and sample["sample_n_views"] == 2
    assert sample["view_indices"].tolist() == [4] * 5 + [0] * 5
    assert sample["latent_view_indices_B_T"].tolist() == [4, 4, 0, 0]
    text, mask = sample["t5_text_embeddings"], sample["t5_text_mask"]
    assert text.shape == (1024, 1024) and [int(mask[:512].sum()), int(mask[512:].sum())] == [3, 4]
    assert text[0, 0] == 1 and text[512, 0] == 2 and not text[3:512].any()
    assert open_views(folder, state_t=1)[0]["latent_view_indices_B_T"].tolist() == [0, 1]


def test_only_the_front_view_has_a_caption(tmp_path: Path) -> None:
    folder = make_views(tmp_path)
    front = {"front_camera_key": "front", "front_view_caption_only": True}
    sample = open_views(folder, **front)[0]
    assert not sample["t5_text_embeddings"][:512].any() and sample["t5_text_mask"][:512].all()  # as published
    assert sample["t5_text_mask"][512:].sum() == 4
    with pytest.raises(
        DataError, match=r"cache: no prefix_t5_embeddings_left.pickle, prefix_t5_embeddings_front.pickle"
    ):
        open_views(folder, prefix=True)
    write_embedding(folder / "cache" / "prefix_left.pkl", np.full((2, 1024), 7.0))
    write_embedding(folder / "cache" / "prefix_t5_embeddings_front.pickle", np.full((6, 1024), 8.0))
    sample = open_views(folder, prefix=True, **front)[0]
    assert [int(sample["t5_text_mask"][:512].sum()), int(sample["t5_text_mask"][512:].sum())] == [2, 6 + 4]
    assert sample["t5_text_embeddings"][[511 + 1, 512 + 5, 512 + 6], 0].tolist() == [8, 8, 2]


def test_splits(tmp_path: Path) -> None:
    folder = make_views(tmp_path)
    names = {split: [clip.name for clip in open_views(folder, split=split).clips] for split in ("train", "val", "all")}
    assert names == {"train": list("abcd"), "val": ["e"], "all": list("abcde")}
    one = make_views(tmp_path / "one", "a")
    assert [len(open_views(one, split=split)) for split in ("train", "val")] == [1, 1]


def test_unusable_views_are_named(tmp_path: Path) -> None:
    folder = make_views(tmp_path, "abcdefgh")
    (folder / "videos" / "left" / "a.mp4").unlink()
    (folder / "t5_xxl" / "left" / "b.pkl").unlink()
    write_video(folder / "videos" / "left" / "c.mp4", counting_frames(4), fps=10)
    write_video(folder / "videos" / "front" / "d.mp4", counting_frames(12), fps=20)
    dataset = open_views(folder, split="all", max_bad_share=0.5)
    reasons = dict(dataset.report.skipped)
    assert [clip.name for clip in dataset.clips] == list("efgh")
    assert reasons["front/a.mp4"] == "no videos/left/a.mp4"
    assert reasons["left/b.mp4"].startswith("no t5_xxl/left/b.*: python scripts/get_t5_embeddings.py --dataset_path")
    assert reasons["left/c.mp4"] == "clip too short: 4 frames, a window of 5 needs 5"
    assert reasons["left/d.mp4"] == "the views' frames per second differ: 10, 20"
    with pytest.raises(DataError, match=r"camera_keys=\('rear',\) must name one camera or more, each with an id in"):
        open_views(folder, camera_keys=("rear",), camera_to_view_id={"front": 0})
    with pytest.raises(DataError, match=r"no videos of rear; expected videos/CAMERA/NAME.mp4"):
        open_views(folder, camera_keys=("rear",))


def test_captions_of_views_are_embedded_in_their_folders(tmp_path: Path) -> None:
    for camera in CAMERAS:
        (tmp_path / "metas" / camera).mkdir(parents=True)
        (tmp_path / "metas" / camera / "a.1.txt").write_text(camera)
    done = run("get_t5_embeddings.py", "--dataset_path", str(tmp_path), "--text_encoder", "tiny")
    assert done.returncode == 0 and "2 written" in done.stdout
    assert sorted(str(p.relative_to(tmp_path / "t5_xxl")) for p in (tmp_path / "t5_xxl").rglob("*.pickle")) == [
        "front/a.1.pickle",
        "left/a.1.pickle",
    ]


def test_the_index_of_a_folder_knows_every_split_and_every_camera(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_views(tmp_path)
    monkeypatch.setattr(probe_index, "INDEX_FROM", 1)
    for split in ("train", "val"):
        open_views(folder, split=split)
    with monkeypatch.context() as closed:
        closed.setattr(video_folder.video_reader, "probe", lambda path: pytest.fail(f"{path} was opened again"))
        assert [len(open_views(folder, split=split)) for split in ("train", "val")] == [4, 1]
    write_video(folder / "videos" / "front" / "a.mp4", counting_frames(7), fps=10)  # the first view stays
    assert open_views(folder).clips[0].info.frames == 7

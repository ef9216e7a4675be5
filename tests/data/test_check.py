"""The check of a dataset: what it holds, what is unusable and why, what it fits; every layout, nothing changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cosmos_predict.data.check import Report, check
from cosmos_predict.data.nemo_cache import write_sample, write_settings
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import DataError
from cosmos_predict.io.embeddings import write_embedding
from cosmos_predict.text_encoders.tiny import TinyTextEncoder
from tests.data.conftest import counting_frames
from tests.data.test_bad_input import make_clip
from tests.data.test_bridge import embed, make_bridge
from tests.data.test_captions import run
from tests.data.test_latent_cache import make, pixels
from tests.data.test_multiview import make_views

Folder = Callable[..., Path]


def tree(folder: Path) -> dict[Path, Any]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def one(folder: Path, **options: Any) -> Report:
    before = tree(folder)
    (report,) = check(folder, **options)
    assert tree(folder) == before
    return report


def test_a_folder_of_clips(make_folder: Folder) -> None:
    folder = make_folder({"a": 20, "b": 33, "copy": 20, "short": 7, "torn": 20, "blind": 21, "mute": 22})
    shutil.copyfile(folder / "videos" / "a.mp4", folder / "videos" / "copy.mp4")
    make_clip(folder / "videos" / "torn.mp4", "truncated", folder / "videos" / "a.mp4")
    (folder / "t5_xxl" / "blind.pickle").unlink()
    (folder / "metas" / "mute.txt").unlink()
    np.save(folder / "t5_xxl" / "odd.npy", np.ones((3, 7)))
    report = one(folder, num_frames=9)
    assert report.layout == "videos" and report.text_encoders == []
    lengths = {"a.mp4": 20, "b.mp4": 33, "copy.mp4": 20, "mute.mp4": 22}
    assert report.samples == {name: (frames, 48, 64, 10.0) for name, frames in lengths.items()}
    assert report.unusable["short.mp4"] == "clip too short: 7 frames, a window of 9 needs 9"
    assert "truncated: its index reaches" in report.unusable["torn.mp4"]
    assert report.unusable["blind.mp4"] == f"no embedding: python scripts/get_t5_embeddings.py --dataset_path {folder}"
    assert (report.captions, report.embeddings) == (6, 6) and report.duplicates == [["a.mp4", "copy.mp4"]]
    fits = {name: fit for fit in report.experiments for name in fit.experiments}
    assert (fits["tiny_video2world"].clips, fits["tiny_video2world"].enlarged) == (4, 4)  # 17 frames of 96 x 128
    assert fits["video2world_7b_example_cosmos_nemo_assets_4gpu_40gb"].clips == 1  # 25 frames
    assert fits["predict2_video2world_training_2b_video2world_data"].clips == 0  # 93
    assert "short.mp4" in one(folder).samples

    done = run("check_dataset", str(folder), "--num_frames", "9")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and lines[1] == "usable 4 of 7, 0.003 hours"
    assert "frames 20 to 33, median 22, 95 in all" in lines and "size (HxW) 48x64 (4)" in lines
    assert "captions 6" in lines and "embeddings 6" in lines and "the same a.mp4 = copy.mp4" in lines
    assert any(line.startswith("unusable torn.mp4: ") for line in lines)
    assert any(line.startswith("fits 17 frames of 96x128 4 of 7 (4 enlarged): tiny_video2world") for line in lines)
    (again,) = json.loads(run("check_dataset", str(folder), "--num_frames", "9", "--json").stdout)
    assert again["unusable"] == report.unusable and again["duplicates"] == report.duplicates


def test_damage_behind_the_window_is_found_by_reading_every_frame(make_folder: Folder) -> None:
    folder = make_folder({"a": 20, "b": 20, "c": 20})
    make_clip(folder / "videos" / "c.mp4", "corrupt", folder / "videos" / "a.mp4")
    assert "c.mp4" in one(folder, num_frames=1).samples  # its frame 7 was drawn; the first half is whole
    report = one(folder, num_frames=1, every_frame=True)
    assert list(report.samples) == ["a.mp4", "b.mp4"] and "damaged" in report.unusable["c.mp4"]


def test_text_of_another_encoder_does_not_fit(make_folder: Folder) -> None:
    folder = make_folder({"a": 20})
    shutil.rmtree(folder / "t5_xxl")
    assert list(one(folder).unusable) == ["a.mp4"]
    assert run("get_t5_embeddings", "--dataset_path", str(folder), "--text_encoder", "tiny").returncode == 0
    report = one(folder)
    fits = {name: fit for fit in report.experiments for name in fit.experiments}
    assert report.text_encoders == ["tiny"] and not report.unusable and fits["tiny_video2world"].clips == 1
    other = fits["video2world_7b_example_cosmos_nemo_assets_4gpu_40gb"]
    assert other.clips == 0 and other.reason == "text of tiny, not t5"
    assert run("check_dataset", str(folder)).returncode == 0


def test_images_and_parts(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number, frame in enumerate(counting_frames(3)):
            (tmp_path / part / "images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(tmp_path / part / "images" / f"{number}.png")
            write_embedding(tmp_path / part / "t5_xxl" / f"{number}.pickle", np.ones((2, 1024), np.float16))
    (tmp_path / "val" / "images" / "2.png").write_bytes(b"nothing")
    train, val = check(tmp_path)
    assert train.layout == val.layout == "images" and (len(train.samples), len(val.samples)) == (3, 2)
    assert train.samples["0.png"] == (1, 48, 64, 16.0) and "not a readable image" in val.unusable["2.png"]
    (fit,) = train.experiments
    assert (fit.clips, fit.enlarged) == (
        3,
        3,
    ) and "predict2_text2image_training_2b_cosmos_nemo_assets" in fit.experiments
    assert run("check_dataset", str(tmp_path / "train")).returncode == 0


def test_bridge_and_views(tmp_path: Path) -> None:
    folder = make_bridge(tmp_path / "bridge", {"1": (60, "lift"), "2": (20, "drop")})
    embed(folder)
    report = one(folder)
    assert report.layout == "Bridge, train" and len(report.samples) == 2 and report.text_encoders == ["tiny"]
    (fit,) = report.experiments
    assert fit.experiments == ["video2world_instruction_bridge_57frames"] and fit.reason
    (folder / "annotation" / "train.json").unlink()  # nobody knows whose embeddings they are
    assert one(folder).experiments[0].clips == 1
    views = make_views(tmp_path / "views")
    (views / "videos" / "left" / "b.mp4").unlink()
    report = one(views)
    assert report.layout == "2 views" and list(report.unusable.items()) == [("front/b.mp4", "no videos/left/b.mp4")]
    assert len(report.samples) == 4 and report.embeddings == 5


def test_caches(make_folder: Folder, tmp_path: Path) -> None:
    dataset = pixels(make_folder({"a": 20, "b": 33}), text_encoder=None)
    make(dataset, tmp_path / "cache")
    report = one(tmp_path / "cache")
    assert report.layout == "latent cache" and list(report.samples) == ["a.safetensors", "b.safetensors"]
    assert report.samples["a.safetensors"] == (9, 48, 64, 10.0)
    path = tmp_path / "cache" / "latents" / "b.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    assert "cannot be read" in one(tmp_path / "cache").unusable["b.safetensors"]

    nemo, info = tmp_path / "nemo", {"fps": 10.0, "num_frames": 9, "height": 48, "width": 64}
    nemo.mkdir()
    text = TinyTextEncoder().encode(["a"])[0][0, :2]
    for number in range(3):
        latent = torch.full((16, 2, 6, 8), float("nan") if number == 1 else number, dtype=torch.bfloat16)
        write_sample(nemo, str(number), [latent], text, info)
    (nemo / "2.info.json").unlink()
    report = one(nemo)
    assert report.layout == "Cosmos-1.0 latents" and list(report.samples) == ["0.video_latent.pth"]
    assert report.samples["0.video_latent.pth"] == (9, 48, 64, 10.0)
    assert report.unusable["2.*"] == "incomplete: no info.json" and "NaN" in report.unusable["1.video_latent.pth"]
    assert {fit.clips for fit in report.experiments} == {0} and not any(fit.reason for fit in report.experiments)
    write_settings(nemo, {"tokenizer": "dct"}, finished=True)
    assert {fit.reason for fit in one(nemo).experiments} == {"latents of dct, not cosmos_cv8x8x8"}


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no dataset in it; known are videos/ or images/"):
        check(tmp_path)
    assert run("check_dataset", str(tmp_path / "nowhere")).returncode == 2
    write_video(tmp_path / "videos" / "a.mp4", counting_frames(5), fps=10)
    report = one(tmp_path)
    assert not report.samples and "no usable clip" in report.unusable[tmp_path.name]
    assert run("check_dataset", str(tmp_path)).returncode == 1
    (tmp_path / "instructions").mkdir()
    with pytest.raises(
        DataError, match=r"not yet a dataset; .* scripts/prepare_instruction_dataset.py --dataset_path "
    ):
        check(tmp_path)

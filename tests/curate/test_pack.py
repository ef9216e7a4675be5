"""`shard`: the published tar layout, sorted into bins, reproducible."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cosmos_predict.curate.pack import bin_of, pack
from cosmos_predict.curate.records import DATASET
from cosmos_predict.curate.storage import Store
from cosmos_predict.data.video_reader import write_video
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.embeddings import read_embedding, write_embedding
from cosmos_predict.io.unpickle import load_pickle
from tests.curate.footage import FPS, film, make_set
from tests.curate.running import run_command, run_split, tree


@pytest.mark.slow
def test_tars_hold_every_kept_clip(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    make_set(source, 2)
    write_video(source / "short.mp4", film([110], seed=5), FPS)  # 4.6 s
    (source / "short.txt").write_text("Short.")
    flags = ["--transnetv2-crop-s", "0", "--captioning-window-size", "64", "--captioning-remainder-threshold", "50"]
    run_split(source, output, *flags)
    with pytest.raises(DataError, match=r"no clip has a text embedding; make them with: .*curate\.py embed"):
        pack(Store(output), Store(tmp_path / "tars"), 500, 100, 1)
    names = [path.stem for path in (output / DATASET / "videos").iterdir()]
    for number, name in enumerate(sorted(names)):
        write_embedding(output / DATASET / "t5_xxl" / f"{name}.pickle", np.full((3, 1024), number, np.float16))
    counts = pack(Store(output), Store(tmp_path / "tars"), 500, 100, 1)
    assert counts["packed"] == 5 and counts["shorter than 5 s, or of an odd shape"] == 1
    root = tmp_path / "tars" / "v0" / "resolution_lt_720" / "aspect_ratio_16_9" / "duration_5_10"
    about = json.loads((root / "wdinfo.json").read_text())
    assert about["data_keys"] == ["video", "t5_xxl", "metas"]
    assert about["total_key_count"] == 5 and about["data_list"] == ["part_000000/000000.tar"]
    listed = (tmp_path / "tars" / "wdinfo_list.csv").read_text().split()
    assert [tmp_path / "tars" / line for line in listed] == [root / "wdinfo.json"]
    packed = {}
    for key, suffix in (("video", "mp4"), ("metas", "json"), ("t5_xxl", "pickle")):
        with tarfile.open(root / key / "part_000000" / "000000.tar") as tar:
            packed[key] = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
        assert all(name.endswith(f".{suffix}") for name in packed[key])
    for name, data in packed["video"].items():
        uuid = name.removesuffix(".mp4")
        assert data == (output / "clips" / name).read_bytes()
        assert packed["metas"][f"{uuid}.json"] == (output / "metas" / "v0" / f"{uuid}.json").read_bytes()
        file = tmp_path / "one.pickle"
        file.write_bytes(packed["t5_xxl"][f"{uuid}.pickle"])
        windows = json.loads(packed["metas"][f"{uuid}.json"])["windows"]
        assert len(load_pickle(file)) == len(windows) >= 2
        for number, window in enumerate(windows):
            path = output / DATASET / "t5_xxl" / f"{uuid}_{window['start_frame']}_{window['end_frame']}.pickle"
            assert (read_embedding(file, window=number) == read_embedding(path)).all()
    with pytest.raises(ConfigError, match="tars: not empty; shard needs an empty folder"):
        pack(Store(output), Store(tmp_path / "tars"), 500, 100, 1)
    pack(Store(output), Store(tmp_path / "small"), 1e-6, 2, 1)  # a tar for each clip
    parts = sorted(
        path.relative_to(tmp_path / "small").as_posix() for path in (tmp_path / "small").rglob("video/**/*.tar")
    )
    assert [place[-22:] for place in parts] == [f"part_{n // 2:06d}/{n % 2:06d}.tar" for n in range(5)]
    pack(Store(output), Store(tmp_path / "again"), 500, 100, 1)
    same, first = tree(tmp_path / "again"), tree(tmp_path / "tars")
    assert {place: mark for place, mark in same.items() if place.endswith(".tar")} == {
        place: mark for place, mark in first.items() if place.endswith(".tar")
    }
    counts = pack(Store(output), Store(tmp_path / "none"), 500, 100, 6)
    assert counts["packed"] == 0 and counts["in tars that are too small"] == 5


@pytest.mark.parametrize(
    ("size", "folder"),
    [
        ((1920, 1080, 10.0), "resolution_1080/aspect_ratio_16_9/duration_5_10"),
        ((1280, 720, 10.1), "resolution_720/aspect_ratio_16_9/duration_10_30"),
        ((720, 1280, 31.0), "resolution_720/aspect_ratio_9_16/duration_30_inf"),
        ((640, 480, 5.0), "resolution_lt_720/aspect_ratio_4_3/duration_5_10"),
        ((600, 800, 5.0), "resolution_lt_720/aspect_ratio_3_4/duration_5_10"),
        ((512, 512, 30.0), "resolution_lt_720/aspect_ratio_1_1/duration_10_30"),
        ((640, 480, 4.99), None),
        ((1100, 100, 9.0), None),
    ],
)
def test_bins(size: tuple[int, int, float], folder: str | None) -> None:
    assert bin_of(*size) == folder


def test_commands_name_a_folder_without_records(tmp_path: Path) -> None:
    for words in (["filter"], ["dedup"], ["caption"]):
        status, _, err = run_command(*words, str(tmp_path / "none"))
        assert status == 2 and "no video there that curate.py split has done" in err, err

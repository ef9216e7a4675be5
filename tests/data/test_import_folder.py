"""Videos into the dataset layout: captions, sizes, names that clash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cosmos_predict.data.import_folder import import_videos
from cosmos_predict.data.video_reader import probe, write_video
from cosmos_predict.errors import DataError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    write_video(folder / "arm_1.mp4", np.full((6, 96, 128, 3), 90, np.uint8), 10)
    return folder


def test_a_smaller_size_replaces_larger_copies_and_keeps_captions(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "dataset"
    assert import_videos(source, target) == [("arm_1", "A video of arm 1.")]
    copy = target / "videos" / "arm_1.mp4"
    assert (probe(copy).height, probe(copy).width) == (96, 128)
    (target / "metas" / "arm_1.txt").write_text("The arm waits.\n")
    assert import_videos(source, target, short_side=48) == [("arm_1", "The arm waits.")]
    made = probe(copy)
    assert (made.height, made.width, made.frames) == (48, 64, 6)
    before = copy.stat().st_mtime_ns
    import_videos(source, target, short_side=48)
    assert copy.stat().st_mtime_ns == before  # and is kept
    original = probe(source / "arm_1.mp4")
    assert (original.height, original.width) == (96, 128)  # the source is never written


def test_two_files_of_one_name_are_refused(source: Path, tmp_path: Path) -> None:
    (source / "arm_1.mkv").write_bytes((source / "arm_1.mp4").read_bytes())
    with pytest.raises(DataError, match=r"arm_1\.mkv and arm_1\.mp4 would share a caption: rename one of the two"):
        import_videos(source, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


def test_videos_in_subfolders_are_not_searched_and_it_says_so(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no video files in .* its subfolders are not searched"):
        import_videos(source.parent, tmp_path / "dataset")

"""Shot detection on footage with known cuts."""

from pathlib import Path

import numpy as np
import pytest

from cosmos_predict.curate.media import small_frames
from cosmos_predict.curate.shots import content_transitions
from cosmos_predict.curate.spans import scenes
from cosmos_predict.data.video_reader import write_video
from tests.curate.footage import FPS, film, make_set, shot


def test_hard_cuts_within_one_frame(tmp_path: Path) -> None:
    for name, lengths in make_set(tmp_path).items():
        found = scenes(content_transitions(small_frames(tmp_path / name)))
        cuts = np.cumsum(lengths)[:-1]
        assert len(found) == len(lengths), (name, found, cuts)
        for (_, end), (start, _), cut in zip(found, found[1:], cuts, strict=False):
            if "film_7" in name and cut == cuts[0]:  # a fade: the shot ends where it is black
                assert cut - 12 <= end <= cut <= start <= cut + 1
            else:
                assert abs(end - cut) <= 1 and abs(start - cut) <= 1, (name, found, cuts)


def test_motion_and_noise_are_no_cut(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-20, 20, (80, 96, 160, 3))
    still = np.clip(shot(5, 80, moving=False) + noise, 0, 255).astype(np.uint8)
    fast = np.stack([np.roll(shot(6, 1, moving=False)[0], 9 * step, axis=1) for step in range(80)])
    for frames in (still, fast):
        write_video(tmp_path / "in.mp4", frames, FPS)
        assert not content_transitions(small_frames(tmp_path / "in.mp4")).any()


@pytest.mark.parametrize("chunk", [1, 7, 100, 1000])
def test_chunks_do_not_matter(chunk: int) -> None:
    frames = film([40, 30, 50], seed=4)[:, ::4, ::4]
    chunks = [frames[start : start + chunk] for start in range(0, len(frames), chunk)]
    np.testing.assert_array_equal(content_transitions(chunks), content_transitions([frames]))


def test_edges() -> None:
    assert len(content_transitions([])) == 0
    assert content_transitions([np.zeros((5, 27, 48, 3), np.uint8)]).all()  # black
    assert content_transitions([np.full((1, 27, 48, 3), 99, np.uint8)]).tolist() == [False]

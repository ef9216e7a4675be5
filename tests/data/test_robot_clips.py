"""The clips that ship with the repository: readable, small, captioned, and what the script draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from cosmos_predict.data.video_reader import probe, read_frames, read_image

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets" / "robot_arm"
SCRIPT = ROOT / "scripts" / "make_robot_clips.py"


def test_shipped_clips_are_what_the_script_draws() -> None:
    spec = importlib.util.spec_from_file_location("make_robot_clips", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, spec.name, module)
        spec.loader.exec_module(module)
    assert sorted(path.stem for path in (ASSETS / "videos").iterdir()) == sorted(scene.name for scene in module.SCENES)
    for scene in module.SCENES:
        path = ASSETS / "videos" / f"{scene.name}.mp4"
        info = probe(path)
        assert (info.frames, info.fps, info.width, info.height) == (scene.frames, 16, 192, 128)
        assert path.stat().st_size < 60_000
        assert (ASSETS / "metas" / f"{scene.name}.txt").read_text().strip() == scene.caption
    scene = module.SCENES[0]
    drawn = module.render(scene)
    assert np.array_equal(read_image(ASSETS / "first_frame.png"), drawn[0])
    shipped = read_frames(ASSETS / "videos" / f"{scene.name}.mp4", range(scene.frames))
    assert np.abs(shipped.astype(int) - drawn).mean() < 4
    # Something moves between any two frames a second apart.
    assert all(np.abs(drawn[k + 16].astype(int) - drawn[k]).max() > 50 for k in range(0, scene.frames - 16, 8))

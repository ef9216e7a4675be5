"""The generation benchmark: what it writes, and when; and what was measured of the quickstart."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cosmos_predict.evaluation.report import summarise

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results"
TINY = ("--width", "64", "--blocks", "1", "--steps", "3", "--threads", str(torch.get_num_threads()))


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_a_clip_by_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Overhead is all but the DiT; a run that is broken off leaves the clips that it made; a new one takes its place."""
    bench = module("bench_generate")
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    config_of = bench.tiny
    monkeypatch.setattr(bench, "tiny", lambda args: (config_of(args)[0], 5, (32, 48)))
    clips, made, steps = 1, [], []

    def one_clip(model: Any, clock: Any, clip: Any, settings: Any, folder: Path) -> dict[str, float]:
        if len(made) > clips:  # the first warms up
            raise KeyboardInterrupt
        steps.append(settings.num_steps)
        made.append(whole(model, clock, clip, settings, folder))
        return made[-1]

    whole = bench.one_clip
    monkeypatch.setattr(bench, "one_clip", one_clip)
    monkeypatch.setattr(sys, "argv", ["bench_generate.py", *TINY])
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    (run,) = json.loads((tmp_path / "bench_generate_cpu.json").read_text())["runs"]
    assert run["rows"] == made[1:] and len(made) == 2 and steps == [2, 3]
    clips, made[:] = 3, []
    bench.main()
    content = json.loads((tmp_path / "bench_generate_cpu.json").read_text())
    (run,) = content["runs"]
    assert run["rows"] == made[1:] and len(made) == 4 and content["text"] == "the tiny encoder, not T5-11B"
    assert "text (tiny encoder)" in capsys.readouterr().out
    for row in run["rows"]:
        assert row["overhead"] == pytest.approx(1 - row["dit"] / row["total"])
        assert sum(row[stage] for stage in (*bench.STAGES, "other")) == pytest.approx(row["total"])
        assert 0 < row["overhead_outside_models"] < row["overhead"] < 1


def test_what_was_measured_of_generation() -> None:
    for file in RESULTS.glob("bench_generate_*.json"):
        for run in json.loads(file.read_text())["runs"]:
            for row in run["rows"]:
                assert row["overhead"] == pytest.approx((row["total"] - row["dit"]) / row["total"])
            if run["setting"]["preset"] == "tiny" and run["medians"]["seconds_per_forward"] >= 0.5:
                assert run["medians"]["overhead"] <= 0.10, file


def test_what_is_kept_of_a_quickstart(tmp_path: Path) -> None:
    per_clip = {"this": [30.0, 31.0], "base": [28.0, 30.0], "copy_last_frame": [27.0, 26.0], "tokenizer": [36.0, 37.0]}
    scores = {name: {"psnr": [np.array([value, value]) for value in values]} for name, values in per_clip.items()}
    evaluation = {**summarise(scores), "clips": ["a", "b"], "settings": {"num_steps": 12}}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    last = "5. comparison with the real held-out clips"
    lines = [
        (0.5, "== 1. clips -> folder"),
        (0.7, "... 9 clips"),
        (2.0, "== 3. post-training of assets/base.safetensors"),
    ]
    lines += [(9.0, "tiny: loss 2.000 -> 1.000 over 9 iterations"), (10.0, f"== {last}"), (12.5, "== end")]
    kept = module("bench_quickstart").record(tmp_path, lines)
    assert kept["seconds"] == 12.5 and kept["compared"] == "held-out clips" and kept["clips"] == 2
    steps = {"1. clips": 1.5, "3. post-training of assets/base.safetensors": 8.0, last: 2.5}
    assert kept["seconds_by_step"] == steps
    assert kept["loss"] == "loss 2.000 -> 1.000 over 9 iterations" and kept["num_steps"] == 12
    assert kept["methods"]["tokenizer"]["psnr"].keys() == {"mean", "interval"}
    assert kept["differences"] == evaluation["differences"] and kept["differences"]["base"]["psnr"]["mean"] == 1.5


@pytest.mark.skipif(
    not (RESULTS / "quickstart_cpu.json").is_file(), reason="benchmarks/bench_quickstart.py has not been run"
)
def test_what_was_measured_of_the_quickstart() -> None:
    """The goals: on held-out clips better than copying and than the base by more than the paired interval, in six minutes."""
    measured = json.loads((RESULTS / "quickstart_cpu.json").read_text())
    assert measured["clips"] >= 16 and measured["seconds"] <= 360 and measured["compared"] == "held-out clips"
    for other in ("copy_last_frame", "base"):
        gain = measured["differences"][other]["psnr"]
        assert gain["mean"] > gain["interval"] > 0, other
    assert measured["methods"]["tokenizer"]["psnr"]["mean"] > measured["methods"]["this"]["psnr"]["mean"]

"""A run that is done says how to go on."""

from __future__ import annotations

from pathlib import Path

from loguru import logger

from tests.training.tiny_run import run


def test_a_finished_run_says_how_to_go_on(tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_iter=1")
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    run(tmp_path, "trainer.max_iter=1")
    logger.remove(sink)
    wanted = "already at iteration 1: nothing to do up to trainer.max_iter=1; to go on: trainer.max_iter=N with N > 1"
    assert any(wanted in line for line in lines), lines

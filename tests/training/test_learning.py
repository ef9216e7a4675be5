"""A run learns what only the captions tell, and neither shuffled captions nor a frozen network seem to.

Held-out error at a noise level that hides the clip, after 400 updates, for three seeds of weights and draws: 0.028, 0.026
and 0.027 of the initial error with the captions, 0.303, 0.286 and 0.307 of it with shuffled ones. The least that any
prediction without text can have is 0.26 of it. Each run takes about 20 seconds of one core.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.learning_program import CAPTIONS, STEPS

REPOSITORY = Path(__file__).parents[2]
KINDS = ("real", "shuffled", "frozen")


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Held-out error of each kind of run by iteration, and the least without text; all run at once, a thread each."""
    program = [sys.executable, "-m", "tests.training.learning_program"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = tmp_path_factory.mktemp("learning")
    runs = {
        kind: subprocess.Popen([*program, kind, str(root)], cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, text=True)
        for kind in KINDS
    }
    try:
        outputs = {kind: run.communicate(timeout=1200)[0] for kind, run in runs.items()}
    finally:
        for run in runs.values():
            run.kill()
    assert [run.returncode for run in runs.values()] == [0, 0, 0]
    return {
        kind: {name: float(value) for name, value in (line.split() for line in output.splitlines())}
        for kind, output in outputs.items()
    }


@pytest.mark.slow
def test_captions_teach_motion(errors: dict[str, dict[str, float]]) -> None:
    """After 400 updates of 8 clips: an eighth of the initial error, half of what any prediction without text must have."""
    start, end, blind = (errors["real"][key] for key in ("0", str(STEPS), "blind"))
    assert end <= 0.125 * start
    assert end <= 0.5 * blind


@pytest.mark.slow
def test_shuffled_captions_teach_no_motion(errors: dict[str, dict[str, float]]) -> None:
    """It learns all the rest, so its error falls too, but not below what a prediction without text must have."""
    start, end, blind = (errors["shuffled"][key] for key in ("0", str(STEPS), "blind"))
    assert blind <= end
    assert 0.25 * start <= end <= 0.6 * start


@pytest.mark.slow
def test_a_frozen_network_learns_nothing(errors: dict[str, dict[str, float]]) -> None:
    values = [value for name, value in errors["frozen"].items() if name != "blind"]
    assert len(values) == 5 and set(values) == {errors["real"]["0"]}


def test_captions_differ() -> None:
    """To the tiny encoder too, whose text is what the runs are given."""
    from cosmos_predict.text_encoders.tiny import TinyTextEncoder

    means = [embedding.mean(0) for embedding in TinyTextEncoder().encode(CAPTIONS)[0]]
    assert len(set(CAPTIONS)) == 4
    for number, mean in enumerate(means):
        assert all(float((mean - other).norm() / mean.norm()) > 0.05 for other in means[:number])

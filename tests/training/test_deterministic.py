"""`trainer.deterministic`: which kernels may run while a run lasts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cosmos_predict.config.compose import compose
from cosmos_predict.errors import ConfigError
from cosmos_predict.training.trainer import Trainer
from tests.training.tiny_run import BASE, run


def test_the_switch_holds_for_the_run_and_changes_nothing_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen: list[bool] = []
    plain_step = Trainer.step
    monkeypatch.setattr(
        Trainer,
        "step",
        lambda self, batches: (seen.append(torch.are_deterministic_algorithms_enabled()), plain_step(self, batches))[1],
    )
    plain = run(tmp_path / "plain", "trainer.max_iter=2")
    switched = run(tmp_path / "switched", "trainer.max_iter=2", "trainer.deterministic=true")
    assert seen == [False, False, True, True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert all(torch.equal(value, plain.weights()[name]) for name, value in switched.weights().items())


def test_a_backend_that_does_not_repeat_is_refused(tmp_path: Path) -> None:
    config = compose(
        [
            *BASE,
            "trainer.deterministic=true",
            "model.config.pipe_config.net.attention_backend=flash_attn_2",
        ],
        report=[],
    )
    with pytest.raises(ConfigError, match="deterministic=True, but attention_backend='flash_attn_2' .* use .*=sdpa"):
        Trainer(config, device="cpu")

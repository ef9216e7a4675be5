"""Debug runs of the tiny experiment, in a folder of the test."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cosmos_predict.config.compose import compose
from cosmos_predict.training.trainer import Trainer

BASE = ["experiment=tiny_video2world", "data=synthetic", "debug=true", "trainer.logging_iter=1"]


def run(root: Path, *overrides: str) -> Trainer:
    """Train, and return the trainer after its end."""
    before = os.environ.get("OUTPUT_ROOT")
    os.environ["OUTPUT_ROOT"] = str(root)
    try:
        config = compose([*BASE, *overrides], report=[])
        config.validate()
        config.freeze()
        trainer = Trainer(config, device="cpu")
        trainer.train()
    finally:
        os.environ.pop("OUTPUT_ROOT")
        if before is not None:
            os.environ["OUTPUT_ROOT"] = before
    return trainer


def metrics(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the lines of the run's metrics.jsonl."""
    return [json.loads(line) for line in (trainer.folder.root / "metrics.jsonl").read_text().splitlines()]

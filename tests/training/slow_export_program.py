"""One rank of a run whose export takes longer than a collective may: `python -m tests.training.slow_export_program`."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from cosmos_predict.config.compose import compose
from cosmos_predict.parallel.distributed import distributed_program
from cosmos_predict.training import saving
from cosmos_predict.training.trainer import Trainer
from tests.training.tiny_run import BASE

LONGEST = 8.0  # seconds that a collective may take


def main() -> None:
    export = saving.export_checkpoint

    def slow_export(*arguments: Any) -> None:
        time.sleep(1.5 * LONGEST)
        export(*arguments)

    saving.export_checkpoint = slow_export
    with distributed_program("gloo", timedelta(seconds=LONGEST)) as ranks:
        config = compose([*BASE, "trainer.max_iter=1"], report=[])
        config.freeze()
        Trainer(config, ranks, device="cpu").train()


if __name__ == "__main__":
    main()

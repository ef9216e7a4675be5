"""Run a module as several real processes, one per rank, the way torchrun does, without its start-up time."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

REPOSITORY = Path(__file__).resolve().parents[2]


def run_ranks(
    module: str, *arguments: str, ranks: int, host_store: bool = True, timeout: float = 300
) -> list[subprocess.CompletedProcess[str]]:
    """Run `python -m module *arguments` once per rank; return the finished processes in rank order.

    `host_store=True` keeps the meeting point in this process, as torchrun's agent does; False leaves it to rank 0, as
    under Slurm. Raises subprocess.TimeoutExpired, with all processes ended, when they take longer than `timeout`
    seconds.
    """
    # A port that this process already holds cannot be taken by another program between choosing and using it.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout))
    port = store.port
    if not host_store:
        del store
    env = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": str(host_store),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [
        subprocess.CompletedProcess(p.args, p.returncode, *output) for p, output in zip(processes, outputs, strict=True)
    ]


def check(processes: list[subprocess.CompletedProcess[str]]) -> None:
    """Fail with what the ranks printed unless every one ended with status 0."""
    for rank, process in enumerate(processes):
        if process.returncode != 0:
            raise RuntimeError(
                f"rank {rank} ended with status {process.returncode}:\n{process.stdout}\n{process.stderr}"
            )

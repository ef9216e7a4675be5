"""Two torchrun agents that meet over c10d, as on two nodes: one side dies, the other ends, the same commands go on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.parallel.ranks import REPOSITORY
from tests.parallel.training_runs import BASE, assert_identical, folder_of, train

STEPS = 80
ENDS_WITHIN = 60.0  # seconds, on a busy machine; alone it takes two


def nodes(root: Path, port: int) -> list[subprocess.Popen[str]]:
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_id=7"]
    agent += ["--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{port}", "-m", "train", "--", *BASE]
    return [
        subprocess.Popen(
            [*agent, f"trainer.max_iter={STEPS}", "checkpoint.save_iter=5"],
            cwd=REPOSITORY,
            env={**os.environ, "OUTPUT_ROOT": str(root), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=(root / f"node{number}").open("w"),
            text=True,
        )
        for number in range(2)
    ]


def kill_node(agent: int) -> None:
    """Kill an agent and all that it started, which are process groups of their own."""

    def family(pid: int) -> list[int]:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *(one for child in children for one in family(int(child)))]

    for pid in family(agent):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_node_dies_and_the_run_goes_on(tmp_path: Path) -> None:
    """First one node is killed, then, in the run that resumes, the other; whichever held the meeting point."""
    folder, newest = folder_of(tmp_path), 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for killed in (1, 0):
        agents = nodes(tmp_path, port)
        try:
            deadline = time.monotonic() + 120
            while (folder.newest() or 0) < newest + 10:
                assert time.monotonic() < deadline and agents[1].poll() is None, (tmp_path / "node1").read_text()
                time.sleep(0.02)
            kill_node(agents[killed].pid)
            survivor, log = agents[1 - killed], tmp_path / f"node{1 - killed}"
            started = time.monotonic()
            assert survivor.wait(ENDS_WITHIN) == 1
            print(f"the other node ended after {time.monotonic() - started:.1f} s")
        finally:
            for agent in agents:
                agent.kill()
        newest = folder.newest() or 0
        said = [line for line in log.read_text().splitlines() if line.startswith("error: ") or "ends because" in line]
        assert len(said) == 1, log.read_text()
        lost = "another process of the run ended or cannot be reached" in said[0]
        assert (lost and f"newest complete iteration is {newest}, the same command resumes it" in said[0]) or (
            "ends because the store of the first rank is gone" in said[0]
        )
        assert 10 <= newest < STEPS
    last = nodes(tmp_path, port)
    assert [agent.wait(180) for agent in last] == [0, 0], (tmp_path / "node0").read_text()
    assert "resumed" in (tmp_path / "node0").read_text() + (tmp_path / "node1").read_text()
    assert_identical(folder, train(tmp_path / "unbroken", 2, steps=STEPS))

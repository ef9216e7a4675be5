"""Ranks from the launcher's variables, and the one ending of every distributed program, with real processes."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from cosmos_predict.errors import ConfigError
from cosmos_predict.parallel.distributed import Ranks, finish_distributed, first_node, read_ranks, register_closer
from tests.parallel.ranks import REPOSITORY, check, run_ranks

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "12341"}
SLURM = {
    "SLURM_PROCID": "9",
    "SLURM_NTASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[007-008]",
    "SLURM_JOB_ID": "40123",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9",
}


def test_ranks_come_from_torchrun_then_slurm_then_nobody() -> None:
    assert read_ranks(TORCHRUN) == Ranks(3, 8, 1, "10.0.0.1", 12341, "torchrun")
    assert read_ranks(SLURM) == Ranks(9, 16, 1, "gpu007", 12123, "slurm")
    assert read_ranks({**SLURM, **TORCHRUN}).launcher == "torchrun"
    assert read_ranks({"HOME": "/"}) == Ranks()


def test_slurm_meeting_point() -> None:
    without_nodes = {name: value for name, value in SLURM.items() if name != "SLURM_JOB_NODELIST"}
    assert read_ranks(without_nodes).master_addr == "10.0.0.9"
    chosen = read_ranks({**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "4000"})
    assert (chosen.master_addr, chosen.master_port) == ("head", 4000)


def test_a_shell_inside_a_slurm_allocation_is_one_process() -> None:
    assert read_ranks({**SLURM, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}).world_size == 1


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu1", "gpu1"), ("gpu[003-006,010],login1", "gpu003"), ("a-1,a-2", "a-1"), ("r[0-1]n[4,6]-ib,x", "r0n4-ib")],
)
def test_first_node(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "MASTER_ADDR or MASTER_PORT is not: start with torchrun"),
        ({**TORCHRUN, "WORLD_SIZE": ""}, "WORLD_SIZE='' is not a number; torchrun sets RANK, WORLD_SIZE, LOCAL_RANK"),
        ({**TORCHRUN, "RANK": "8"}, "RANK=8 must be less than WORLD_SIZE=8"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}, "set MASTER_ADDR to the first node"),
        ({**SLURM, "SLURM_JOB_NODELIST": "[1-2"}, "Slurm node list '\\[1-2'; set MASTER_ADDR"),
    ],
)
def test_bad_variables_are_named(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_ranks(env)


def test_single_process_closes_last_first_and_exits(capsys: pytest.CaptureFixture[str]) -> None:
    closed: list[str] = []
    register_closer("first", lambda: closed.append("first"))
    register_closer("broken", lambda: 1 / 0)
    register_closer("last", lambda: closed.append("last"))
    with pytest.raises(SystemExit) as leave:
        finish_distributed(0)
    assert leave.value.code == 1 and closed == ["last", "first"]
    assert "closing broken failed" in capsys.readouterr().err
    with pytest.raises(SystemExit) as leave:
        finish_distributed(0)
    assert leave.value.code == 0 and closed == ["last", "first"], "a closer is called once"


def test_program_that_succeeds_closes_joins_and_exits_0() -> None:
    processes = run_ranks("tests.parallel.ending_program", "ok", ranks=2, host_store=False)
    check(processes)
    for process in processes:  # the thread may be done before or after the closers
        assert sorted(process.stdout.splitlines()) == ["closed log", "sum 1", "written"]


def test_closer_that_raises_on_one_rank_fails_both() -> None:
    first, last = run_ranks("tests.parallel.ending_program", "closer_raises", ranks=2)
    assert (first.returncode, last.returncode) == (1, 1)
    assert "closing broken writer failed" in last.stderr and "ZeroDivisionError" in last.stderr
    assert "closed log" in first.stdout and "closed log" in last.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "store"), [("last_raises", True), ("first_raises", True), ("first_raises", False), ("first_killed", False)]
)
def test_failing_rank_ends_the_hanging_one(mode: str, store: bool) -> None:
    started = time.monotonic()
    processes = run_ranks("tests.parallel.ending_program", mode, ranks=2, host_store=store)
    assert all(process.returncode != 0 for process in processes)
    assert time.monotonic() - started < 60
    failed, other = reversed(processes) if mode == "last_raises" else processes
    assert "ends because" in other.stderr and "closed log" in other.stdout
    assert mode == "first_killed" or "ValueError: a bad sample" in failed.stderr


@pytest.mark.slow
def test_exit_status_of_the_program_is_kept() -> None:
    assert [process.returncode for process in run_ranks("tests.parallel.ending_program", "all_exit_3", ranks=2)] == [
        3,
        3,
    ]


def torchrun(mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    return subprocess.Popen(
        [*command, "tests.parallel.ending_program", mode],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_thirty_two_process_programs_end_thirty_times_with_status_0() -> None:
    for _ in range(15):  # two at a time
        pair = [torchrun("ok"), torchrun("ok")]
        outputs = [program.communicate(timeout=300)[0] for program in pair]
        assert [program.returncode for program in pair] == [0, 0], "\n".join(outputs)
        assert all(output.count("sum 1") == output.count("written") == 2 for output in outputs)


@pytest.mark.slow
def test_failing_rank_fails_the_torchrun_program() -> None:
    started = time.monotonic()
    program = torchrun("last_raises")
    output = program.communicate(timeout=300)[0]
    assert program.returncode != 0 and "a bad sample on the last rank" in output
    assert time.monotonic() - started < 90

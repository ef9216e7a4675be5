"""What happens to a run that ends early: kill -9 at any moment, Ctrl-C, a full disk. Real processes, real signals."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.errors import ConfigError
from tests.training.kill_program import iterations_logged, saving
from tests.training.test_trainer import state_at_newest
from tests.training.tiny_run import BASE

REPOSITORY = Path(__file__).parents[2]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
# A network of 2.6 M parameters: its state takes 42 MB.
LARGER = ["model.config.pipe_config.net.num_blocks=8"]


def folder_of(root: Path) -> RunFolder:
    return RunFolder(root / "cosmos_predict" / "tiny" / "tiny_video2world_debug")


def start(
    root: Path, *overrides: str, before: Callable[[], object] | None = None, group: bool = False
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "train", "--", *BASE, *overrides],
        cwd=REPOSITORY,
        env={**ENV, "OUTPUT_ROOT": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=before,
        start_new_session=group,
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run did not get there in time"
        time.sleep(0.005)


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    output = process.communicate(timeout=120)[0]
    assert process.returncode == status, output
    return output


# ---- kill -9 -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "overrides"),
    [
        pytest.param(1, ["dataloader_train.num_workers=2"], id="fp32-two-workers"),
        pytest.param(2, ["optimizer=adamw_bf16", "optimizer.moments=fp32"], id="bf16-stochastic"),
        pytest.param(3, ["optimizer=adamw8bit"], id="8bit-moments"),
    ],
)
def test_ten_kills_change_no_bit(tmp_path: Path, seed: int, overrides: Sequence[str]) -> None:
    """Weights, EMA, optimizer, random generators, published files and metrics of a run killed in and between saves."""
    command = [sys.executable, "-m", "tests.training.kill_program", str(tmp_path), str(seed), *overrides]
    done = subprocess.run(command, cwd=REPOSITORY, env=ENV, capture_output=True, text=True, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_command_itself_is_killed_and_goes_on(tmp_path: Path) -> None:
    options = ["trainer.max_iter=24", "checkpoint.save_iter=4"]
    finish(start(tmp_path / "whole", *options))
    folder, draw = folder_of(tmp_path / "killed"), random.Random(4)
    for kill in range(2):
        process = start(tmp_path / "killed", *options)
        wait_for(lambda n=8 * kill + 5: max(iterations_logged(folder), default=0) >= n, process)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.communicate()
    output = finish(start(tmp_path / "killed", *options))
    assert "resumed" in output and iterations_logged(folder) == list(range(1, 25))
    killed, whole = state_at_newest(folder), state_at_newest(folder_of(tmp_path / "whole"))
    assert killed.keys() == whole.keys() and not [name for name in whole if not killed[name].equal(whole[name])]


def test_what_a_killed_save_leaves_is_dropped_by_the_next_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for left in (".config.yaml.ab12.tmp", "checkpoints/model/.iter_000000500.pt.x9.tmp"):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / "half").write_bytes(b"x" * 1000)
    assert saving(folder)
    folder.acquire()
    assert not list(tmp_path.rglob("half")) and not saving(folder)


def test_the_lock_of_a_killed_process_is_free_though_its_child_lives(tmp_path: Path) -> None:
    """As that of a run whose workers have not seen yet that it is gone; the end of a child leaves it alone."""
    program = (
        "import os, sys, time\n"
        "from cosmos_predict.checkpoint.run_folder import RunFolder\n"
        "folder = RunFolder(sys.argv[1])\n"
        "folder.acquire()\n"
        "if os.fork():\n"
        "    if not (short := os.fork()):\n"
        "        os._exit(0)\n"
        "    os.waitpid(short, 0)\n"
        "    print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=ENV, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="is held by a run that is still alive"):
            RunFolder(tmp_path).acquire()
        process.kill()
        process.wait()
        RunFolder(tmp_path).acquire()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


# ---- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_saves_and_leaves_with_130(tmp_path: Path) -> None:
    process, folder = start(tmp_path, "trainer.max_iter=100000", "dataloader_train.num_workers=1"), folder_of(tmp_path)
    wait_for(lambda: len(iterations_logged(folder)) >= 3, process)
    process.send_signal(signal.SIGINT)
    output = finish(process, 130)
    newest = folder.newest()
    assert newest is not None and iterations_logged(folder)[-1] == newest and folder.exports(newest)["both"].exists()
    assert "Ctrl-C: saving after this update, then leaving; a second one leaves at once" in output
    assert f"SIGINT: saved iteration {newest} and stopping; the same command resumes it" in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_is_the_runs_alone(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """Slurm signals every process of a job, and a terminal the group: the workers read on until the run ends."""
    options = ["trainer.max_iter=100000", "dataloader_train.num_workers=2"]
    process, folder = start(tmp_path, *options, group=True), folder_of(tmp_path)
    wait_for(lambda: len(iterations_logged(folder)) >= 3, process)
    os.killpg(process.pid, number)
    output = finish(process, status)
    newest = folder.newest()
    assert newest is not None and iterations_logged(folder)[-1] == newest and folder.exports(newest)["both"].exists()
    assert output.count(f"{number.name}: saved iteration {newest} and stopping") == 1
    assert output.count("Ctrl-C: saving after this update") == (number == signal.SIGINT), output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    """The update takes minutes: waiting for its end would show."""
    slow = ["trainer.grad_accum_iter=100000", "trainer.max_iter=10"]
    process, folder = start(tmp_path, *slow), folder_of(tmp_path)
    wait_for(lambda: (folder.root / "config.yaml").exists(), process)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)  # a launcher passes the first one on: this is no second
    time.sleep(1.5)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    output = finish(process, 130)
    assert time.monotonic() - began < 10 and "interrupted" in output and "Traceback" not in output
    assert folder.newest() is None


# ---- a full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("async_save", ["true", "false"])
def test_a_write_that_fails_leaves_the_checkpoint_before_it_usable(tmp_path: Path, async_save: str) -> None:
    """The second start may write files of 1 MB at most: the system refuses the rest of the weights."""
    options = [*LARGER, "checkpoint.save_iter=2", f"checkpoint.async_save={async_save}"]
    finish(start(tmp_path, *options, "trainer.max_iter=2"))
    folder = folder_of(tmp_path)
    whole = state_at_newest(folder)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # noqa: E731
    output = finish(start(tmp_path, *options, "trainer.max_iter=100000", before=limit), 1)
    assert "iteration 4 could not be saved" in output and "File too large" in output
    assert "Iteration 2 is complete: the same command resumes it" in output and "Traceback" not in output
    assert folder.iterations() == [2] and not saving(folder)
    again = state_at_newest(folder)
    assert all(again[name].equal(value) for name, value in whole.items())
    assert "resumed" in finish(start(tmp_path, *options, "trainer.max_iter=4"))
    assert folder.newest() == 4


@pytest.mark.slow
def test_a_full_file_system(tmp_path: Path) -> None:
    """On a file system of 100 MB, which holds two checkpoints and not three."""
    mount = f"mount -t tmpfs -o size=100m none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system; the test above has another write error")
    train = " ".join(
        [sys.executable, "-m", "train", "--", *(f"'{a}'" for a in [*BASE, *LARGER, "checkpoint.save_iter=1"])]
    )
    script = f"{mount}; {train} trainer.max_iter=50; echo status $?; {train} trainer.max_iter=1; echo status $?"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        cwd=REPOSITORY,
        env={**ENV, "OUTPUT_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    output = done.stdout + done.stderr
    assert "No space left on device" in output and "status 1\nstatus 0\n" in done.stdout, output
    assert "Iteration 1 is complete" in output or "Iteration 2 is complete" in output, output
    assert "resumed" in output and "Traceback" not in output

"""The batch scripts: what they ask of Slurm, and whole jobs of two nodes on one machine, stopped and put back into the queue.

`srun`, `scontrol` and `scancel` are small programs that do what those do on a cluster of this one machine.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cosmos_predict.checkpoint.run_folder import RunFolder
from tests.parallel.training_runs import BASE, assert_identical, folder_of, train

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["scripts/slurm/train.sbatch", "scripts/slurm/train_enroot.sbatch"]
STEPS = 60

# Runs its command as every task, with that task's variables; passes on what scancel asks for; ends with the first failure.
SRUN = """#!{python}
import os, signal, subprocess, sys
words = sys.argv[1:]
options = [word for word in words[:words.index("bash")]]
open(os.environ["CALLS"], "a").write("\\n".join(["srun", *words]) + "\\n")
if os.environ.get("FAKE_ONLY"):
    sys.exit(int(os.environ["FAKE_ONLY"]))
tasks = []
for number in range(2):
    ranks = dict(SLURM_PROCID=number, SLURM_NTASKS=2, SLURM_STEP_NUM_TASKS=2, SLURM_LOCALID=0, SLURM_NODEID=number)
    env = {{**os.environ, **{{name: str(value) for name, value in ranks.items()}}}}
    tasks.append(subprocess.Popen(words[len(options):], env=env, start_new_session=True))
def pass_on(number, frame):  # to the task itself alone, as where processes are tracked by cgroup
    for task in tasks:
        os.kill(task.pid, signal.SIGUSR1)
signal.signal(signal.SIGUSR2, pass_on)
open(os.environ["CALLS"] + ".pid", "w").write(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then printf '%s\\n' $HOSTS; else echo "scontrol $*" >> "$CALLS"; fi
"""
SCANCEL = """#!/bin/bash
echo "scancel $*" >> "$CALLS"
kill -USR2 "$(cat "$CALLS.pid")"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on a cluster."""
    (tmp_path / "bin").mkdir()
    commands = {"srun": SRUN.format(python=sys.executable), "scontrol": SCONTROL, "scancel": SCANCEL}
    for name, content in commands.items():
        (tmp_path / "bin" / name).write_text(content)
        (tmp_path / "bin" / name).chmod(0o755)
    tools = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "40123", "SLURM_JOB_NUM_NODES": "2"}
    nodes = {"SLURM_JOB_NODELIST": "gpu[003-004]", "HOSTS": "gpu003 gpu004", "CALLS": str(tmp_path / "calls")}
    return {**os.environ, **job, **nodes, "PATH": tools, "OMP_NUM_THREADS": "1"}


def submit(script: str, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", script, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", [*SCRIPTS, "scripts/slurm/stoppable.sh", "scripts/slurm/node.sh"])
def test_they_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_torchrun_on_every_node(cluster: dict[str, str]) -> None:
    done = submit(SCRIPTS[0], {**cluster, "FAKE_ONLY": "0"}, "--", "experiment=a b", "x={y: 1}")
    assert done.returncode == 0, done.stderr
    calls = Path(cluster["CALLS"]).read_text().splitlines()
    torchrun = calls[calls.index("torchrun") :]
    assert calls[:5] == ["srun", "--kill-on-bad-exit=1", "--cpu-bind=none", "bash", "scripts/slurm/node.sh"]
    assert torchrun == [
        "torchrun",
        "--shutdown_timeout=270",
        "--nnodes=2",
        "--nproc_per_node=gpu",
        "--rdzv_id=40123",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=gpu003:24123",
        *("-m", "train", "--", "experiment=a b", "x={y: 1}"),
    ]
    for status in ("3", "127"):  # 127: no such program
        assert submit(SCRIPTS[0], {**cluster, "FAKE_ONLY": status}).returncode == int(status)
    assert "requeue" not in Path(cluster["CALLS"]).read_text()


def test_a_task_for_every_gpu_in_a_container(cluster: dict[str, str]) -> None:
    env = {**cluster, "FAKE_ONLY": "0"}
    done = submit(SCRIPTS[1], env)
    assert done.returncode != 0 and "CONTAINER_IMAGE: set it to a .sqsh file" in done.stderr
    env |= {"CONTAINER_IMAGE": "/images/a.sqsh", "CONTAINER_MOUNTS": "/data:/data"}
    assert submit(SCRIPTS[1], env, "--yes", "--factory", "F").returncode == 0
    calls = Path(cluster["CALLS"]).read_text().splitlines()
    options = {f"--container-image={env['CONTAINER_IMAGE']}", f"--container-mounts={ROOT}:{ROOT},/data:/data"}
    assert options | {f"--container-workdir={ROOT}"} <= set(calls)
    assert calls[calls.index("task") :] == ["task", "python", "-m", "train", "--yes", "--factory", "F"]


def test_they_are_submitted_from_the_repository(cluster: dict[str, str], tmp_path: Path) -> None:
    for script in SCRIPTS:
        done = submit(str(ROOT / script), {**cluster, "SLURM_SUBMIT_DIR": str(tmp_path)})
        assert done.returncode != 0 and "stoppable.sh" in done.stderr
        done = submit(script, {name: value for name, value in cluster.items() if name != "SLURM_SUBMIT_DIR"})
        assert "submit this script with sbatch" in done.stderr


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tmp_path_factory.mktemp("unbroken"), 2, "checkpoint.save_iter=1000", steps=STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_job_that_is_stopped_goes_on_where_it_was(
    cluster: dict[str, str], tmp_path: Path, unbroken: RunFolder, script: str
) -> None:
    """SIGUSR1, as before the time limit: saved, status 0, requeued; the requeued job ends with the weights of an unbroken run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**cluster, "HOSTS": "localhost", "MASTER_PORT": str(port), "NPROC_PER_NODE": "1", "CONTAINER_IMAGE": "x"}
    env |= {"OUTPUT_ROOT": str(tmp_path / "job")}
    command = ["bash", script, "--", *BASE, f"trainer.max_iter={STEPS}", "checkpoint.save_iter=1000"]
    folder, output = folder_of(tmp_path / "job"), tmp_path / "output"
    with output.open("w") as stream:
        job = subprocess.Popen(command, cwd=ROOT, env=env, stdout=stream, stderr=stream)
        deadline = time.monotonic() + 90
        while not ((log := folder.root / "metrics.jsonl").is_file() and len(log.read_text().splitlines()) > 3):
            assert job.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(60) == 0, output.read_text()
    calls, newest = Path(env["CALLS"]).read_text(), folder.newest()
    assert newest is not None and 3 < newest < STEPS
    assert "scancel --signal=USR1 40123\n" in calls and calls.endswith("scontrol requeue 40123\n")
    text = output.read_text()
    assert f"SIGUSR1: saved iteration {newest} and stopping" in text and "goes back into the queue" in text
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"resumed {folder.root} at iteration {newest}" in done.stderr
    assert Path(env["CALLS"]).read_text().count("requeue") == 1
    assert_identical(folder, unbroken)

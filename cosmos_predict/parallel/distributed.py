"""The life of a distributed program: who am I, joining the process group, and the one ending.

Ranks come from torchrun's variables, else from Slurm's, else the program is a single process without a group.

Every program ends through `finish_distributed`, also one that failed. What it guarantees:

- A program that succeeds everywhere exits with status 0 everywhere. Group and store are torn down only after every rank
  has left its last collective.
- No rank runs the interpreter's own teardown: a gloo group that still lives then, as it does on a rank that failed,
  aborts the process ("terminate called without an active exception", in 6 of 20 processes that simply returned), and
  the abort would replace the status. What modules registered with `atexit` is run, and the streams are flushed.
- A program that fails on one rank ends on all of them within seconds, with a status that is not 0. The failing rank
  says so in the store and leaves without waiting; a watcher thread on every other rank sees it, or sees the store gone,
  and ends a process that hangs in a collective which can no longer complete.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from cosmos_predict.errors import ConfigError

WATCH_SECONDS = 1.0  # how often a rank looks whether another one failed
GRACE_SECONDS = 3.0  # what a rank gets to end by itself after another one failed
ENDING_SECONDS = 60.0  # what a failing rank gets to close its writers

_closers: list[tuple[str, Callable[[], object]]] = []
_watcher: _Watcher | None = None


@dataclass(frozen=True)
class Ranks:
    """This process among the others; `launcher` is "torchrun", "slurm" or "none" (a single process without a group)."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29500
    launcher: str = "none"


def read_ranks(env: Mapping[str, str] = os.environ) -> Ranks:
    """Return this process's ranks from torchrun's variables, or from Slurm's where RANK is absent.

    Under Slurm the first node of the job's node list is the meeting point (or MASTER_ADDR, SLURM_LAUNCH_NODE_IPADDR),
    on MASTER_PORT or a port made from the job's number. Raises ConfigError for incomplete or contradictory variables.
    """
    if "RANK" in env:
        launcher, names = "torchrun", ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        addr, port = env.get("MASTER_ADDR", ""), env.get("MASTER_PORT", "")
        if not addr or not port:
            raise ConfigError("RANK is set, but MASTER_ADDR or MASTER_PORT is not: start with torchrun, or unset RANK")
    elif "SLURM_PROCID" in env and ("SLURM_STEP_NUM_TASKS" in env or "SLURM_NTASKS" in env):
        # A shell inside an allocation sees the job's SLURM_NTASKS, but its own step has one task.
        size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        launcher, names = "slurm", ("SLURM_PROCID", size, "SLURM_LOCALID")
        nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST")
        addr = env.get("MASTER_ADDR") or (first_node(nodes) if nodes else env.get("SLURM_LAUNCH_NODE_IPADDR", ""))
        port = env.get("MASTER_PORT") or str(12000 + int(env.get("SLURM_JOB_ID", "0")) % 20000)
        if not addr:
            raise ConfigError(
                "Slurm gives neither SLURM_JOB_NODELIST nor SLURM_LAUNCH_NODE_IPADDR: set MASTER_ADDR to the first node"
            )
    else:
        return Ranks()
    values = []
    for name in names:
        if not env.get(name, "").isdigit():
            raise ConfigError(
                f"{name}={env.get(name)!r} is not a number; {launcher} sets {', '.join(names)} on every process"
            )
        values.append(int(env[name]))
    rank, world_size, local_rank = values
    if not rank < world_size:
        raise ConfigError(f"{names[0]}={rank} must be less than {names[1]}={world_size}")
    return Ranks(rank, world_size, local_rank, addr, int(port), launcher)


def first_node(nodes: str) -> str:
    """Return the first host of a Slurm node list: "gpu[003-006,010],login1" -> "gpu003"."""
    head = re.match(r"(?:[^,\[\]]|\[[^\]]+\])+", nodes)
    if head is None:
        raise ConfigError(f"cannot read the first host from the Slurm node list {nodes!r}; set MASTER_ADDR to it")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", head.group())


def init_distributed(
    backend: str = "auto", timeout: timedelta = timedelta(minutes=30), meet: timedelta = timedelta(minutes=10)
) -> Ranks:
    """Join the process group and start the watcher; return this process's ranks.

    A process without launcher stays alone, without a group. A started group, or a second call, is left as it is.

    Args:
        backend: "auto" is NCCL for CUDA and gloo for CPU tensors where there is a GPU, else gloo; or torch's own names.
        timeout: what a collective may take.
        meet: what the ranks may take to find each other.
    """
    global _watcher
    ranks = read_ranks()
    if ranks.launcher == "none" or dist.is_initialized():
        return ranks
    cuda = torch.cuda.is_available() and backend != "gloo"
    if backend == "auto":
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count()) if cuda else None
    if device is not None:
        torch.cuda.set_device(device)
    # Under Slurm nobody else has set what torch and other libraries read.
    for name in ("rank", "world_size", "local_rank", "master_addr", "master_port"):
        os.environ[name.upper()] = str(getattr(ranks, name))
    store, rank, world_size = next(iter(dist.rendezvous("env://", ranks.rank, ranks.world_size, timeout=meet)))
    store.set_timeout(meet)
    attempt = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    _watcher = _Watcher(attempt, rank, world_size)
    _watcher.start()
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", attempt),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device,
    )
    return ranks


def register_closer(name: str, close: Callable[[], object]) -> None:
    """Have `close()` called when the program ends, last registered first: writers, loggers, decoders, worker pools.

    It is called once, on success and on failure, and must not use collectives. It may raise: that is reported, the
    others are still closed, and the program ends with a status that is not 0.
    """
    _closers.append((name, close))


def finish_distributed(status: int = 0) -> NoReturn:
    """End the program with `status`: close, join threads, wait for the others, leave the group, flush, exit.

    A status that is not 0 tells the other ranks, which then end too, and leaves without waiting for them; 130 (Ctrl-C)
    waits for no thread either. In a single process without a group this is else `sys.exit(status)` after closing.
    """
    watcher = _watcher
    if watcher is not None and status:
        watcher.give_up(status)
    closed = _close_all()
    if watcher is None:
        if dist.is_initialized():  # by somebody else's call
            dist.destroy_process_group()
        if status == 130:
            _exit_now(status)
        sys.exit(status or closed)
    if status == 130:
        _exit_now(status)
    # What the interpreter itself does first when it exits: end idle executors and join every thread that is no daemon.
    threading._shutdown()  # type: ignore[attr-defined]
    if closed and not status:
        status = closed
        watcher.give_up(status)
    _exit_now(status or watcher.leave_together())


@contextlib.contextmanager
def distributed_program(backend: str = "auto", timeout: timedelta = timedelta(minutes=30)) -> Iterator[Ranks]:
    """Run the body as a distributed program, and end the process: `with distributed_program() as ranks: ...`.

    An exception is printed with its traceback and gives status 1, Ctrl-C 130, `sys.exit(n)` n.
    """
    status = 0
    try:
        yield init_distributed(backend, timeout)
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    finish_distributed(status)


class _Watcher(threading.Thread):
    """Looks in the store whether another rank failed, over a connection of its own, so that no collective blocks it."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        super().__init__(name="rank watcher", daemon=True)
        self.rank, self.world_size = rank, world_size
        self._store, self._watched = store, store.clone()  # type: ignore[attr-defined]  # newer than its stub
        self._done = threading.Event()  # this rank needs no watching any more

    def run(self) -> None:
        while not self._done.wait(WATCH_SECONDS):
            try:
                reason = self._watched.get("failed").decode() if self._watched.check(["failed"]) else ""
            except Exception:
                reason = "the store of the first rank is gone"
            if reason:
                # The main thread may be about to raise by itself, with a better message than this one.
                if not self._done.wait(GRACE_SECONDS):
                    print(f"rank {self.rank} ends because {reason}", file=sys.stderr)
                    _exit_after(ENDING_SECONDS, 1)
                    _close_all()
                    _exit_now(1)
                return

    def give_up(self, status: int) -> None:
        """Tell the other ranks that this one fails, and make sure that it ends."""
        self._done.set()
        _exit_after(ENDING_SECONDS, status)
        with contextlib.suppress(Exception):  # a store that is gone tells the others just as well
            self._store.set("failed", f"rank {self.rank} ended with status {status}")

    def leave_together(self) -> int:
        """Wait until every rank has left its last collective, then destroy the group; return 0, or 1 if that failed."""
        try:
            dist.barrier()
            # A rank may return from the barrier while another is still inside: close no socket before all are out.
            self._arrive("left_barrier", self.world_size)
            self._done.set()
            self.join()
            dist.destroy_process_group()
        except Exception as error:
            print(f"rank {self.rank} could not end together with the others: {error}", file=sys.stderr)
            self.give_up(1)
            return 1
        with contextlib.suppress(Exception):  # nothing is left to do; rank 0, which may host the store, leaves last
            self._arrive("left_group", self.world_size if self.rank == 0 else 0)
        return 0

    def _arrive(self, key: str, number: int) -> None:
        """Count this rank and wait for `number` of them, but not for ranks that died on these last metres."""
        self._store.add(key, 1)
        deadline = time.monotonic() + ENDING_SECONDS
        while self._store.add(key, 0) < number and time.monotonic() < deadline:
            time.sleep(0.01)


def _close_all() -> int:
    """Call every registered closer once, last first; return 0, or 1 if one raised."""
    status = 0
    while _closers:
        name, close = _closers.pop()
        try:
            close()
        except Exception:
            print(f"closing {name} failed:", file=sys.stderr)
            traceback.print_exc()
            status = 1
    return status


def _exit_after(seconds: float, status: int) -> None:
    """Exit with `status` at the latest after `seconds`, whatever the other threads do."""
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()


def _exit_now(status: int) -> NoReturn:
    """Run the exit handlers that modules registered, flush, and leave without the interpreter's teardown."""
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)

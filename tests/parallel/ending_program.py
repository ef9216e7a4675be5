"""A small distributed program for the tests of its ending: `python -m tests.parallel.ending_program MODE`.

Each mode does some real work together first (a gloo all-reduce, a thread, a closer), then ends the way its name says.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist

from cosmos_predict.parallel.distributed import distributed_program, register_closer


def main(mode: str) -> None:
    with distributed_program("gloo") as ranks:
        last = ranks.rank == ranks.world_size - 1
        register_closer("log", lambda: print("closed log"))
        pool = ThreadPoolExecutor(1)  # never shut down: idle workers must not keep the program alive
        pool.submit(time.time).result()
        writer = threading.Thread(target=lambda: (time.sleep(0.2), print("written")))
        writer.start()
        value = torch.full((1000,), float(ranks.rank))
        dist.all_reduce(value)
        assert value[0] == sum(range(ranks.world_size))
        print(f"sum {value[0]:.0f}")
        if mode == "last_raises" and last:
            raise ValueError("a bad sample on the last rank")
        if mode == "first_raises" and ranks.rank == 0:
            raise ValueError("a bad sample on the first rank")
        if mode == "first_killed" and ranks.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "all_exit_3":
            sys.exit(3)
        if mode == "closer_raises" and last:
            register_closer("broken writer", lambda: 1 / 0)
        if mode in ("last_raises", "first_raises", "first_killed"):
            # A hang that no closed socket ends, as a collective on a GPU would be.
            time.sleep(1000)


if __name__ == "__main__":
    main(sys.argv[1])

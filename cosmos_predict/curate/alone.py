"""Videos that may kill the process, one after the other in a process of their own: so the one that does is known for sure.

Where that process dies, the video that it was at has failed, and another process goes on with the next one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from loguru import logger

from cosmos_predict.curate import engine
from cosmos_predict.curate.records import CRASH
from cosmos_predict.curate.stage import Context, Stage, Video
from cosmos_predict.curate.vlm import end_with_parent
from cosmos_predict.errors import CosmosPredictError

Make = Callable[..., list[Stage]]


def run(
    videos: Iterable[Video],
    make: Make,
    arguments: tuple[Any, ...],
    begin: Callable[[Video], Any],
    finish: engine.Finish,
    workers: int = 0,
    context: Context | None = None,
) -> None:
    """Take every video through the stages `make(*arguments)`; hand it to `begin` before and to `finish` after that, here.

    The clips of a video go through a stage several at a time, as by `engine.run`. Raises what `make`, a stage's `setup`,
    `begin` or `finish` raise, UnavailableError, and CosmosPredictError where a `setup` kills its process.
    """
    worker = None
    try:
        for video in videos:
            begin(video)
            worker = worker or _Worker(make, arguments, workers, context)
            if (done := worker.work(video)) is None:
                done, video.recorded = video, None  # nobody knows how far it came
                video.error = {"stage": "any", "type": CRASH, "message": f"its process {worker.end()}"}
                worker = None
            finish(done)
        if worker is not None:
            worker.end(politely=True)
    finally:
        if worker is not None:
            worker.process.kill()
            worker.process.join()


class _Worker:
    """A process that holds all stages, set up once."""

    def __init__(self, *given: Any) -> None:
        spawn = multiprocessing.get_context("spawn")  # a copy of this process would have its locks, not its threads
        self.pipe, there = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(there, os.getpid(), *given))
        self.process.start()
        there.close()
        self.ready = False

    def work(self, video: Video) -> Video | None:
        """Return the video when it is through; None where the process died."""
        self.ready = self.ready or self._receive() is not None
        if not self.ready:
            raise CosmosPredictError(f"a process {self.end()} while it set up its stages, before it took a video")
        with contextlib.suppress(OSError):
            self.pipe.send(video)
        return self._receive()

    def _receive(self) -> Any:
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):
            return None
        if isinstance(said, BaseException):
            raise said
        return said

    def end(self, politely: bool = False) -> str:
        """Let it end, and return how it did."""
        if politely:
            self.pipe.send(None)
        self.process.join()
        status = self.process.exitcode or 0
        if status >= 0:
            return f"ended with status {status}"
        memory = " (out of memory?)" if status == -signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-status).name}{memory}"


def _serve(
    pipe: Any, parent: int, make: Make, arguments: tuple[Any, ...], workers: int, context: Context | None
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it, too, and ends this process
    with contextlib.suppress(AttributeError):  # not on Linux
        end_with_parent()
    if os.getppid() != parent:
        return
    with contextlib.suppress(OSError):  # of all processes this is the one to end where memory is short
        Path("/proc/self/oom_score_adj").write_text("500")
    logger.remove()
    logger.add(sys.stderr, level="WARNING", format="<dim>{time:HH:mm:ss}</dim> <level>{level: <7}</level> {message}")

    def feed() -> Iterator[Video]:
        pipe.send("ready")
        while (video := pipe.recv()) is not None:
            yield video

    try:
        engine.run(feed(), make(*arguments), pipe.send, "threads", workers, at_once=1, context=context)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the parent is gone
            try:
                pipe.send(error)
            except (TypeError, AttributeError, ValueError, pickle.PicklingError):  # an error that cannot travel
                pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))

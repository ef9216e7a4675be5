"""Executors: how videos go through stages. `inline`: one item at a time; `threads`: a pool of workers per stage; `ray`.

A stage that raises loses its item only: the error is noted on it, later stages skip it, the others go on. At most
2 x workers videos are between first stage and `finish`, so memory does not depend on how many there are.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

from loguru import logger

from cosmos_predict.curate.stage import Clip, Stage, Video
from cosmos_predict.errors import CosmosPredictError, UnavailableError

Finish = Callable[[Video], None]
Passed = Callable[[str, Clip], None]  # name of a stage, and a clip that it has worked on
LASTING = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    CosmosPredictError,
)
PAUSE = 1.0  # seconds before an item is tried once more; twice as long before the next time
EXECUTORS = ("threads", "inline", "ray")


def attempt(stage: Stage, item: Video | Clip) -> None:
    """Run a stage on an item; note on it what is raised, which stage rejected it, and how long it took.

    After an OSError that may pass the item is tried again, as often as the stage's `retries` say.
    """
    started = time.perf_counter()
    try:
        for left in range(0 if stage.models else stage.retries, -1, -1):
            try:
                stage.process(item)
                break
            except OSError as error:
                if not left or isinstance(error, LASTING):
                    raise
                logger.warning(f"{stage.name}: {reason(error)}; once more")
                time.sleep(PAUSE * 2 ** (stage.retries - left))
    except UnavailableError:  # every other item would fail, too
        raise
    except Exception as error:  # of whatever kind: the run must go on
        item.error = {"stage": stage.name, "type": type(error).__name__, "message": reason(error)}
        logger.opt(exception=True).debug(f"{stage.name}: {item.error['message']}")
    for clip in [item] if isinstance(item, Clip) else item.clips:
        if clip.rejected and not clip.rejected_by:
            clip.rejected_by = stage.name
    video = item.video if isinstance(item, Clip) else item
    video.seconds.append((stage.name, time.perf_counter() - started))


def reason(error: BaseException) -> str:
    """Return the message of an error, with its class where that is none of the package's or the system's."""
    known = isinstance(error, CosmosPredictError | OSError) and str(error)
    return str(error) if known else f"{type(error).__name__}: {error}"


def drive(video: Video, stages: Sequence[Stage], maps: Sequence[Any] = (), work: Callable[..., None] = attempt) -> None:
    """Take a video, or its clips that are alive, through the stages in order. maps: how each stage applies to its items."""
    for stage, apply in zip(stages, maps or [map] * len(stages), strict=True):
        items = [video] if stage.scope == "video" else [clip for clip in video.clips if clip.alive]
        list(apply(lambda item, stage=stage: work(stage, item), [] if video.error else items))


def run(
    videos: Iterable[Video],
    stages: Sequence[Stage],
    finish: Finish,
    executor: str,
    workers: int = 0,
    at_once: int = 0,
    passed: Passed | None = None,
    **ray: Any,
) -> None:
    """Take every video, or its clips one by one, through the stages in order, and hand it to `finish`.

    workers: threads of a stage that does not say otherwise; 0: one per core. at_once: videos; 0: 2 x workers. passed: told of
    every clip behind every stage, but for `ray`, by several threads. ray: what `on_ray.run` takes besides.

    Ctrl-C, an error of `finish` and UnavailableError end the run after the items in hand; videos that are not through are
    not finished.
    """
    if executor == "ray":
        from cosmos_predict.curate import on_ray

        return on_ray.run(videos, stages, drive, finish, workers, **ray)
    workers = workers or os.cpu_count() or 1
    stop, lock, remaining = threading.Event(), threading.Lock(), iter(videos)
    with ExitStack() as stack:
        maps = []
        for stage in stages:
            stage.setup()
            stack.callback(stage.teardown)
            pool = stack.enter_context(ThreadPoolExecutor(stage.workers or workers)) if executor == "threads" else None
            maps.append(pool.map if pool else map)

        def unless_stopped(stage: Stage, item: Video | Clip) -> None:
            if not stop.is_set():
                attempt(stage, item)
                if passed and isinstance(item, Clip):
                    passed(stage.name, item)

        def take() -> None:
            while not stop.is_set():
                with lock:
                    video = next(remaining, None)
                if video is None:
                    return
                drive(video, stages, maps, unless_stopped)
                if not stop.is_set():
                    finish(video)

        def cease() -> None:
            stop.set()
            for stage in stages:
                stage.cease()

        if executor == "inline":
            return take()
        drivers = stack.enter_context(ThreadPoolExecutor(at_once or 2 * workers))
        stack.callback(cease)  # at Ctrl-C, too, and before the pools are waited for
        futures = [drivers.submit(take) for _ in range(at_once or 2 * workers)]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()

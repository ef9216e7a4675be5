"""Executors: how videos go through stages. `inline`: one item at a time; `threads`: a pool of workers per stage.

A stage that raises loses its item only: the error is noted on it, later stages skip it, the others go on. At most
2 x workers videos are between first stage and `finish`, so memory does not depend on how many there are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack

from cosmos_predict.curate.stage import Clip, Stage, Video

Finish = Callable[[Video], None]
EXECUTORS = ("threads", "inline")


def run(videos: Iterable[Video], stages: Sequence[Stage], finish: Finish, executor: str, workers: int = 0) -> None:
    """Take every video, or its clips one by one, through the stages in order, and hand it to `finish`.

    workers: threads of a stage that does not say otherwise; 0: one per core.

    Ctrl-C, or an error of `finish`, ends the run after the items in hand; videos that are not through are not finished.
    """
    workers = workers or os.cpu_count() or 1
    stop, lock, remaining = threading.Event(), threading.Lock(), iter(videos)
    with ExitStack() as stack:
        maps = []
        for stage in stages:
            stage.setup()
            stack.callback(stage.teardown)
            pool = stack.enter_context(ThreadPoolExecutor(stage.workers or workers)) if executor == "threads" else None
            maps.append(pool.map if pool else map)

        def drive() -> None:
            while not stop.is_set():
                with lock:
                    video = next(remaining, None)
                if video is None:
                    return
                for stage, apply in zip(stages, maps, strict=True):
                    items = [video] if stage.scope == "video" else [clip for clip in video.clips if clip.alive]
                    list(apply(lambda item, stage=stage: attempt(stage, item), [] if video.error else items))
                if not stop.is_set():
                    finish(video)

        def attempt(stage: Stage, item: Video | Clip) -> None:
            try:
                if not stop.is_set():
                    stage.process(item)
            except Exception as error:  # of whatever kind: the run must go on
                item.error = {"stage": stage.name, "type": type(error).__name__, "message": str(error)}

        if executor == "inline":
            return drive()
        drivers = stack.enter_context(ThreadPoolExecutor(2 * workers))
        stack.callback(stop.set)  # at Ctrl-C, too, and before the pools are waited for
        futures = [drivers.submit(drive) for _ in range(2 * workers)]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()

"""Executors: how videos go through stages. `inline`: one item at a time; `threads`: a pool of workers per stage; `ray`.

A stage that asks for GPUs has a copy, set up, on each that torch sees here.

A stage that raises loses its item only: the error is noted on it, later stages skip it, the others go on. At most
2 x workers videos are between first stage and `finish`, so memory does not depend on how many there are.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

from loguru import logger

from cosmos_predict.curate.stage import Clip, Context, Stage, Video
from cosmos_predict.errors import ConfigError, CosmosPredictError, UnavailableError

Finish = Callable[[Video], None]
Passed = Callable[[str, Clip], None]  # name of a stage, and a clip that it has worked on
Items = Sequence[Any]  # a video, or clips of one
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


def attempt(stage: Stage, items: Items) -> None:
    """Run a stage on an item, or a batch; note on it what is raised, which stage rejected it, and how long it took.

    After an OSError that may pass the items are tried again, as often as the stage's `retries` say; those of a batch that
    fails one by one.
    """
    started, item = time.perf_counter(), items[0]
    try:
        for left in range(0 if stage.models else stage.retries, -1, -1):
            try:
                stage.process_many(items) if stage.batch > 1 else stage.process(item)
                break
            except OSError as error:
                if not left or isinstance(error, LASTING):
                    raise
                logger.warning(f"{stage.name}: {reason(error)}; once more")
                time.sleep(PAUSE * 2 ** (stage.retries - left))
    except UnavailableError:  # every other item would fail, too
        raise
    except Exception as error:  # of whatever kind: the run must go on
        if len(items) > 1:
            for alone in items:
                attempt(stage, [alone])
            return
        item.error = {"stage": stage.name, "type": type(error).__name__, "message": reason(error)}
        logger.opt(exception=True).debug(f"{stage.name}: {item.error['message']}")
    for clip in item.clips if isinstance(item, Video) else items:
        if clip.rejected and not clip.rejected_by:
            clip.rejected_by = stage.name
    video = item if isinstance(item, Video) else item.video
    video.seconds.append((stage.name, time.perf_counter() - started))


def reason(error: BaseException) -> str:
    """Return the message of an error, with its class where that is none of the package's or the system's."""
    known = isinstance(error, CosmosPredictError | OSError) and str(error)
    return str(error) if known else f"{type(error).__name__}: {error}"


def drive(video: Video, stages: Sequence[Stage], maps: Sequence[Any] = (), work: Callable[..., None] = attempt) -> None:
    """Take a video, or its clips that are alive, through the stages in order. maps: how each stage applies to its items.

    Batches are of one video, so that they, and what a network makes of them, are the same in every run.
    """
    for stage, apply in zip(stages, maps or [map] * len(stages), strict=True):
        items: Items = [video] if stage.scope == "video" else [clip for clip in video.clips if clip.alive]
        starts = range(0, 0 if video.error else len(items), stage.batch)
        batches = [items[start : start + stage.batch] for start in starts]
        list(apply(lambda batch, stage=stage: work(stage, batch), batches))


def gpus(stages: Sequence[Stage]) -> list[str]:
    """Return the GPUs of this process as torch names them; [], without torch, where no stage asks for one."""
    if not any(stage.resources.gpus for stage in stages):
        return []
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def place(stages: Sequence[Stage], context: Context, devices: Sequence[str]) -> list[list[Stage]]:
    """Return each stage, told its context, and its copies: one per device where it asks for GPUs.

    Stages on the same device share the models that they share in `stages`. One that asks for several GPUs has the first.
    Raises ConfigError where a stage cannot be copied.
    """
    asking = [stage for stage in stages if stage.resources.gpus]
    try:
        groups = [asking, *(copy.deepcopy(asking) for _ in devices[1:])]
    except (TypeError, copy.Error) as error:
        names = ", ".join(stage.name for stage in asking)
        told = f"one of the stages {names} cannot be copied for each GPU ({error})"
        raise ConfigError(f"{told}: make locks, clients and networks in `setup`, not in the constructor") from error
    placed = {id(stage): [group[number] for group in groups] for number, stage in enumerate(asking)}
    for group, device in zip(groups, devices or ["cpu"], strict=True):
        for stage in group:
            stage.context = dataclasses.replace(context, device=device)
    for stage in stages:
        if not stage.resources.gpus:
            stage.context = context
    return [placed.get(id(stage), [stage]) for stage in stages]


def run(
    videos: Iterable[Video],
    stages: Sequence[Stage],
    finish: Finish,
    executor: str,
    workers: int = 0,
    at_once: int = 0,
    passed: Passed | None = None,
    context: Context | None = None,
    devices: Sequence[str] | None = None,
    **ray: Any,
) -> None:
    """Take every video, or its clips one by one, through the stages in order, and hand it to `finish`.

    workers: cores that the workers of a stage share; 0: all. at_once: videos; 0: 2 x workers. passed: told of every clip
    behind every stage, but for `ray`, by several threads. context: what stages are told. devices: of stages that ask for
    GPUs; None: `gpus`, of which `inline` takes the first. ray: what `on_ray.run` takes besides.

    Ctrl-C, an error of `finish` and UnavailableError end the run after the items in hand; videos that are not through are
    not finished.
    """
    if executor == "ray":
        from cosmos_predict.curate import on_ray

        return on_ray.run(videos, stages, finish, context or Context(), workers, **ray)
    workers = workers or os.cpu_count() or 1
    stop, lock, remaining = threading.Event(), threading.Lock(), iter(videos)
    devices = (gpus(stages) if devices is None else devices)[: 1 if executor == "inline" else None]
    placed = place(stages, dataclasses.replace(context or Context(), stopping=stop), devices)
    with ExitStack() as stack:
        maps, free = [], {id(stage): SimpleQueue[Stage]() for stage in stages}
        for stage, copies in zip(stages, placed, strict=True):
            for one in copies:
                one.setup()
                stack.callback(one.teardown)
            each = stage.workers or stage.resources.at_once(workers, len(devices))
            for one in copies * each:
                free[id(stage)].put(one)
            threaded = executor == "threads"
            maps.append(stack.enter_context(ThreadPoolExecutor(each * len(copies))).map if threaded else map)

        def unless_stopped(stage: Stage, items: Items) -> None:
            if stop.is_set():
                return
            one = free[id(stage)].get()
            try:
                attempt(one, items)
            finally:
                free[id(stage)].put(one)
            for clip in items:
                if passed and isinstance(clip, Clip):
                    passed(stage.name, clip)

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
            for one in (one for copies in placed for one in copies):
                one.cease()

        if executor == "inline":
            return take()
        drivers = stack.enter_context(ThreadPoolExecutor(at_once or 2 * workers))
        stack.callback(cease)  # at Ctrl-C, too, and before the pools are waited for
        futures = [drivers.submit(take) for _ in range(at_once or 2 * workers)]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()

"""Executor `ray`: every worker is an actor that holds all stages, set up once, and takes a video through them.

So only paths and records travel, and scratch files stay on the machine where a video is worked on. Several machines need a
cluster (`ray start`, `--ray-address auto`) and folders that all of them see, or s3:// prefixes.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loguru import logger

from cosmos_predict.curate.engine import Finish, drive, gpus, place
from cosmos_predict.curate.own import MODULE
from cosmos_predict.curate.records import CRASH
from cosmos_predict.curate.stage import Context, Stage, Video
from cosmos_predict.errors import ConfigError, MissingDependencyError, UnavailableError

TRIES = 2  # of a video whose worker dies, in one run


class Worker:
    """What lives in an actor; one that was restarted sets its stages up again."""

    def __init__(self, stages: Sequence[Stage], context: Context) -> None:
        self.stages, self.context, self.ready = stages, context, False

    def setup(self) -> None:
        if not self.ready:
            place(self.stages, self.context, gpus(self.stages)[:1])  # Ray lets it see its own
            for stage in self.stages:
                stage.setup()
        self.ready = True

    def work(self, video: Video) -> Video:
        self.setup()
        drive(video, self.stages)
        shutil.rmtree(video.scratch, ignore_errors=True)
        return video


def share(resources: Mapping[str, float], stages: Sequence[Stage]) -> float:
    """Return the part of a GPU, or how many, that an actor needs for all stages: most that one asks for; 0 without GPUs."""
    asked = [stage.resources.gpus for stage in stages]
    asked += [getattr(model, "gpus", 0.0) for stage in stages for model in stage.models]
    return max(asked, default=0.0) if resources.get("GPU") else 0.0


def places(resources: Mapping[str, float], workers: int, each: float) -> int:
    """Return how many actors to make: `workers`, or as many as fit (0) on a cluster of so many CPU and GPU.

    each: GPUs of an actor. Raises ConfigError where they do not fit: Ray would wait for more machines, without a word.
    """
    cpus, there = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    fit = min(cpus, int(there * int(1 / each) if each <= 1 else there // each)) if each else cpus
    if not 0 < (workers or fit) <= fit:
        asked = f"--workers {workers or 1} of one CPU and --ray-gpus-per-worker {each:g}"
        raise ConfigError(f"{asked} do not fit on the cluster: it has {cpus} CPUs and {there} GPUs, room for {fit}")
    return workers or fit


def run(
    videos: Iterable[Video],
    stages: Sequence[Stage],
    finish: Finish,
    context: Context,
    workers: int = 0,
    address: str = "",
    gpus_each: float | None = None,
) -> None:
    """Take every video through the stages on a Ray cluster and hand it to `finish` in this process; one in hand per worker.

    A video whose worker is killed is tried once more on a fresh one, then fails.

    Args:
        context: what stages are told.
        workers: actors, of one CPU each; 0: as many as the cluster has room for.
        address: of a running cluster, or "auto"; "": one of this machine, for this run.
        gpus_each: share of a GPU that each actor takes; None: what the stages ask for (`share`).

    Raises MissingDependencyError without Ray, ConfigError where the workers do not fit on the cluster; what a
    stage's `setup` or `finish` raises.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise MissingDependencyError("--executor ray needs Ray: pip install 'cosmos-predict[ray]'") from error
    for stage in stages:  # a module that other processes cannot import travels with its code
        if type(stage).__module__.startswith(MODULE):
            ray.cloudpickle.register_pickle_by_value(sys.modules[type(stage).__module__])
    here: dict[str, Any] = {"num_cpus": workers or os.cpu_count(), "include_dashboard": False}
    ray.init(log_to_driver=False, logging_level="ERROR", **({"address": address} if address else here))
    try:
        there = ray.cluster_resources()
        each = share(there, stages) if gpus_each is None else gpus_each
        count = places(there, workers, each)
        make = ray.remote(num_cpus=1, num_gpus=each, max_restarts=-1)(Worker).remote
        actors = [make(stages, context) for _ in range(count)]
        try:
            ray.get([actor.setup.remote() for actor in actors])
        except ray.exceptions.RayTaskError as error:
            raise error.cause or error from None
        waiting, pending = iter(videos), {}

        def give(actor: Any, video: Video | None, tries: int = 1) -> None:
            if video is not None:
                pending[actor.work.remote(video)] = (actor, video, tries)

        for actor in actors:
            give(actor, next(waiting, None))
        while pending:
            (reference,), _ = ray.wait(list(pending))
            actor, video, tries = pending.pop(reference)
            try:
                video = ray.get(reference)
            except ray.exceptions.RayError as error:
                if isinstance(stopped := getattr(error, "cause", None), UnavailableError):
                    raise stopped from None
                video.recorded = None  # nobody knows how far it came
                if tries < TRIES:
                    logger.warning(f"{video.relative}: its worker died ({type(error).__name__}); once more")
                    give(actor, video, tries + 1)
                    continue
                cause = " ".join(str(getattr(error, "cause", None) or error).split())
                message = f"its worker died {TRIES} times ({type(error).__name__}: {cause[-400:]})"
                video.error = {"stage": "any", "type": CRASH, "message": message}
            finish(video)
            give(actor, next(waiting, None))
    finally:
        ray.shutdown()

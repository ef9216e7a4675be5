"""What curation works on, and what a stage is.

A stage changes items in place. An item carries paths into its video's scratch folder, never frames, so memory stays flat
however long and many the videos are. A stage of one's own is a subclass of `Stage`::

    class Bright(Stage):
        name, scope = "bright", "clip"
        def process(self, item: Clip) -> None:
            item.scores["brightness"] = mean_brightness(item.path)
            self.decide(item)
        def limits(self) -> dict[str, float]:
            return {"brightness": 40.0}
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from cosmos_predict.curate.media import Footage
from cosmos_predict.curate.storage import Store


@dataclass
class Window:
    """Part of a clip that has a caption of its own: frames start..end of the clip, both included."""

    start: int
    end: int
    caption: str = ""
    enhanced: str = ""  # the caption as a model rewrote it
    edited: str | None = None  # as it was edited in the dataset, of a clip that has left that
    prompt_tokens: int = 0  # of the model that wrote the caption
    output_tokens: int = 0


@dataclass
class Clip:
    """Frames start..end - 1 of a video; later stages skip it once it has a `rejected` reason or an `error`.

    But one that could not be captioned stays, without samples: its captions can be made later (`curate caption`).
    """

    video: Video
    start: int
    end: int
    uuid: str
    span: tuple[float, float]  # seconds: frame number / average rate
    path: Path = Path()  # the clip as mp4, once it is transcoded
    frames: int = 0
    windows: list[Window] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    rejected: str = ""
    rejected_by: str = ""  # name of the stage
    place: str = ""  # where its mp4 is below the output folder, once it is written
    meta: dict[str, Any] = field(default_factory=dict)  # of a written clip: its `metas/v0/` file
    texts_stay: bool = True  # of a written clip: captions that were edited in the dataset are not replaced
    error: dict[str, str] = field(default_factory=dict)  # stage, type and message of what a stage raised

    def reject(self, reason: str) -> None:
        """Drop the clip, which is no error. reason: a short name, counted over the run."""
        self.rejected = reason

    @property
    def lost(self) -> bool:
        """Whether a stage failed without which there is nothing to keep."""
        return is_lost(self.error)

    @property
    def alive(self) -> bool:
        """Whether stages still work on it."""
        return not self.lost and not self.rejected

    def outcome(self) -> dict[str, Any]:
        """Return what the video's record says of the clip."""
        times = {"frames": [self.start, self.end], "duration": self.span[1] - self.span[0]}
        rejected = {"rejected": self.rejected, "rejected_by": self.rejected_by}
        return {**times, **rejected, "error": self.error, "scores": self.scores}


@dataclass
class Video:
    """A source video. identity: absolute path or URI, which ids derive from; relative: its path below the input folder."""

    identity: str
    relative: str
    work: Path  # folder of all scratch folders
    stamp: list[Any] = field(default_factory=list)  # size and time of change of the file
    copy: Path | None = None  # of a video that is not on this machine
    footage: Footage = field(default_factory=Footage)
    clips: list[Clip] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)  # files written for it, below the output folder
    error: dict[str, str] = field(default_factory=dict)
    seconds: list[tuple[str, float]] = field(default_factory=list)  # (stage, how long it took), of it and of its clips
    recorded: dict[str, Any] | None = None  # what counts of its record (`records`), None: not known

    @property
    def uuid(self) -> str:
        """The published id: UUIDv5 of the path."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, self.identity))

    @property
    def path(self) -> Path:
        """The file on this machine."""
        return self.copy or Path(self.identity)

    @property
    def scratch(self) -> Path:
        """The folder for its files until they are written to their places."""
        return self.work / self.uuid


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage keeps busy: CPU cores, and GPUs (a part of one: as many workers as fit share it)."""

    cpus: float = 1.0
    gpus: float = 0.0

    def at_once(self, cores: int, gpus: int) -> int:
        """Return how many workers a device takes, or these cores where there are no GPUs or none is asked for; at least 1."""
        room = 1 / self.gpus if self.gpus and gpus else cores / self.cpus
        return max(1, int(room + 1e-6))


@dataclass(frozen=True)
class Context:
    """What an executor tells a stage."""

    options: Mapping[str, Any] = field(default_factory=dict)  # of the run, names as in `options.yaml`, with underscores
    footage: Store | None = None  # where the videos are, and what lies beside them
    device: str = "cpu"  # where networks belong, as torch names it: of stages that ask for GPUs, one of these
    stopping: threading.Event = field(default_factory=threading.Event)  # set when the run ends early

    def __reduce__(self) -> tuple[Any, ...]:  # an event is of one process
        return type(self), (self.options, self.footage, self.device)


class Stage:
    """One step. `process` raises what goes wrong; the executor notes it on the item and goes on with the others.

    Made by a cheap constructor, without weights, locks or clients, which `setup` makes: where `resources` ask for GPUs and
    there are several, each has a copy of the stage, set up with its own `context.device`.
    """

    name: ClassVar[str]
    scope: ClassVar[str] = "video"  # or "clip": what one item is
    resources: Resources = Resources()  # of one worker
    workers: int | None = None  # items at a time (of each copy); None: as many as `resources` allow
    batch: int = 1  # more: `process_many` gets up to so many clips of one video at a time
    models: Sequence[Any] = ()  # what it opens and closes, and may share with other stages
    version: int = 1  # a higher one where it makes something else from now on: what is there needs `--redo changed`
    retries: int = 2  # of an item after an OSError that may pass, a second or two later; models ask again themselves
    context: Context = Context()  # known from `setup` on

    def setup(self) -> None:
        """Load weights, open clients: once, before the first item. By default: opens `models`."""
        for model in self.models:
            model.open(self.context.device)

    def process(self, item: Any) -> None:
        """Work on one item, in place. Called by several threads at a time where `workers` is not 1.

        What of it was done before an OSError (a connection that was lost, a network folder) is done once more: see `retries`.
        """
        raise NotImplementedError

    def process_many(self, items: Sequence[Any]) -> None:
        """Work on several clips of a video together; where that fails, on each alone, so that only the one at fault is lost."""
        for item in items:
            self.process(item)

    def limits(self) -> dict[str, float]:
        """Return the least that a clip's scores may be, by name (dotted: "motion_score.global_mean"); a report draws them."""
        return {}

    def decide(self, item: Clip) -> None:
        """Reject a clip by the scores that it has: the end of `process`, and all that `curate filter` does.

        By default: any score below its limit; a score that is missing rejects nothing. A stage that only scores overrides it.
        """
        for name, least in self.limits().items():
            value = score(item.scores, name)
            if value is not None and value < least:
                item.reject(self.name)

    def cease(self) -> None:
        """Let items in hand end soon, as the run does: called by another thread. By default: `models` wait for nothing."""
        for model in self.models:
            if hasattr(model, "cease"):
                model.cease()

    def teardown(self) -> None:
        """Undo `setup`: once, after the last item."""
        for model in self.models:
            model.close()


def is_lost(error: Mapping[str, str]) -> bool:
    """Return whether a clip with this error is not kept: with any but that of its captions."""
    return bool(error) and error["stage"] != "caption"


def score(scores: Any, name: str) -> float | None:
    """Return a score by its dotted name; None where there is none."""
    for part in name.split("."):
        scores = scores.get(part) if isinstance(scores, dict) else None
    return scores

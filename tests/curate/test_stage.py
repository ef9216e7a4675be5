"""What a stage can ask for and is told: cores, GPUs, batches, its context; and the guide's examples, run."""

from __future__ import annotations

import copy
import json
import pickle
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from cosmos_predict.curate.engine import place, run
from cosmos_predict.curate.on_ray import share
from cosmos_predict.curate.revise import Recaption
from cosmos_predict.curate.stage import Clip, Context, Resources, Stage, Video
from cosmos_predict.curate.stages import Caption, build_stages
from cosmos_predict.curate.storage import Store
from cosmos_predict.curate.vlm import Local, Server
from cosmos_predict.errors import ConfigError
from tests.curate.buckets import s3_server
from tests.curate.footage import make_set
from tests.curate.running import REPOSITORY, options_of, run_split

GUIDE = (REPOSITORY / "docs" / "curation.md").read_text(encoding="utf-8")


def videos(*clips: int) -> Iterator[Video]:
    """Yield a video for each number, with so many clips."""
    for index, count in enumerate(clips):
        video = Video(f"/in/{index}.mp4", f"{index}", Path("scratch"))
        video.clips = [Clip(video, number, number + 1, f"{index}-{number}", (0.0, 1.0)) for number in range(count)]
        yield video


class Together(Stage):
    """Works on batches; one clip spoils its batch, another its own try only."""

    name, scope, batch = "together", "clip", 4

    def __init__(self, bad: str = "", once: str = "") -> None:
        self.bad, self.once, self.batches = bad, once, list[list[str]]()

    def process_many(self, items: Sequence[Clip]) -> None:
        self.batches.append([item.uuid for item in items])
        if self.bad in self.batches[-1]:
            raise RuntimeError(f"{self.bad} is broken")
        if self.once in self.batches[-1]:
            self.once = ""
            raise ConnectionError("lost")
        for item in items:
            item.scores["size"] = item.scores.get("size", 0) + len(items)


@pytest.mark.parametrize("executor", ["threads", "inline"])
def test_batches_are_of_one_video(executor: str) -> None:
    stage, done = Together(), list[Video]()
    run(videos(10, 3, 0, 4), [stage], done.append, executor, workers=3)
    expected = [[f"0-{number}" for number in range(start, min(start + 4, 10))] for start in (0, 4, 8)]
    expected += [["1-0", "1-1", "1-2"], ["3-0", "3-1", "3-2", "3-3"]]
    assert sorted(stage.batches) == expected
    sizes = {clip.uuid: clip.scores["size"] for video in done for clip in video.clips}
    assert sizes == {name: len(names) for names in expected for name in names}


def test_a_clip_that_spoils_its_batch_is_found() -> None:
    stage, done, passed = Together(bad="0-2"), list[Video](), list[str]()
    run(videos(4, 4), [stage], done.append, "inline", passed=lambda name, clip: passed.append(clip.uuid))
    assert [names for names in stage.batches if len(names) == 1] == [["0-0"], ["0-1"], ["0-2"], ["0-3"]]
    failed = {clip.uuid: clip.error["message"] for video in done for clip in video.clips if clip.error}
    assert failed == {"0-2": "RuntimeError: 0-2 is broken"}
    assert [clip.scores.get("size") for video in done for clip in video.clips] == [1, 1, None, 1, 4, 4, 4, 4]
    assert passed == [f"{video}-{clip}" for video in range(2) for clip in range(4)]  # each is told of once


def test_a_batch_is_tried_again_where_the_error_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosmos_predict.curate.engine.PAUSE", 0.0)
    stage, done = Together(once="0-1"), list[Video]()
    run(videos(3), [stage], done.append, "inline")
    assert stage.batches == [["0-0", "0-1", "0-2"]] * 2 and not any(clip.error for clip in done[0].clips)


def test_workers_by_resources() -> None:
    assert [Resources(cpus=cpus).at_once(8, 0) for cpus in (0.25, 1, 2, 3, 16)] == [32, 8, 4, 2, 1]
    assert [Resources(gpus=gpus).at_once(8, 2) for gpus in (0.1, 0.25, 0.3, 1, 2)] == [10, 4, 3, 1, 1]
    assert Resources(cpus=4, gpus=0.25).at_once(8, 0) == 2  # no GPU here
    assert Resources(cpus=4).at_once(8, 2) == 2


class Model:
    """Weights that two stages share; both on a device of theirs."""

    def __init__(self) -> None:
        self.opened = list[str]()

    def open(self, device: str) -> None:
        self.opened.append(device)

    def close(self) -> None:
        self.opened.append("closed")


class OnDevice(Stage):
    """Meets its copy of the other device in every item; notes where an item was."""

    scope, resources = "clip", Resources(gpus=1.0)
    meeting: ClassVar = {name: threading.Barrier(2, timeout=20) for name in ("one", "other")}
    copies: ClassVar[list[OnDevice]] = []

    def __init__(self, name: str, model: Model) -> None:
        self.name, self.models = name, [model]  # type: ignore[misc]

    def setup(self) -> None:
        super().setup()
        self.copies.append(self)

    def process(self, item: Clip) -> None:
        self.meeting[self.name].wait()
        item.meta.setdefault("devices", []).append(self.context.device)

    def __deepcopy__(self, memo: dict[int, object]) -> OnDevice:
        return type(self)(self.name, copy.deepcopy(self.models[0], memo))


class Anywhere(Stage):
    name, scope = "anywhere", "clip"

    def process(self, item: Clip) -> None:
        assert self.context.device == "cpu" and self.context.options == {"limit": 1}


def test_every_gpu_has_a_copy_of_its_own() -> None:
    OnDevice.copies.clear()
    model, done = Model(), list[Video]()
    stages = [Anywhere(), OnDevice("one", model), OnDevice("other", model)]
    context = Context({"limit": 1})
    run(videos(2, 2, 2), stages, done.append, "threads", context=context, devices=["cuda:0", "cuda:1"])
    assert not any(clip.error for video in done for clip in video.clips)
    places = [clip.meta["devices"][0] for video in done for clip in video.clips]
    assert places.count("cuda:0") == places.count("cuda:1") == 3  # they wait for each other
    found = {(stage.name, stage.context.device): stage.models[0] for stage in OnDevice.copies}
    assert len(found) == len(OnDevice.copies) == 4
    for device in ("cuda:0", "cuda:1"):
        shared = found["one", device]
        assert shared is found["other", device] and shared.opened == [device, device, "closed", "closed"]


def test_captions_made_later_go_to_the_gpus_too(tmp_path: Path) -> None:
    options = options_of("--captioning-algorithm", "cosmos_r1", "--captioning-backend", "transformers")
    caption = build_stages(options)[-1]
    assert isinstance(caption, Caption)
    model = caption.models = [Model()]
    model[0].workers = 3
    stage = Recaption(caption, options, Store(tmp_path), everything=True)
    ((one, other),) = place([stage], Context(), ["cuda:0", "cuda:1"])
    for copied in (one, other):
        copied.setup()
    assert [copied.caption.models[0].opened for copied in (one, other)] == [["cuda:0"], ["cuda:1"]]
    assert one.workers == 3 and one.done is other.done


def test_a_stage_that_cannot_be_copied_is_named() -> None:
    stage = Together()
    stage.resources, stage.lock = Resources(gpus=1.0), threading.Lock()
    place([stage], Context(), ["cuda:0"])
    with pytest.raises(ConfigError, match="one of the stages together cannot be copied for each GPU .* in `setup`"):
        place([stage], Context(), ["cuda:0", "cuda:1"])


def test_one_copy_where_there_is_one_device_or_none() -> None:
    stage, other = OnDevice("one", Model()), Anywhere()
    assert place([stage, other], Context(), ["cuda:0"]) == [[stage], [other]] and stage.context.device == "cuda:0"
    assert place([stage, other], Context(), []) == [[stage], [other]] and stage.context.device == "cpu"


def test_an_event_tells_that_the_run_ends(tmp_path: Path) -> None:
    seen, begun = list[bool](), threading.Event()

    class Waits(Stage):
        name = "waits"

        def process(self, item: Video) -> None:
            if item.relative == "0":
                assert begun.wait(20)
            else:
                begun.set()
                seen.append(self.context.stopping.wait(20))

    def finish(video: Video) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(videos(1, 1), [Waits()], finish, "threads", workers=2)
    assert seen == [True]
    there = Context({"limit": 1}, Store(tmp_path), "cuda:3")
    again = pickle.loads(pickle.dumps(there))
    assert (again.options, again.footage.root, again.device) == ({"limit": 1}, str(tmp_path), "cuda:3")
    assert not again.stopping.is_set()


def test_what_the_built_in_stages_ask_for(tmp_path: Path) -> None:
    (weights := tmp_path / "w.pth").touch()
    flags = ["--captioning-algorithm", "cosmos_r1", "--qwen-filter", "enable", "--aesthetic-threshold", "3"]
    flags += ["--transnetv2-weights", str(weights), "--motion-filter", "enable"]
    local = build_stages(options_of(*flags, "--captioning-backend", "transformers"))
    asked = {stage.name: stage.resources.gpus for stage in local}
    assert {name for name, gpus in asked.items() if gpus} == {"split", "aesthetic", "qwen_semantic", "caption"}
    assert asked["split"] == asked["aesthetic"] == 0.25 and asked["caption"] == 1.0
    assert share({"CPU": 8.0, "GPU": 2.0}, local) == 1.0 and share({"CPU": 8.0}, local) == 0.0
    groups = place(local, Context(), ["cuda:0", "cuda:1"])
    assert [len(group) for group in groups] == [2 if gpus else 1 for gpus in asked.values()]
    for number in range(2):  # a model of one name would be shared; these are two
        (semantic, caption) = (group[number].models[0] for group in groups[-2:])
        assert isinstance(semantic, Local) and isinstance(caption, Local) and semantic is not caption
    assert groups[-1][0].models[0] is not groups[-1][1].models[0]
    served = build_stages(options_of(*flags, "--captioning-backend", "vllm", "--qwen-num-gpus-per-worker", "2"))
    assert served[-1].resources.gpus == 0 and share({"CPU": 8.0, "GPU": 2.0}, served) == 2
    assert [len(group) for group in place(served, Context(), ["cuda:0", "cuda:1"])][-1] == 1
    assert isinstance(served[-1].models[0], Server) and copy.deepcopy(served[-1].models[0]) is served[-1].models[0]


def examples(folder: Path) -> list[str]:
    """Write the guide's stages into files; return FILE:CLASS of each."""
    given = list[str]()
    section = GUIDE.partition("## A stage of your own")[2].partition("\n## ")[0]
    for number, code in enumerate(re.findall("```python\n(.*?)```", section, re.DOTALL)):
        (file := folder / f"example_{number}.py").write_text(code)
        given += [f"{file}:{name}" for name in re.findall(r"^class (\w+)\(Stage\)", code, re.MULTILINE)]
    return given


@pytest.mark.slow
@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_the_examples_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    source = tmp_path / "in"
    make_set(source, 2)
    names = sorted(path.relative_to(source) for path in source.rglob("*.mp4"))
    for path, robot in zip(names, ("franka", "ur5"), strict=True):
        (source / path).with_suffix(".meta.json").write_text(json.dumps({"robot": robot}))
    flags = ["--splitting-algorithm", "content", "--text-encoder", "none", "--workers", "2"]
    stages = examples(tmp_path)
    assert [text.rpartition(":")[2] for text in stages] == ["Bright", "OneRobot", "Robot", "Contrast"]
    flags += [word for text in stages for word in ("--stage", text)]
    if where == "folder":
        output = Store(tmp_path / "out")
        run_split(source, output.root, *flags)
    else:
        with s3_server(monkeypatch):
            footage, output = Store("s3://footage/in"), Store("s3://footage/out")
            for path in source.rglob("*.*"):
                footage.put(path.relative_to(source).as_posix(), path)
            run_split(footage.root, output.root, *flags)
            check(output, names)
        return
    check(output, names)


def check(output: Store, names: Sequence[Path]) -> None:
    """Assert what the guide's stages leave of two videos: the first one's clips, scored, with captions changed."""
    kept, other = (json.loads(output.read(f"processed_videos/{name}.json") or "") for name in names)
    assert {clip["rejected"] for clip in other["clips"].values()} == {"other robot"}
    assert kept["clips"] and {clip["rejected"] for clip in kept["clips"].values()} <= {"", "bright"}
    assert all({"brightness", "contrast"} <= clip["scores"].keys() for clip in kept["clips"].values())
    texts = list(output.files("cosmos_predict2_video2world_dataset/metas"))
    assert texts and all((output.read(place) or "").startswith("A Franka arm. ") for place in texts)

"""`filter`, `caption`, `dedup`: what is recorded changes, files follow, nothing moves."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmos_predict.curate.dedup import dedup, frame_features, repeats
from cosmos_predict.curate.filters import Filter
from cosmos_predict.curate.own import fingerprint, rescored, without_scoring
from cosmos_predict.curate.records import DATASET, Records
from cosmos_predict.curate.revise import REVISION, Judge, lacking, recaption, refilter
from cosmos_predict.curate.stage import Clip, Video
from cosmos_predict.curate.stages import build_stages
from cosmos_predict.curate.storage import Store
from cosmos_predict.data.video_reader import read_frames, write_video
from cosmos_predict.errors import ConfigError, CorruptFileError, DataError
from tests.curate.footage import FPS, film, make_set, numbers, shot
from tests.curate.running import finished, options_of, run_command, run_split, tree

OWN = '''
from cosmos_predict.curate.stage import Clip, Stage

class First(Stage):
    """Scores a clip with the number of its first frame."""
    name, scope = "first", "clip"
    least = {least}

    def limits(self):
        return {{"first_frame": self.least}}

    def process(self, item: Clip) -> None:
        item.scores["first_frame"] = float(item.start)
        self.decide(item)
'''


FILTERED = ["--motion-filter", "enable", "--aesthetic-threshold", "3.5"]


def own(folder: Path, least: float) -> str:
    path = folder / "own.py"
    path.write_text(OWN.format(least=least))
    return f"{path}:First"


def run_options(*flags: str) -> dict[str, Any]:
    return {**options_of(*flags), "executor": "threads"}


def kept(output: Path) -> set[str]:
    return {path.stem.split("_")[0] for path in (output / DATASET / "videos").glob("*.mp4")}


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `in`, 2 films and a long shot, and `out`, split with a score that rejects nothing."""
    folder = tmp_path_factory.mktemp("curated")
    make_set(folder / "in", 2)
    write_video(folder / "in" / "long.mp4", film([400], seed=7), FPS)
    (folder / "in" / "long.txt").write_text("A long one.")
    run_split(folder / "in", folder / "out", "--stage", own(folder, -1), "--captioning-window-size", "128")
    return folder


@pytest.mark.slow
def test_filter_applies_other_limits(curated: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(curated / "out", output)
    before, all_kept = tree(output), kept(output)
    stage = own(tmp_path, -1)
    flags = ["--stage", stage]
    refilter(Store(output), run_options(*flags), {"stage": [fingerprint(stage)]})
    assert tree(output) == before  # the same limits: not one file differs
    stage = own(tmp_path, 100)
    summary = refilter(Store(output), run_options(*flags), {"stage": [fingerprint(stage)]})
    assert summary["num_clips_filtered_by"] == {"first": 3} and summary["num_clips_passed"] == 3
    changed = {place for place, mark in tree(output).items() if before.get(place) != mark}
    assert not any(place.endswith(".mp4") for place in changed)  # nothing moved, nothing encoded
    record = json.loads((output / "processed_videos" / "part0" / "film_0.mp4.json").read_text())
    outcomes = [(clip["rejected"], clip["rejected_by"]) for clip in record["clips"].values()]
    assert outcomes == [("first", "first"), ("", "")] and record["limits"] == {"first_frame": 100}
    gone = all_kept - kept(output)
    metas = [json.loads((output / "metas" / "v0" / f"{uuid}.json").read_text()) for uuid in gone]
    assert len(gone) == 3 and all(meta["rejected"] == "first" and not meta["valid"] for meta in metas)
    assert "limit 100: 3 below" in (output / "report.html").read_text()
    stage = own(tmp_path, -1)
    refilter(Store(output), run_options(*flags), {"stage": [fingerprint(stage)]})
    assert tree(output) == before  # and back, the windows of the long one cut again
    run_split(curated / "in", output, "--stage", stage, "--captioning-window-size", "128")  # and split agrees
    status, _, err = finished(curated / "in", output, "--stage", own(tmp_path, 5), "--captioning-window-size", "128")
    assert status == 2 and "--stage was ['own.py:First sha256:" in err
    assert (
        f"--stage: limits alone, nothing need be made again: curate.py filter {output} --stage {tmp_path}/own.py:First"
        in err
    ), err


@pytest.mark.slow
def test_a_failure_leaves_a_video_as_it_was(curated: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(curated / "out", output)
    before = tree(output)
    (tmp_path / "own.py").write_text(
        OWN.format(least=100) + '    def decide(self, item):\n        assert "film_0" not in item.video.relative\n'
        "        super().decide(item)\n"
    )
    stage = f"{tmp_path / 'own.py'}:First"
    status, out, err = run_command("filter", str(output), "--stage", stage)
    assert status == 1 and "failed: part0/film_0.mp4: filter: AssertionError: ; it stays as it was" in err, err
    assert "num_clips_filtered_by            {'first': 2}" in out, out  # the others are judged
    outputs = json.loads((output / "processed_videos" / "part0" / "film_0.mp4.json").read_text())["outputs"]
    assert outputs and all(tree(output)[place] == before[place] for place in outputs)
    place = output / next(place for place in outputs if place.startswith("metas/v0"))
    place.write_text("{")
    for run in (
        lambda: refilter(Store(output), run_options(), {}),
        lambda: dedup(Store(output), run_options(), 1, None),
    ):
        with pytest.raises(CorruptFileError, match=rf"{place.name}: not a clip's meta .*remove .*film_0\.mp4\.json"):
            run()


@pytest.mark.slow
def test_filter_goes_by_scores_that_are_there(curated: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(curated / "out", output)
    before = tree(output)
    refilter(Store(output), run_options(), {"motion_global_mean_threshold": 0.1})
    record = json.loads((output / "processed_videos" / "long.mp4.json").read_text())
    assert record["limits"] == {"first_frame": -1}  # of a stage that is not given now
    assert "limit -1: 0 below" in (output / "report.html").read_text()
    refilter(Store(output), run_options(), {"motion_global_mean_threshold": 0.00098})
    assert tree(output) == before
    own(tmp_path, 5)
    (tmp_path / "own.py").write_text((tmp_path / "own.py").read_text().replace("first", "other"))
    for flags, missing in (
        (["--motion-filter", "enable"], "6 clips have no motion_score"),
        (["--motion-filter", "score-only"], "6 clips have no motion_score"),
        (["--aesthetic-threshold", "3.5"], "6 clips have no aesthetic_score"),
        (["--vlm-filter", "enable"], "6 clips have no filtered_windows"),
        (["--stage", f"{tmp_path / 'own.py'}:First"], "6 clips have no other_frame"),
    ):
        status, _, err = run_command("filter", str(output), *flags)
        assert status == 2 and f"{output}: {missing}, and filter goes by recorded scores alone" in err, err
        assert f"curate.py split ... {' '.join(flags)} --redo changed makes them" in err and "Traceback" not in err
    for flag, value in (("aesthetic-reduction", "mean"), ("vlm-filter-categories", "cats")):  # they make other scores
        status, _, err = run_command("filter", str(output), f"--{flag}", value)
        assert status == 2 and f"unrecognized arguments: --{flag} {value}" in err
    assert tree(output) == before


def test_only_clips_that_come_to_a_filter_need_its_score() -> None:
    judge = Judge([stage for stage in build_stages(options_of(*FILTERED)) if isinstance(stage, Filter)])
    video = Video("/in/a.mp4", "a.mp4", Path("scratch"))
    video.clips = [Clip(video, 0, 1, str(number), (0.0, 1.0)) for number in range(5)]
    still, moving, failed, short, old = video.clips
    still.scores = {"motion_score": {"global_mean": 0.0, "per_patch_min_256": 0.0}}
    failed.error, short.rejected, short.rejected_by = {"stage": "motion"}, "too short", "transcode"
    moving.scores = {"motion_score": {"global_mean": 1.0, "per_patch_min_256": 1.0}, "aesthetic_score": 1.0}
    old.scores = {"motion_score": {"global_mean": 1.0, "per_patch_min_256": 1.0}}
    judge.process(video)
    assert [clip.rejected for clip in video.clips] == ["motion", "aesthetic", "", "too short", ""]
    assert judge.unanswered() == ["1 clips have no aesthetic_score"]  # it came back: motion's limit was another one


@pytest.mark.slow
def test_edited_captions_stay(curated: Path, tmp_path: Path) -> None:
    output, store = tmp_path / "out", Store(tmp_path / "out")
    shutil.copytree(curated / "out", output)
    first, *others = sorted((output / DATASET / "metas").glob("*.txt"))
    rest = {path: path.read_text() for path in others}
    first.write_text("Edited by hand.")
    refilter(store, run_options(), {})
    recaption(store, run_options(), {"captioning_algorithm": "template"}, False)
    dedup(store, run_options(), 1.0, None)
    assert first.read_text() == "Edited by hand." and rest == {path: path.read_text() for path in others}
    recaption(store, run_options(), {"captioning_algorithm": "template", "caption_template": "New."}, True)
    assert {path.read_text() for path in (first, *others)} == {"New."}


@pytest.mark.slow
def test_edited_captions_come_back_with_their_clips(curated: Path, tmp_path: Path) -> None:
    output, store = tmp_path / "out", Store(tmp_path / "out")
    shutil.copytree(curated / "out", output)
    metas, before = output / DATASET / "metas", tree(output)
    edited = {path.name: f"Edited by hand, {path.stem}." for path in metas.iterdir()}
    for name, text in edited.items():
        (metas / name).write_text(text)
    for least, left in ((100, 3), (100, 3), (-1, 7)):  # and once more, when the file is gone
        stage = own(tmp_path, least)
        refilter(store, run_options("--stage", stage), {"stage": [fingerprint(stage)]})
        assert {path.name: path.read_text() for path in metas.iterdir()}.items() <= edited.items()
        assert len([*metas.iterdir()]) == left
        known = [path.name for path in (output / "metas" / "v0").iterdir() if "edited_caption" in path.read_text()]
        assert len(known) == (3 if least == 100 else 0)  # clips, one of them with two windows
    changed = {place for place, mark in tree(output).items() if before.get(place) != mark}
    assert changed == {f"{DATASET}/metas/{name}" for name in edited}
    first = min(edited)
    (metas / first).write_text("Again.")
    for limit, texts in ((0.0, 1), (1.0, 7)):
        dedup(store, run_options(), limit, None)
        assert len([*metas.iterdir()]) >= texts
    assert (metas / first).read_text() == "Again."
    recaption(store, run_options(), {"captioning_algorithm": "template", "caption_template": "New."}, True)
    assert {path.read_text() for path in metas.iterdir()} == {"New."}


def test_what_a_stage_scores_by_is_told_from_its_limits(tmp_path: Path) -> None:
    noted = [fingerprint(own(tmp_path, 1))]
    code = (tmp_path / "own.py").read_text()
    same = code.replace("least = 1", "least = -2.5  # less") + "\n    def decide(self, item):\n        pass\n"
    other = code.replace("float(item.start)", "float(item.end)")
    version, used = f"{code}\n    version = 2\n", code.replace("float(item.start)", "float(item.start) * self.least")
    for text, found in ((same, []), (other, ["own.py:First"]), (version, ["own.py:First"]), (used, ["own.py:First"])):
        (tmp_path / "own.py").write_text(text)
        now = [fingerprint(f"{tmp_path / 'own.py'}:First")]
        assert now != noted and rescored(noted, now) == found, text
        assert rescored(without_scoring(noted), now) == []  # of an older version: not known
    assert rescored(noted, ["other.py:First sha256:0 scoring:0"]) == []


@pytest.mark.slow
def test_filter_refuses_other_scores_and_tells_what_is_lacking(tmp_path: Path) -> None:
    make_set(tmp_path / "in", 2)
    output, flags = tmp_path / "out", ["--stage", own(tmp_path, 100)]
    run_split(tmp_path / "in", output, *flags)
    before = tree(output)
    (tmp_path / "own.py").write_text((tmp_path / "own.py").read_text().replace("float(item.start)", "float(item.end)"))
    status, _, err = run_command("filter", str(output), *flags)
    assert status == 2 and ":First: other code than limits() and decide() has changed" in err, err
    assert f"curate.py split ... {' '.join(flags)} --redo changed makes them" in err and tree(output) == before
    own(tmp_path, -1)
    status, out, err = run_command("filter", str(output), *flags)
    assert status == 0 and f"2 clips have no caption: curate.py caption {output} ...\n" in out, out + err
    assert f"3 samples have no embedding: curate.py embed {output}\n" in out
    recaption(Store(output), run_options(), {}, False)
    assert lacking(Store(output)) == [f"5 samples have no embedding: curate.py embed {output}"]


@pytest.mark.slow
def test_no_shard_works_meanwhile_and_what_died_stays_known(curated: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(curated / "out", output)
    for shard in ("1/1", "2/3", REVISION):
        with (
            Records(output, {}, shard).lock(),
            pytest.raises(ConfigError, match="another process works on it; wait"),
        ):
            refilter(Store(output), run_options(), {})
    meanwhile = r"another process \(filter, caption, dedup\) works on it; wait until that has ended"
    other = ["--work-dir", str(tmp_path / "elsewhere")]  # where the locks are not
    with Records(output, {}, REVISION, tmp_path / "scratch").lock_all():
        with pytest.raises(ConfigError, match="another process works on it; wait"):
            refilter(Store(output), run_options(*other), {})
        with pytest.raises(ConfigError, match=meanwhile):
            run_split(curated / "in", output, "--shard", "4/7", *other)  # that never ran before
        status, _, err = run_command("embed", str(output), "--text_encoder", "tiny")
        assert status == 2 and re.search(meanwhile, err) and "Traceback" not in err
    with Records(output, {}).share(), Records(output, {}, "1/2").lock():  # embed, and a shard
        pass
    dead = output / ".work" / "in-hand" / "some.mp4.json"
    dead.parent.mkdir(parents=True, exist_ok=True)
    dead.write_text("{}")
    refilter(Store(output), run_options(), {})
    assert dead.read_text() == "{}"
    status, _, _ = run_command("embed", str(tmp_path / "nowhere"))
    assert status == 2 and not (tmp_path / "nowhere").exists()


@pytest.mark.slow
def test_caption_fills_in_and_replaces(tmp_path: Path) -> None:
    make_set(tmp_path / "in", 2)
    output, store = tmp_path / "out", Store(tmp_path / "out")
    run_split(tmp_path / "in", output, "--captioning-algorithm", "none")
    assert not (output / DATASET / "metas").exists()
    videos = {place: mark for place, mark in tree(output).items() if place.endswith(".mp4")}
    (tmp_path / "in" / "part1" / "film_1.txt").rename(tmp_path / "film_1.txt")
    summary, made, failed = recaption(store, run_options(), {"captioning_algorithm": "sidecar"}, False)
    assert made == 2 and len(failed) == 3 and all("no caption of part1/film_1.mp4" in why for why in failed.values())
    assert summary["num_clips_passed"] == 5 and not summary["errors"]  # a failure takes no clip away
    assert {path.read_text() for path in (output / DATASET / "metas").iterdir()} == {"Coloured blocks, film 0."}
    given = {"captioning_algorithm": "template", "caption_template": "About {stem}."}
    _, made, failed = recaption(store, run_options(), given, False)
    assert made == 3 and not failed
    texts = {path.read_text() for path in (output / DATASET / "metas").iterdir()}
    assert texts == {"Coloured blocks, film 0.", "About film_1."}
    sources = [json.loads(path.read_text())["caption_source"] for path in (output / "metas" / "v0").iterdir()]
    assert sorted(sources) == ["sidecar"] * 2 + ["template"] * 3
    assert recaption(store, run_options(), given, True)[1] == 5
    assert {path.read_text() for path in (output / DATASET / "metas").iterdir()} == {"About film_0.", "About film_1."}
    assert videos == {place: mark for place, mark in tree(output).items() if place.endswith(".mp4")}
    with pytest.raises(DataError, match="no video there that curate.py split has done"):
        recaption(Store(tmp_path / "in"), run_options(), {}, False)


@pytest.mark.slow
def test_dedup_rejects_what_repeats(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    first, other = shot(1, 130, moving=True), shot(2, 130, moving=True)
    write_video(source / "a.mp4", first, FPS)
    write_video(source / "b.mp4", other, FPS)
    brighter = np.clip(first[::1, ::2, ::2].astype(np.float32) * 1.1, 0, 255).astype(np.uint8)
    write_video(source / "c.mp4", brighter, FPS, quality=4)  # smaller, brighter, worse: the same
    still = shot(1, 130, moving=False)
    write_video(source / "d.mp4", still, FPS)  # looks like a's first frame, but stands still
    run_split(source, output, "--captioning-algorithm", "template", "--transnetv2-crop-s", "0")
    before = tree(output)
    nothing, planned = dedup(Store(output), run_options(), 0.95, None, dry=True)
    assert (
        nothing == {}
        and tree(output) == before
        and [row[1:] for row in planned] == [("c.mp4 0.0..5.4 s", "a.mp4 0.0..5.4 s")]
    )
    summary, pairs = dedup(Store(output), run_options(), 0.95, None)
    assert pairs == planned and pairs[0][0] > 0.95
    row = f"<td>c.mp4 0.0..5.4 s</td><td>{pairs[0][0]:.4f} as a.mp4 0.0..5.4 s</td>"
    assert row in (output / "report.html").read_text()
    assert summary["num_clips_filtered_by"] == {"duplicate": 1} and summary["num_clips_passed"] == 3
    record = json.loads((output / "processed_videos" / "c.mp4.json").read_text())
    (clip,) = record["clips"].values()
    (original,) = json.loads((output / "processed_videos" / "a.mp4.json").read_text())["clips"]
    assert clip["scores"]["duplicate_of"] == original and clip["scores"]["duplicate_similarity"] > 0.95
    refilter(Store(output), run_options(), {})  # knows nothing of duplicates
    assert len(kept(output)) == 3
    names = {path.stem for path in (output / "clips").iterdir()}
    vectors = tmp_path / "vectors"
    vectors.mkdir()
    for index, name in enumerate(sorted(names)):
        np.save(vectors / f"{name}.npy", np.eye(4, dtype=np.float32)[[max(index, 1)]])  # 0 and 1 are the same
    summary, _ = dedup(Store(output), run_options(), 0.99, vectors)
    assert summary["num_clips_passed"] == 3 and len({*sorted(names)[:2]} & kept(output)) == 1
    next(vectors.iterdir()).unlink()
    with pytest.raises(DataError, match=r"vectors: no embedding of clip .*expected .*\.npy"):
        dedup(Store(output), run_options(), 0.99, vectors)
    dedup(Store(output), run_options(), 1.0, None)  # nothing is more alike than that: all come back
    record = (output / "processed_videos" / "c.mp4.json").read_text()
    assert "duplicate" not in record
    after = {place: mark for place, mark in tree(output).items() if place.endswith((".mp4", ".txt"))}
    assert after == {place: mark for place, mark in before.items() if place.endswith((".mp4", ".txt"))}
    (output / "clips" / f"{original}.mp4").write_bytes(b"damaged")
    status, out, err = run_command("dedup", str(output), "--dry-run")
    assert status == 0 and out == "0 clips repeat another one\n", err
    line = f"{output}: 1 of 4 clips cannot be compared; a.mp4 0.0..5.4 s: "
    assert line in err and f"{original}.mp4" in err and err.rstrip().endswith("; they stay") and "Traceback" not in err
    np.save(vectors / f"{min(names)}.npy", np.ones((1, 4), np.float32))
    for name in names - {min(names)}:
        np.save(vectors / f"{name}.npy", np.ones((1, 5), np.float32))
    with pytest.raises(
        DataError, match=r"of 4 clips cannot be compared; .*\.npy: expected . numbers, as the first has, got"
    ):
        dedup(Store(output), run_options(), 0.99, vectors)


def test_features_tell_clips_apart() -> None:
    first, same, other = shot(1, 16, moving=True), shot(1, 16, moving=True) // 2, shot(2, 16, moving=True)
    rows = [frame_features(frames[::2]) for frames in (first, same, other, 0 * first, 0 * other)]
    assert all(row.shape == (3, 281) and np.allclose(np.linalg.norm(row, axis=1), 1, atol=1e-5) for row in rows)
    found = repeats(zip("abcde", rows, strict=True), 0.95)
    assert {name: other for name, (other, _) in found.items()} == {"b": "a", "e": "d"}


def test_a_stage_that_is_none_is_one_message(tmp_path: Path) -> None:
    make_set(tmp_path / "in", 1)
    (tmp_path / "own.py").write_text("class Other:\n    name = 'other'\nclass Late(Other): pass\n")
    for given, message in {
        "own.py:Other": r"expected FILE\.py:CLASS with a file that exists",
        f"{tmp_path}/own.py": r"expected FILE\.py:CLASS",
        f"{tmp_path}/own.py:Nothing": "AttributeError: .*Nothing",
        f"{tmp_path}/own.py:Other": r"expected a subclass of cosmos_predict\.curate\.stage\.Stage",
    }.items():
        with pytest.raises(ConfigError, match=message):
            run_split(tmp_path / "in", tmp_path / "out", "--stage", given)


def test_windows_of_a_long_clip(curated: Path) -> None:
    videos = sorted((curated / "out" / DATASET / "videos").glob("*_128_*.mp4"))
    assert videos and all(numbers(read_frames(path, [0])) != [0] for path in videos)

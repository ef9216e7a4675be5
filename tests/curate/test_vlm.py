"""Models that look: what they are shown, the endpoint against a real server, captions and filters by them."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cosmos_predict.curate.captions import by_model, enhanced
from cosmos_predict.curate.filters import SemanticFilter
from cosmos_predict.curate.records import DATASET
from cosmos_predict.curate.spans import caption_windows, shown_frames, shown_size
from cosmos_predict.curate.stage import Clip
from cosmos_predict.curate.vlm import Endpoint, build_model, final_answer, watch, yes_or_no
from cosmos_predict.data.video_reader import probe, write_video
from cosmos_predict.errors import DataError
from tests.curate.asking import FRAMES, ask, clip_of, looked_at
from tests.curate.chat_server import serving
from tests.curate.footage import FPS, film, numbers
from tests.curate.running import REPOSITORY, options_of, run_split


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return clip_of(tmp_path_factory.mktemp("clip"))


def test_what_a_model_is_shown(clip: Clip) -> None:
    frames = watch(clip, clip.windows[1], 2.0)
    assert frames.dtype == np.uint8 and frames.shape == (4, *shown_size(96, 160, 8), 3)
    small = np.stack([np.asarray(Image.fromarray(frame).resize((160, 96))) for frame in frames])
    assert numbers(small) == [60, 79, 99, 118]


def test_published_sizes() -> None:
    case = json.loads((REPOSITORY / "tests/goldens/cases/curate/caption_windows/case.json").read_text())
    for row in case["call"]["resize"]:
        assert shown_size(row["h"], row["w"], row["nframes_all_windows"]) == (row["out_h"], row["out_w"])
    for row in case["call"]["windows"]:
        windows = caption_windows(row["total_frames"], row["window_size"], row["remainder_threshold"])
        shown = [len(shown_frames(window, row["video_fps"], row["sampling_fps"])) for window in windows]
        assert shown == row["frames_per_window"]


def test_a_request_as_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
    with serving(lambda request: "  A caption. ") as server:
        model = Endpoint(server.url + "/", "auto")
        model.open()
        assert model.model == "first-model"
        assert ask(model, "Describe.", FRAMES, system="Be brief.", tokens=77) == ("  A caption. ", True)
        assert [headers["Authorization"] for headers in server.headers] == ["Bearer secret-1"] * 2
        (request,) = server.requests
    assert request["max_tokens"] == 77 and request["model"] == "first-model"
    system, user = request["messages"]
    assert system == {"role": "system", "content": "Be brief."} and user["content"][-1]["text"] == "Describe."
    shown = [part["image_url"]["url"].removeprefix("data:image/jpeg;base64,") for part in user["content"][:-1]]
    assert [Image.open(io.BytesIO(base64.b64decode(data))).size for data in shown] == [(56, 28)] * 4


def test_a_request_as_video_and_without(tmp_path: Path) -> None:
    with serving(lambda request: ("Cut", "length")) as server:
        model = Endpoint(server.url, "mine", "video")
        model.open()
        assert ask(model, "Describe.", FRAMES, fps=2.0) == ("Cut", False)
        ask(model, "Rewrite.")
        shown, text = (request["messages"][0]["content"] for request in server.requests)
    (tmp_path / "shown.mp4").write_bytes(base64.b64decode(shown[0]["video_url"]["url"].partition("base64,")[2]))
    info = probe(tmp_path / "shown.mp4")
    assert (info.frames, info.fps, info.height, info.width) == (4, 2.0, 28, 56)
    assert text == [{"type": "text", "text": "Rewrite."}]


def test_passing_failures_are_tried_again() -> None:
    with serving(lambda request: "At last.") as server:
        server.failures = [503, 429, 500]
        assert ask(Endpoint(server.url, "m", retries=3), "Hello?") == ("At last.", True)
        assert len(server.requests) == 4
        server.failures = [503, 503]
        with pytest.raises(
            ConnectionError, match=r"given up after 2 tries \(HTTP status 503: .*is --openai-base-url right"
        ):
            ask(Endpoint(server.url, "m", retries=1), "Hello?")
        server.failures = [0, 200]  # hangs up, then sends no JSON
        start = time.monotonic()
        assert ask(Endpoint(server.url, "m", retries=2), "Hello?") == ("At last.", True)
        assert time.monotonic() - start >= 3  # one and two seconds
    with pytest.raises(ConnectionError, match=r"given up after 1 tries"):
        Endpoint(server.url, "auto", retries=0).open()


def test_lasting_failures_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-2")
    with serving(lambda request: None) as server, serving(lambda request: "") as other:
        server.failures = [400]
        with pytest.raises(ConnectionError, match=r'chat/completions: HTTP status 400: .*"no thanks"'):
            ask(Endpoint(server.url, "m"), "Hello?")
        server.failures = [401]
        with pytest.raises(PermissionError, match=r"refused access; set OPENAI_API_KEY") as caught:
            Endpoint(server.url, "auto").open()
        assert "secret-2" not in str(caught.value)
        assert ask(Endpoint(server.url, "m"), "Hello?") == ("", True)
        server.redirect = other.url
        Endpoint(server.url, "auto").open()
        assert "Authorization" not in other.headers[0]  # the key is for the endpoint alone


def test_captions_by_a_model(clip: Clip) -> None:
    flags = ["--captioning-algorithm", "openai", "--openai-model", "m", "--captioning-prompt-variant", "av"]
    said: list[Any] = ["<think>Hm.</think>\n<answer>\n A road. </answer>", "", ("Half a", "length")]
    with serving(lambda request: said.pop(0)) as server:
        options = options_of(*flags, "--openai-base-url", server.url)
        captioner = by_model(build_model("openai", options), options)
        assert captioner(clip, clip.windows[0]) == "A road."
        assert "camera on a car" in server.requests[0]["messages"][0]["content"][-1]["text"]
        with pytest.raises(DataError, match="the model answered nothing"):
            captioner(clip, clip.windows[0])
        with pytest.raises(DataError, match=r"cut off at --captioning-max-output-tokens 8192 \(see --accept-truncated"):
            captioner(clip, clip.windows[0])
        said += [("Half a", "length"), "Longer.", "Other."]
        options = {**options, "accept_truncated": True, "captioning_prompt_text": "My own words."}
        options["captioning_algorithm"] = "cosmos_r1"
        assert by_model(build_model("openai", options), options)(clip, clip.windows[0]) == "Half a"
        system, user = server.requests[-1]["messages"]
        assert user["content"][-1]["text"] == "My own words."
        assert "<think>\nyour reasoning\n</think>\n\n<answer>\nyour answer\n</answer>" in system["content"]
        assert enhanced("It {moves}.", build_model("openai", options), options) == "Longer."
        assert server.requests[-1]["messages"][0]["content"][0]["text"].endswith("\n\nIt {moves}.")
        options["enhance_captions_prompt_text"] = "Translate: {caption}!"
        assert enhanced("It moves.", build_model("openai", options), options) == "Other."
        assert server.requests[-1]["messages"][0]["content"][0]["text"] == "Translate: It moves.!"


def test_answers_are_read() -> None:
    assert final_answer("Plain. ") == "Plain."
    assert final_answer("<think>a {b}</think>Text <ANSWER>x</ANSWER> y") == "x"
    assert final_answer("<answer>open") == "open"
    text = 'Sure: <answer>```json\n{"fast zoom": "Yes", "slideshow": "no", "low_resolution": true}\n```</answer>'
    assert yes_or_no(text) == {"fast_zoom": True, "slideshow": False, "low_resolution": True}
    for wrong in ("no idea", '{"a": ', ""):
        with pytest.raises(DataError, match="expected a JSON object of answers"):
            yes_or_no(wrong)


@pytest.mark.parametrize(
    ("answers", "mode", "rejected"),
    [
        (['{"fast zoom": "yes"}', '{"slideshow": "yes"}', "{}"], "enable", "qwen_semantic"),  # two of three
        (['{"fast zoom": "yes"}', "{}", "none"], "enable", ""),
        (['{"little scene dynamics": "yes"}'] * 3, "enable", ""),  # asked, and no reason
        (["?", "?", "?"], "enable", "qwen_semantic"),
        (['{"fast zoom": "yes"}'] * 3, "score-only", ""),
    ],
)
def test_semantic_filter(clip: Clip, answers: list[str], mode: str, rejected: str) -> None:
    flags = ["--qwen-filter", mode, "--captioning-window-size", "40", "--captioning-remainder-threshold", "40"]
    item, left = looked_at(clip), list(answers)
    with serving(lambda request: left.pop(0)) as server:
        stage = SemanticFilter(options_of(*flags), Endpoint(server.url, "m"))
        stage.process(item)
        asked = server.requests[0]["messages"][0]["content"][-1]["text"]
    assert item.rejected == rejected and len(re.findall(r"^\w[\w -]+: ", asked, re.M)) == 14
    notes = item.scores["filtered_windows"]
    assert [(note["start_frame"], note["end_frame"]) for note in notes] == [(0, 39), (40, 79), (80, 119)]
    assert ("errors" in notes[2]) == (answers[2] in ("?", "none"))
    again = Clip(clip.video, 0, 120, "id", (0.0, 5.0), scores=item.scores)
    stage.decide(again)
    assert again.rejected == rejected


def test_own_categories(clip: Clip) -> None:
    with serving(lambda request: '{"cats": "no", "red cars": "yes", "animation": "yes"}') as server:
        model = Endpoint(server.url, "m")
        item = looked_at(clip)
        SemanticFilter(
            options_of("--vlm-filter", "enable", "--vlm-filter-categories", "cats, red cars"), model
        ).process(item)
        assert item.rejected == "qwen_semantic" and item.scores["filtered_windows"][0]["qwen_rejection_reasons"] == [
            "red cars"
        ]
        assert "cats: Does it show cats?\nred cars: " in server.requests[0]["messages"][0]["content"][-1]["text"]


@pytest.mark.slow
def test_split_with_an_endpoint(tmp_path: Path) -> None:
    """Filter, captions and enhancement by one server; the dataset has what was asked for."""
    write_video(tmp_path / "in" / "a.mp4", film([125, 125], seed=3), FPS)

    def reply(request: dict[str, Any]) -> str:
        text = request["messages"][-1]["content"][-1]["text"]
        return "{}" if "yes or no" in text else "A better caption." if "Rewrite" in text else "A caption."

    model = ["--enhance-captions-lm-variant", "openai", "--vlm-filter-model-variant", "openai"]
    flags = ["--captioning-algorithm", "openai", "--enhance-captions", "--vlm-filter", "enable", *model]
    with serving(reply) as server:
        flags += ["--openai-base-url", server.url]
        summary = run_split(tmp_path / "in", tmp_path / "out", *flags, "--dataset-caption", "enhanced")
    assert summary["num_clips_passed"] == 2 and not summary["errors"]
    assert {path.read_text() for path in (tmp_path / "out" / DATASET / "metas").iterdir()} == {"A better caption."}
    meta = json.loads(next((tmp_path / "out" / "metas" / "v0").iterdir()).read_text())
    assert meta["windows"][0]["openai_caption"] == "A caption."
    assert meta["windows"][0]["openai_enhanced_caption"] == "A better caption."
    assert meta["filtered_windows"][0]["qwen_rejection_reasons"] == []
    with pytest.raises(
        ConnectionError, match=r"given up after 1 tries .* is --openai-base-url right"
    ):  # the server is gone
        run_split(tmp_path / "in", tmp_path / "other", *flags, "--openai-max-retries", "0")

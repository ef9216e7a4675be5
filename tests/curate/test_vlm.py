"""Models that look: the endpoint against a real server, vLLM's server, transformers with a tiny Qwen2.5-VL; captions by them."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cosmos_predict.curate.captions import by_model, enhanced
from cosmos_predict.curate.filters import SemanticFilter
from cosmos_predict.curate.media import Footage
from cosmos_predict.curate.records import DATASET
from cosmos_predict.curate.spans import caption_windows, shown_frames, shown_size
from cosmos_predict.curate.stage import Clip, Video, Window
from cosmos_predict.curate.stages import Caption, build_stages
from cosmos_predict.curate.vlm import Endpoint, Local, Model, Server, build_model, final_answer, watch, yes_or_no
from cosmos_predict.data.video_reader import probe, write_video
from cosmos_predict.errors import ConfigError, DataError, MissingDependencyError, UnavailableError
from tests.curate.chat_server import serving
from tests.curate.footage import FPS, film, numbers
from tests.curate.running import REPOSITORY, options_of, run_split


def ask(model: Model, prompt: str, frames: Any = None, fps: float = 2.0, system: str = "", tokens: int = 8192) -> Any:
    return model.answer(prompt, frames, fps, system, tokens)[:2]


FRAMES = np.arange(4 * 28 * 56 * 3, dtype=np.uint8).reshape(4, 28, 56, 3)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, film([120], seed=1), FPS)
    video = Video(str(path), path.name, path.parent, footage=Footage(facts={"framerate": FPS}))
    return Clip(video, 0, 120, "id", (0.0, 5.0), path, 120, [Window(0, 59), Window(60, 119)])


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


def looked_at(clip: Clip) -> Clip:
    return Clip(clip.video, 0, 120, "id", (0.0, 5.0), clip.path, 120)


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


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `vllm` in the path whose `serve` is the test server."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncd {REPOSITORY}\nexec {sys.executable} -m tests.curate.chat_server "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def test_vllm_is_started_shared_and_ended(vllm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nvidia" / "Cosmos-Reason1-7B"
    folder.mkdir(parents=True)
    model = build_model(
        "cosmos_r1", options_of("--model-weights-path", str(tmp_path), "--qwen-num-gpus-per-worker", "2")
    )
    assert isinstance(model, Server)
    model.open()
    model.open()  # by another stage
    said, whole = ask(model, "Hello?", FRAMES)
    assert whole and said.startswith(f"{folder} serve {folder} ") and "--tensor-parallel-size 2" in said
    process = model.process
    model.close()
    assert process is not None and process.poll() is None and ask(model, "Still?")[1]
    model.close()
    assert process.poll() is not None
    (tmp_path / "broken").mkdir()
    broken = Server(tmp_path / "broken")
    with pytest.raises(UnavailableError, match=r"vllm serve .*broken ended with status 1: .*out of memory"):
        broken.open()


@pytest.mark.parametrize(
    ("seen", "gpus", "expected"),
    [
        ("", "1", [("0.42", ""), ("0.42", "")]),  # one GPU, or none that is known
        ("3", "1", [("0.42", "3"), ("0.42", "3")]),
        ("4,5,6", "1", [("0.85", "4,6"), ("0.85", "5")]),  # the first in two copies
        ("0,1,2,3", "2", [("0.85", "0,1"), ("0.85", "2,3")]),
        ("0,1,2", "2", [("0.42", "0,1,2"), ("0.42", "0,1,2")]),
    ],
)
def test_two_models_share_the_gpus(
    vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: str, gpus: str, expected: list[tuple[str, str]]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    vllm.write_text(vllm.read_text().replace("exec", f'echo "$CUDA_VISIBLE_DEVICES $@" >> {tmp_path}/starts\nexec'))
    flags = ["--captioning-algorithm", "cosmos_r1", "--qwen-filter", "enable", "--model-weights-path", str(tmp_path)]
    *_, semantic, caption = build_stages(options_of(*flags, "--qwen-num-gpus-per-worker", gpus))
    (tmp_path / "Qwen" / "Qwen2.5-VL-7B-Instruct").mkdir(parents=True)
    with pytest.raises(ConfigError, match="Cosmos-Reason1-7B: no weights there"):
        semantic.setup()  # though its own are there
    assert not (tmp_path / "starts").exists()
    (tmp_path / "nvidia" / "Cosmos-Reason1-7B").mkdir(parents=True)
    for stage in (semantic, caption):
        stage.setup()
    for stage in (semantic, caption):
        stage.teardown()
    lines = (tmp_path / "starts").read_text().splitlines()
    started = [(line.partition("utilization ")[2].split()[0], line.partition(" serve")[0]) for line in lines]
    assert started == expected
    copies = [line.partition("--data-parallel-size ")[2] or "1" for line in lines]
    assert copies == ["2" if seen == "4,5,6" and number == 0 else "1" for number in range(2)]


def test_a_model_alone_has_the_gpu(vllm: Path, tmp_path: Path) -> None:
    flags = ["--captioning-algorithm", "qwen", "--qwen-filter", "enable", "--model-weights-path", str(tmp_path)]
    *_, semantic, caption = build_stages(options_of(*flags))
    (server,) = caption.models
    assert isinstance(server, Server) and [server] == semantic.models == server.together
    (tmp_path / "Qwen" / "Qwen2.5-VL-7B-Instruct").mkdir(parents=True)
    server.open()
    assert "--gpu-memory-utilization 0.85 " in ask(server, "Hello?")[0]
    server.close()


def test_vllm_ends_with_the_run_that_started_it(vllm: Path, tmp_path: Path) -> None:
    code = f"m = Server(Path({str(tmp_path)!r})); m.open(); print(m.process.pid, flush=True); time.sleep(99)"
    code = f"from cosmos_predict.curate.vlm import *; {code}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as run:
        assert run.stdout is not None
        server = int(run.stdout.readline())
        run.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not Path(f"/proc/{server}").exists() or " Z " in Path(f"/proc/{server}/stat").read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the server is still there")


def test_what_is_absent_is_named(vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in ("vllm", "transformers"):
        flags = ["--captioning-algorithm", "cosmos_r1", "--captioning-backend", backend]
        with pytest.raises(
            ConfigError, match=r"Cosmos-Reason1-7B: no weights there; .*models\.py --models cosmos_reason1 "
        ):
            Caption(options_of(*flags, "--model-weights-path", str(tmp_path))).setup()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MissingDependencyError, match=r"no program vllm: pip install vllm, or --captioning-backend transformers"
    ):
        Server(tmp_path).open()


@pytest.fixture(scope="module")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL with random weights, whose tokens are bytes, as a folder that transformers loads."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    folder = tmp_path_factory.mktemp("weights") / "Qwen" / "Qwen2.5-VL-7B-Instruct"
    special = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    base.pre_tokenizer, base.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    base.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in special}
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    pictures, videos = Qwen2VLImageProcessor(), Qwen2VLVideoProcessor()
    processor = Qwen2_5_VLProcessor(pictures, tokenizer, videos, chat_template=template)
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 4096}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}}
    text |= {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"], "bos_token_id": None}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    tokens = {"video_token_id": ids["<|video_pad|>"], "image_token_id": ids["<|image_pad|>"]}
    tokens |= {"vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config={**vision, "fullatt_block_indexes": [1]}, **tokens)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_transformers_with_a_tiny_model(tiny_qwen: Path, clip: Clip) -> None:
    flags = ["--captioning-backend", "transformers", "--model-weights-path", str(tiny_qwen.parents[1])]
    options = options_of(
        *flags, "--captioning-algorithm", "qwen", "--captioning-max-output-tokens", "6", "--accept-truncated"
    )
    model = build_model("qwen", options)
    assert isinstance(model, Local)
    model.open()
    frames = watch(clip, clip.windows[0])
    one = ask(model, "Describe.", frames, system="Be brief.", tokens=6)
    assert isinstance(one[0], str) and not one[1]  # random weights do not come to an end
    assert ask(model, "Describe.", frames, system="Be brief.", tokens=6) == one  # nothing is drawn
    assert ask(model, "Describe.", 255 - frames, system="Be brief.", tokens=6) != one  # it looks
    assert ask(model, "Rewrite: A caption.", tokens=6)[0] != one[0]  # without frames
    stage, item = Caption(options), looked_at(clip)
    assert stage.workers == 1
    stage.setup()
    stage.process(item)
    assert item.windows[0].caption == final_answer(ask(model, *caption_request(item), tokens=6)[0])


def caption_request(item: Clip) -> tuple[str, np.ndarray]:
    from cosmos_predict.curate.vlm import prompts

    return prompts()["caption"]["default"], watch(item, item.windows[0])

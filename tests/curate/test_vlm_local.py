"""Models on this machine: vLLM's server, on its GPUs, and transformers with a tiny Qwen2.5-VL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmos_predict.curate.stage import Clip
from cosmos_predict.curate.stages import Caption, build_stages
from cosmos_predict.curate.vlm import Local, Server, build_model, final_answer, watch
from cosmos_predict.errors import ConfigError, MissingDependencyError, UnavailableError
from tests.curate.asking import FRAMES, ask, clip_of, looked_at
from tests.curate.running import REPOSITORY, options_of


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return clip_of(tmp_path_factory.mktemp("clip"))


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
    tokens: dict[str, Any] = {"video_token_id": ids["<|video_pad|>"], "image_token_id": ids["<|image_pad|>"]}
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
    stage.setup()
    assert stage.workers == 1
    stage.process(item)
    assert item.windows[0].caption == final_answer(ask(model, *caption_request(item), tokens=6)[0])


def caption_request(item: Clip) -> tuple[str, np.ndarray]:
    from cosmos_predict.curate.vlm import prompts

    return prompts()["caption"]["default"], watch(item, item.windows[0])

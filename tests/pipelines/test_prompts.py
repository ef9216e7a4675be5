"""Prompts from text, files and embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.embeddings import write_embedding
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.pipelines.prompts import encode_prompts, encoder_mark, read_prompt

NET = DiTConfig(model_channels=32, num_blocks=1, num_heads=2)
REASON1 = NET.replace(crossattn_proj_in_channels=64)


def test_a_prompt_is_text_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("  a red block\n")
    write_embedding(tmp_path / "prompt.npy", np.ones((3, 1024), np.float32))
    for text in ("a red block. Read me.txt.", "", "It sorts apples/pears. " * 99):
        assert read_prompt(text) == text
    assert read_prompt(str(tmp_path / "prompt.txt")) == "a red block"
    assert read_prompt(str(tmp_path / "prompt.npy")) == tmp_path / "prompt.npy"
    spaced = tmp_path / "my dir" / "my prompt.TXT"
    spaced.parent.mkdir()
    spaced.write_bytes("\ufeffa blue block".encode())
    assert read_prompt(str(spaced)) == "a blue block"
    for lost in ("lost.safetensors", f"{spaced.parent}/lost.txt", "one of my prompts.npy", "x" * 5000 + ".txt"):
        with pytest.raises(FileNotFoundError, match=rf"no file {lost}: a prompt is text, .* put a full stop behind it"):
            read_prompt(lost)
    spaced.write_bytes(b"a block\nin caf\xe9")
    with pytest.raises(
        DataError, match=r"my prompt.TXT: no UTF-8 text at line 2, byte 14 of the file \(0xe9\); save it"
    ):
        read_prompt(str(spaced))


def test_the_mark_of_a_text_encoder(tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    folder.mkdir()
    for name, content in (("config.json", '{"model_type": "t5"}'), ("model.safetensors", "12"), ("spiece.model", "1")):
        (folder / name).write_text(content)
    mark = encoder_mark(str(folder))
    (folder / "README.md").write_text("of no matter")
    assert mark.startswith("sha256:") and encoder_mark(str(folder)) == mark and encoder_mark("tiny") == ""
    for name, content in (("config.json", '{"model_type": "t5", "d": 1}'), ("model.safetensors", "123")):
        (folder / name).write_text(content)
        assert encoder_mark(str(folder)) != mark
        mark = encoder_mark(str(folder))
    (folder / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    assert encoder_mark(str(folder)) != mark
    with pytest.raises(FileNotFoundError, match="no Cosmos-Reason1 folder lost/for/ever/reason1"):
        encoder_mark("lost/for/ever/reason1")


def test_texts_and_files_become_what_the_network_takes(tmp_path: Path) -> None:
    path = tmp_path / "prompt.npy"
    write_embedding(path, np.ones((3, 1024), np.float32))
    found = encode_prompts(["a block", path, ""], NET, "tiny")
    assert {embedding.shape for embedding in found.values()} == {(1, 512, 1024)}
    assert int(found[path].any(-1).sum()) == 3
    with pytest.raises(ConfigError, match="text encoder tiny: an embedding 1024 wide, the network takes 64"):
        encode_prompts(["a block"], REASON1, "tiny")
    published = NET.replace(crossattn_proj_in_channels=100352)
    made = r"takes 100352, as cosmos_reason1 makes it \(--text_encoder\)"
    with pytest.raises(ConfigError, match=rf"prompt.npy: an embedding 1024 wide, the network {made}"):
        encode_prompts([path], published, "cosmos_reason1")


def test_no_text_for_cosmos_reason1_is_zeros_without_the_encoder() -> None:
    assert torch.equal(encode_prompts([""], REASON1, "cosmos_reason1")[""], torch.zeros(1, 512, 64))
    with pytest.raises(FileNotFoundError, match="no Cosmos-Reason1 folder lost/for/ever/reason1, and no Hugging Face"):
        encode_prompts(["a block", ""], REASON1, "lost/for/ever/reason1")

"""Prompts from text, files and embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_predict.errors import ConfigError
from cosmos_predict.io.embeddings import write_embedding
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.pipelines.prompts import encode_prompts, read_prompt

NET = DiTConfig(model_channels=32, num_blocks=1, num_heads=2)
REASON1 = NET.replace(crossattn_proj_in_channels=64)


def test_a_prompt_is_text_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("  a red block\n")
    write_embedding(tmp_path / "prompt.npy", np.ones((3, 1024), np.float32))
    assert read_prompt("a red block. Read me.txt") == "a red block. Read me.txt" and read_prompt("") == ""
    assert read_prompt(str(tmp_path / "prompt.txt")) == "a red block"
    assert read_prompt(str(tmp_path / "prompt.npy")) == tmp_path / "prompt.npy"
    with pytest.raises(FileNotFoundError, match=r"no file lost.safetensors: a prompt is text"):
        read_prompt("lost.safetensors")


def test_texts_and_files_become_what_the_network_takes(tmp_path: Path) -> None:
    path = tmp_path / "prompt.npy"
    write_embedding(path, np.ones((3, 1024), np.float32))
    found = encode_prompts(["a block", path, ""], NET, "tiny")
    assert {embedding.shape for embedding in found.values()} == {(1, 512, 1024)}
    assert int(found[path].any(-1).sum()) == 3
    with pytest.raises(ConfigError, match="text encoder tiny: an embedding 1024 wide, the network takes 64"):
        encode_prompts(["a block"], REASON1, "tiny")
    with pytest.raises(ConfigError, match=r"prompt.npy: an embedding 1024 wide, the network takes 64"):
        encode_prompts([path], REASON1, "reason1")


def test_an_encoder_that_is_not_here() -> None:
    assert torch.equal(encode_prompts([""], REASON1, "reason1")[""], torch.zeros(1, 512, 64))
    with pytest.raises(ConfigError, match=r"Cosmos-Reason1, which is not built here: give --prompt FILE .*\(n, 64\)"):
        encode_prompts(["a block"], REASON1, "reason1")

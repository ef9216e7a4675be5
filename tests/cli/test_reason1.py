"""Cosmos-Reason1 from captions to training and to clips, through the commands, with a small random one in a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from loguru import logger
from safetensors.torch import save_file

from cosmos_predict.cli import get_t5_embeddings
from cosmos_predict.config.compose import compose
from cosmos_predict.data import video_reader
from cosmos_predict.errors import ConfigError, DataError
from cosmos_predict.io.embeddings import read_embedding
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.text_encoders.build import build_text_encoder
from cosmos_predict.training.trainer import Trainer
from tests.cli.generating import run
from tests.pipelines.small import write_clip
from tests.pipelines.test_load import write_net
from tests.text_encoders.reason1_folder import WIDTH, make_folder

pytest.importorskip("transformers")
NET = DiTConfig(
    model_channels=32,
    num_blocks=1,
    num_heads=2,
    adaln_lora_dim=8,
    crossattn_emb_channels=16,
    crossattn_proj_in_channels=WIDTH,
)
PROMPT = "a robot arm lifts a red block"
TRAIN = ["experiment=tiny_video2world", "debug=true", "trainer.max_iter=1"]
TEXT = "model.config.pipe_config.text_encoder"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("reason1"))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_clip(tmp_path / "data" / "videos" / "a.mp4")
    (tmp_path / "data" / "metas").mkdir()
    (tmp_path / "data" / "metas" / "a.txt").write_text(PROMPT)
    return tmp_path / "data"


def embed(dataset: Path, *options: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        get_t5_embeddings.main(["--dataset_path", str(dataset), "--device", "cpu", *map(str, options)])
    return int(stopped.value.code or 0)


def train(root: Path, dataset: Path, *overrides: str) -> Trainer:
    given = [*TRAIN, f"dataloader_train.dataset.dataset_dir={dataset}", f"job.root={root}", *overrides]
    config = compose(given, report=[])
    config.validate()
    config.freeze()
    trainer = Trainer(config, device="cpu")
    trainer.train()
    return trainer


def test_captions_become_files_and_prompts(folder: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reason1 = ("--text_encoder", "cosmos_reason1", "--dtype", "float32", "--format", "safetensors")
    assert embed(dataset, *reason1, "--pretrained_model_name_or_path", folder) == 0
    out = capsys.readouterr().out
    assert "1 written, 0 skipped" in out and "fill all" not in out
    file = dataset / "t5_xxl" / "a.safetensors"
    found, expected = read_embedding(file, width=None), build_text_encoder(folder, "float32", "cpu").encode([PROMPT])[0]
    assert found.shape == (512, WIDTH)
    np.testing.assert_allclose(found, expected[0].half().numpy(), rtol=0, atol=2e-3)
    assert json.loads((dataset / "t5_xxl.json").read_text())["text_encoder"] == "cosmos_reason1"
    assert embed(dataset, *reason1, "--cache_dir", folder) == 0 and "0 written, 1 skipped" in capsys.readouterr().out
    assert embed(dataset, "--text_encoder", "tiny") == 2
    assert "made by the text encoder 'cosmos_reason1', --text_encoder is 'tiny'" in capsys.readouterr().err
    assert embed(dataset, "--pretrained_model_name_or_path", folder) == 2
    assert "is a cosmos_reason1, --text_encoder is t5: give --text_encoder cosmos_reason1" in capsys.readouterr().err


def test_a_predict25_checkpoint_reads_prompts_through_it(
    folder: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "checkpoints" / "nvidia" / "Cosmos-Reason1.1-7B")
    file = write_net(tmp_path / "base" / "pre-trained" / "a.safetensors", NET, scale=0.3)
    given = [
        "--dit_path",
        file,
        "--tokenizer_path",
        "dct",
        "--input_path",
        dataset / "videos" / "a.mp4",
        "--device",
        "cpu",
    ]
    given += ["--num_frames", 5, "--size", 32, 48, "--num_steps", 2]
    run("video2world", *given, "--prompt", PROMPT, "--save_path", tmp_path / "default.mp4")
    arguments = json.loads((tmp_path / "default.json").read_text())["arguments"]
    assert arguments["negative_prompt"].startswith("A poor recording")
    assert arguments["text_encoder"] == "cosmos_reason1"  # the model's own, by its name
    run("video2world", *given, "--prompt", PROMPT, "--text_encoder", folder, "--save_path", tmp_path / "folder.mp4")
    assert (tmp_path / "default.mp4").read_bytes() == (tmp_path / "folder.mp4").read_bytes()
    run("video2world", *given, "--prompt", "another", "--save_path", tmp_path / "other.mp4")
    assert (tmp_path / "default.mp4").read_bytes() != (tmp_path / "other.mp4").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    save_file({"t5_xxl": torch.randn(512, WIDTH).bfloat16()}, tmp_path / "text.safetensors")  # no encoder is needed
    run("video2world", *given, "--prompt", tmp_path / "text.safetensors", "--save_path", tmp_path / "file.mp4")
    assert json.loads((tmp_path / "file.json").read_text())["arguments"]["negative_prompt"] == ""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    run("video2world", *given, "--negative_prompt", "", "--save_path", tmp_path / "none.mp4")
    logger.remove(sink)
    assert any("none.mp4: the prompt is empty, nothing but the input says what happens" in line for line in lines)
    assert len(video_reader.read_frames(tmp_path / "none.mp4", range(5))) == 5
    with pytest.raises(ConfigError, match=f"text encoder tiny: an embedding 1024 wide, the network takes {WIDTH}"):
        run("video2world", *given, "--prompt", PROMPT, "--text_encoder", "tiny", "--save_path", tmp_path / "no.mp4")


def test_training_encodes_captions_with_it(folder: Path, dataset: Path, tmp_path: Path) -> None:
    width = f"model.config.pipe_config.net.crossattn_proj_in_channels={WIDTH}"
    text = ["text=cosmos_reason1", f"dataloader_train.dataset.text_encoder.name_or_path={folder}"]
    trainer = train(tmp_path / "runs", dataset, width, *text, f"{TEXT}=cosmos_reason1")
    assert trainer.progress.iteration == 1
    given = ["--dit_path", trainer.folder.root, "--input_path", dataset / "videos" / "a.mp4", "--device", "cpu"]
    run(
        "video2world", *given, "--num_steps", 1, "--prompt", PROMPT, "--text_encoder", folder, "--save_path",
        tmp_path / "clip.mp4",
    )  # fmt: skip
    assert (tmp_path / "clip.mp4").is_file()


def test_training_reads_files_of_its_width(dataset: Path, tmp_path: Path) -> None:
    (dataset / "t5_xxl").mkdir()
    save_file({"t5_xxl": torch.randn(2, 100352).bfloat16()}, dataset / "t5_xxl" / "a.safetensors")
    net = "model.config.pipe_config.net"
    overrides = [
        f"{net}.crossattn_proj_in_channels=100352",
        f"{net}.crossattn_emb_channels=12",
        f"{TEXT}=cosmos_reason1",
    ]
    assert train(tmp_path / "runs", dataset, *overrides).progress.iteration == 1
    with pytest.raises(
        ConfigError, match=r"embeddings are 100352 wide, the network takes 1024: make them with --text_enc"
    ):
        train(tmp_path / "other", dataset)
    (dataset / "t5_xxl.json").write_text('{"text_encoder": "t5"}')
    with pytest.raises(DataError, match="made by the text encoder 't5', .*text_encoder is 'cosmos_reason1'"):
        train(tmp_path / "mixed", dataset, *overrides, "job.debug=false")

"""Every registered experiment composes, survives a round trip through its file, and trains in its debug form."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmos_predict.config.compose import compose
from cosmos_predict.config.files import config_hash, load_config, save_config
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.config.registry import list_experiments
from cosmos_predict.models.published import PUBLISHED, published_config
from cosmos_predict.training.trainer import Trainer

NAMES = [name for name, _ in list_experiments()]


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_through_a_file(name: str, tmp_path: Path) -> None:
    config = compose([f"experiment={name}"], report=[])
    config.validate()
    save_config(config, tmp_path / "config.yaml")
    assert config_hash(load_config(tmp_path / "config.yaml")) == config_hash(config)


@pytest.mark.parametrize("name", NAMES)
def test_debug_form_trains_two_updates(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path))
    report: list[str] = []
    config = compose([f"experiment={name}", "debug=true", "data=synthetic"], report=report)
    config.validate()
    config.freeze()
    assert any("model_channels" in line for line in report)
    assert Trainer(config, device="cpu").train().iteration == 2


def test_debug_keeps_the_dataset() -> None:
    report: list[str] = []
    config = compose(["experiment=tiny_video2world", "debug=true"], report=report)
    assert config.dataloader_train is not None
    assert config.dataloader_train.dataset.dataset_dir == "datasets/robot_arm"
    assert any("still reads datasets/robot_arm" in line for line in report)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_published_model_is_a_choice(name: str) -> None:
    config = compose(["experiment=predict2_video2world_training_2b_cosmos_nemo_assets", f"model={name}"], report=[])
    assert config.model is not None
    pipe = instantiate(config.model.config).pipe_config
    assert pipe.net == published_config(name) and pipe.family == PUBLISHED[name].family

"""Every registered experiment composes, survives a round trip through its file, and trains in its debug form."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmos_predict.config.compose import compose
from cosmos_predict.config.files import config_hash, load_config, save_config
from cosmos_predict.config.registry import list_experiments
from cosmos_predict.errors import ConfigError
from cosmos_predict.training.trainer import Trainer
from tests.parallel.ranks import check, run_ranks

NAMES = [name for name, _ in list_experiments()]
FAST = ("tiny_video2world", "predict2_text2image_training_2b_cosmos_nemo_assets")  # the others with --all


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_through_a_file(name: str, tmp_path: Path) -> None:
    config = compose([f"experiment={name}"], report=[])
    config.validate()
    save_config(config, tmp_path / "config.yaml")
    assert config_hash(load_config(tmp_path / "config.yaml")) == config_hash(config)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in NAMES])
def test_debug_form_trains_two_updates(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path))
    report: list[str] = []
    config = compose([f"experiment={name}", "debug=true", "data=synthetic"], report=report)
    config.validate()
    config.freeze()
    assert any("model_channels" in line for line in report)
    assert Trainer(config, device="cpu").train().iteration == 2


def test_published_choices_of_optimizer_and_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fusedadamw`, `constant` and `lambdalinear`, over an experiment with numbers of its own and one without."""
    name = "experiment=predict2_video2world_training_2b_cosmos_nemo_assets"
    plain = compose([name], report=[])
    assert config_hash(compose([name, "optimizer=fusedadamw", "scheduler=lambdalinear"], report=[])) == config_hash(
        plain
    )
    constant = compose([name, "scheduler=constant"], report=[])
    assert constant.scheduler is not None and constant.scheduler.keys() == {"_target_"}
    linear = compose(["experiment=tiny_video2world", "scheduler=constant", "scheduler=lambdalinear"], report=[])
    assert linear.scheduler is not None
    numbers = {"warm_up_steps": [1000], "cycle_lengths": [10**13], "f_start": [1e-6], "f_max": [1.0], "f_min": [1.0]}
    assert {key: value for key, value in linear.scheduler.items() if key != "_target_"} == numbers
    with pytest.raises(ConfigError, match=r"scheduler=linear: did you mean .*lambdalinear"):
        compose([name, "scheduler=linear"], report=[])
    with pytest.raises(ConfigError, match=r"unknown config key 'scheduler\.f_max'"):
        compose([name, "scheduler=constant", "scheduler.f_max=[0.5]"], report=[])
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path))
    settings = ["debug=true", "data=synthetic", "scheduler=constant", "optimizer=fusedadamw", "optimizer.lr=3e-4"]
    trainer = Trainer(compose([name, *settings], report=[]), device="cpu")
    assert trainer.train().iteration == 2
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [3e-4]


def test_debug_keeps_the_dataset() -> None:
    report: list[str] = []
    name = "predict2_video2world_training_2b_cosmos_nemo_assets"
    config = compose([f"experiment={name}", "debug=true"], report=report)
    assert config.dataloader_train is not None
    assert config.dataloader_train.dataset.dataset_dir == "datasets/cosmos_nemo_assets"
    assert any("reads datasets/cosmos_nemo_assets" in line for line in report)


@pytest.mark.slow
def test_debug_on_two_processes_shares_clips_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 14B's mesh of 32 ranks, 8 to a clip, lowered to what two processes, 8 heads and 4 latent frames allow."""
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path))
    name = "predict2_video2world_training_14b_cosmos_nemo_assets"
    arguments = ["--", f"experiment={name}", "debug=true", "data=synthetic", "dataloader_train.dataset.num_frames=13"]
    processes = run_ranks("train", *arguments, ranks=2)
    check(processes)
    log = processes[0].stderr
    assert "context_parallel_size: 8 -> 2 (the largest that divides 2 processes, 8 heads, 4 latent frames)" in log
    assert "fsdp_shard_size: 32 -> 2" in log
    assert "2 rank(s): weights 1 replicas x 2 shards, samples 1 data x 2 context" in log
    run = tmp_path / "posttraining/video2world/14b_cosmos_nemo_assets_debug"
    assert (run / "checkpoints/model/iter_000000002.pt").is_file()

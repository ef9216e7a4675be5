"""The training loop: resume bit for bit, killed runs, refusals, published files. Real runs of the tiny experiment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cosmos_predict.checkpoint.run_folder import RunFolder, find_run_folder
from cosmos_predict.checkpoint.run_state import SavedState
from cosmos_predict.config.compose import compose
from cosmos_predict.config.schema import Config
from cosmos_predict.errors import CheckpointError, ConfigError, CorruptFileError
from cosmos_predict.training.checks import accumulation_steps
from cosmos_predict.training.trainer import Trainer

REPOSITORY = Path(__file__).parents[2]
BASE = ["experiment=tiny_video2world", "data=synthetic", "debug=true", "trainer.logging_iter=1"]


def config_for(root: Path, *overrides: str) -> Config:
    os.environ["OUTPUT_ROOT"] = str(root)
    try:
        config = compose([*BASE, *overrides], report=[])
        config.validate()
        config.freeze()
        path = config.job.path_local
    finally:
        del os.environ["OUTPUT_ROOT"]
    assert path.startswith(str(root))
    return config


def run(root: Path, *overrides: str) -> Trainer:
    config = config_for(root, *overrides)
    os.environ["OUTPUT_ROOT"] = str(root)
    try:
        trainer = Trainer(config, device="cpu")
        trainer.train()
    finally:
        del os.environ["OUTPUT_ROOT"]
    return trainer


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return state_at_newest(trainer.folder)


def state_at_newest(folder: RunFolder) -> dict[str, torch.Tensor]:
    iteration = folder.newest()
    assert iteration is not None
    with SavedState(folder, iteration) as saved:
        kinds = ("weights", "ema", "optimizer", "rng")
        return {f"{kind}:{name}": saved.read(kind, name) for kind in kinds for name in saved.names(kind)}


def test_resume_is_bit_identical(tmp_path: Path) -> None:
    whole = state_of(run(tmp_path / "whole", "trainer.max_iter=4", "checkpoint.save_iter=2"))
    run(tmp_path / "parts", "trainer.max_iter=2", "checkpoint.save_iter=2")
    parts = state_of(run(tmp_path / "parts", "trainer.max_iter=4", "checkpoint.save_iter=2"))
    assert whole.keys() == parts.keys()
    different = [name for name in whole if not torch.equal(whole[name], parts[name])]
    assert not different


def test_global_batch_does_not_depend_on_accumulation(tmp_path: Path) -> None:
    split = run(tmp_path / "a", "dataloader_train.batch_size=1", "trainer.global_batch_size=2", "trainer.max_iter=2")
    whole = run(tmp_path / "b", "dataloader_train.batch_size=2", "trainer.global_batch_size=2", "trainer.max_iter=2")
    assert split.accumulation == 2 and whole.accumulation == 1
    for (name, a), (_, b) in zip(split.model.named_parameters(), whole.model.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_published_file_holds_bf16_weights_and_fp32_ema(tmp_path: Path) -> None:
    trainer = run(tmp_path, "trainer.max_iter=2")
    path = trainer.folder.exports(2)["both"]
    state = torch.load(path, weights_only=True)
    weights = {key: value for key, value in state.items() if key.startswith("net.")}
    ema = {key: value for key, value in state.items() if key.startswith("net_ema.")}
    assert weights and {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert len(ema) == len(weights) and {value.dtype for value in ema.values()} == {torch.float32}
    name = "net.final_layer.linear.weight"
    torch.testing.assert_close(
        state[name].float(), dict(trainer.model.named_parameters())[name].detach(), rtol=1e-2, atol=1e-6
    )
    assert (trainer.folder.checkpoints / "latest_checkpoint.txt").read_text() == "iter_000000002.pt\n"


def test_predict1_layout_writes_its_two_files(tmp_path: Path) -> None:
    net = "model.config.pipe_config.net"  # Predict1 has no name for a text projection
    plain = [f"{net}.crossattn_proj_in_channels=null", f"{net}.crossattn_emb_channels=1024"]
    trainer = run(tmp_path, "trainer.max_iter=1", "checkpoint=predict1", *plain)
    reg, ema = (trainer.folder.checkpoints / f"iter_000000001_{part}_model.pt" for part in ("reg", "ema"))
    keys = set(torch.load(reg, weights_only=True))
    assert "net.blocks.block0.blocks.0.block.attn.to_q.0.weight" in keys
    assert keys == set(torch.load(ema, weights_only=True))
    assert (trainer.folder.checkpoints / "state" / "trainer" / "iter_000000001" / "index.json").is_file()
    found = find_run_folder(trainer.folder.root)
    assert found is not None and found.layout == "predict1"


def test_layout_without_a_name_for_a_tensor_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="crossattn_proj.0.weight"):
        run(tmp_path, "trainer.max_iter=1", "checkpoint=predict1")
    assert not (config_path(tmp_path) / "metrics.jsonl").exists()


def test_missing_export_is_made_again(tmp_path: Path) -> None:
    path = run(tmp_path, "trainer.max_iter=1").folder.exports(1)["both"]
    content = path.read_bytes()
    path.unlink()
    run(tmp_path, "trainer.max_iter=1")
    assert path.read_bytes() == content


def test_keep_last_k_counts_state_and_exports(tmp_path: Path) -> None:
    trainer = run(tmp_path, "trainer.max_iter=3", "checkpoint.save_iter=1", "checkpoint.keep_last_k=2")
    assert trainer.folder.iterations() == [2, 3]
    assert sorted(path.name for path in (trainer.folder.checkpoints / "model").iterdir()) == [
        "iter_000000002.pt",
        "iter_000000003.pt",
    ]
    assert not trainer.folder.part("optim", 1).exists()


def test_incomplete_iteration_is_passed_over(tmp_path: Path) -> None:
    trainer = run(tmp_path, "trainer.max_iter=2", "checkpoint.save_iter=1", "checkpoint.keep_last_k=null")
    trainer.folder.index(2).unlink()
    assert trainer.folder.newest() == 1
    assert run(tmp_path, "trainer.max_iter=2").progress.iteration == 2


def test_damaged_state_is_named(tmp_path: Path) -> None:
    folder = run(tmp_path, "trainer.max_iter=1").folder
    path = next(folder.part("trainer", 1).glob("weights*"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match="weights_00000-of-00001.safetensors is not the file"):
        run(tmp_path, "trainer.max_iter=2")


def test_another_recipe_is_refused_with_both_names(tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_iter=1")
    config = config_for(tmp_path, "trainer.max_iter=2")
    os.environ["OUTPUT_ROOT"] = str(tmp_path)
    try:
        trainer = Trainer(config, device="cpu")
        trainer.recipe = "other_recipe"
        with pytest.raises(CheckpointError, match=r"holds a run of 'tiny_video2world', this run is 'other_recipe'"):
            trainer.train()
    finally:
        del os.environ["OUTPUT_ROOT"]


def test_another_global_batch_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_iter=1")
    with pytest.raises(CheckpointError, match="set trainer.global_batch_size=1"):
        run(tmp_path, "trainer.max_iter=2", "trainer.global_batch_size=2")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    holder = RunFolder(config_path(tmp_path))
    holder.acquire()
    with pytest.raises(ConfigError, match="is held by a run that is still alive"):
        run(tmp_path, "trainer.max_iter=1")
    holder.release()
    assert run(tmp_path, "trainer.max_iter=1").progress.iteration == 1


def config_path(root: Path) -> Path:
    return root / "cosmos_predict" / "tiny" / "tiny_video2world_debug"


def test_global_batch_that_does_not_divide_names_sizes_that_fit() -> None:
    config = compose([*BASE, "trainer.global_batch_size=5"], report=[])
    with pytest.raises(ConfigError, match="4 and 6 fit"):
        accumulation_steps(config, batch_size=2)


def test_non_finite_updates_are_skipped_then_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path))
    trainer = Trainer(config_for_env("trainer.max_iter=30"), device="cpu")
    trainer.folder.root.mkdir(parents=True)
    trainer.build()
    with torch.no_grad():
        trainer.model.net.x_embedder.proj[1].weight.fill_(float("nan"))
    other = trainer.model.net.final_layer.linear.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="20 updates in a row had non-finite gradients"):
        trainer._loop()
    assert trainer.progress.skipped == 20
    assert torch.equal(other, trainer.model.net.final_layer.linear.weight)


def config_for_env(*overrides: str) -> Config:
    config = compose([*BASE, *overrides], report=[])
    config.freeze()
    return config


def start(root: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "train", "--", *BASE, *overrides]
    env = {**os.environ, "OUTPUT_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run did not get there in time"
        time.sleep(0.05)


@pytest.mark.slow
def test_sigterm_saves_and_leaves_with_status_zero(tmp_path: Path) -> None:
    process = start(tmp_path, "trainer.max_iter=100000")
    metrics = config_path(tmp_path) / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    newest = RunFolder(config_path(tmp_path)).newest()
    assert newest is not None and f"SIGTERM: saved iteration {newest}" in output


def test_metrics_are_written(tmp_path: Path) -> None:
    trainer = run(tmp_path, "trainer.max_iter=2")
    lines = [json.loads(line) for line in (trainer.folder.root / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert {"loss", "grad_norm", "lr", "samples_per_s", "tokens_per_s", "tflops", "memory_gb"} <= lines[0].keys()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model_parallel.tensor_model_parallel_size=2", r"tensor_model_parallel_size=2 does not divide the 1 process"),
        ("model_parallel.context_parallel_size=2", r"context_parallel_size=2 does not divide the 1 process"),
    ],
)
def test_settings_without_effect_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(compose([*BASE, override], report=[]), device="cpu")


def test_settings_may_change_on_resume(tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_iter=1")
    trainer = run(tmp_path, "trainer.max_iter=2", "optimizer.lr=1e-6", "optimizer.weight_decay=0.5")
    lines = (trainer.folder.root / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["lr"] < 1e-6
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.5


def test_stated_latent_frames_must_be_what_the_data_make(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"state_t=9, but dataloader_train.dataset.num_frames=5 makes 2 latent"):
        run(tmp_path, "trainer.max_iter=1", "model.config.pipe_config.state_t=9")


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    first = state_of(run(tmp_path, "trainer.max_iter=2"))
    again = run(tmp_path, "trainer.max_iter=1")
    assert again.progress.iteration == 2 and state_of(again).keys() == first.keys()

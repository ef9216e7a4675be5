"""Training adapters on several real processes equals training them on one: losses, adapters, exports, the frozen base."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cosmos_predict.checkpoint.lora_runs import file_hash
from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.io.tensors import load_tensors
from tests.parallel.ranks import REPOSITORY
from tests.parallel.training_runs import CONTEXT, FRAMES, SHARD, losses, relative_distance, state, train
from tests.training.tiny_run import run

STEPS = 10
LORA = ["model.config.train_architecture=lora", "model.config.lora_rank=4", "trainer.global_batch_size=2"]
LORA += ["scheduler.warm_up_steps=[0]", "scheduler.cycle_lengths=[2000]", "dataloader_train.batch_size=1"]
# Some adapters of cross-attention have no gradient but rounding (1e-11: generated clips have the same text in every
# token), which Adam's usual eps of 1e-8 would still turn into steps.
LORA += ["optimizer.eps=1e-6"]
GENERATED = [*LORA, *FRAMES]
BLOCKS = "model.config.pipe_config.net.num_blocks=3"


def assert_same_run(folder: RunFolder, other: RunFolder, steps: int = STEPS) -> None:
    a, b = losses(folder), losses(other)
    assert len(a) == len(b) == steps and a == pytest.approx(b, rel=1e-5)
    first, second = state(folder), state(other)
    assert first.keys() == second.keys()
    for kind in ("weights:", "ema:"):
        for part in ("", "lora_A", "lora_B"):
            names = [name for name in first if name.startswith(kind) and part in name]
            assert names and relative_distance([first[n] for n in names], [second[n] for n in names]) <= 1e-5
    assert folder.read_index(steps)["lora"] == other.read_index(steps)["lora"]
    for part in ("reg", "ema"):
        one, two = (load_tensors(run.adapters(steps)[part]) for run in (folder, other))
        assert one.keys() == two.keys() and relative_distance(list(one.values()), [two[n] for n in one]) <= 1e-5


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One process, two samples of four latent frames per update, beside a base made from the seed."""
    return train(tmp_path_factory.mktemp("alone"), 1, *GENERATED, steps=STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        pytest.param(2, [f"{SHARD}=2"], id="fsdp"),
        pytest.param(2, [f"{SHARD}=2", f"{CONTEXT}=2", "trainer.activation_checkpointing=selective"], id="context"),
        pytest.param(4, [f"{SHARD}=2", f"{CONTEXT}=2"], id="two-contexts-hybrid"),
    ],
)
def test_several_ranks_compute_what_one_does(
    tmp_path: Path, alone: RunFolder, ranks: int, overrides: list[str]
) -> None:
    folder = train(tmp_path, ranks, *GENERATED, *overrides, steps=STEPS, torchrun=True)
    assert not [name for name in state(folder) if ".lora_" not in name]
    assert_same_run(folder, alone)


@pytest.mark.slow
def test_two_ranks_then_one(tmp_path: Path, alone: RunFolder) -> None:
    """The base that the seed makes is the same on any number of ranks: its hash is checked."""
    train(tmp_path, 2, *GENERATED, f"{SHARD}=-1", steps=4)
    assert_same_run(train(tmp_path, 1, *GENERATED, f"{SHARD}=-1", steps=STEPS), alone)


@pytest.mark.slow
def test_bfloat16_base_and_compute(tmp_path: Path) -> None:
    """Adapters and their EMA stay float32; the frozen base is bfloat16."""
    options = [*GENERATED, "trainer.compute_dtype=bfloat16", "+model.dtype=bfloat16"]
    one = train(tmp_path / "one", 1, *options, steps=3)
    two = train(tmp_path / "two", 2, *options, f"{SHARD}=2", steps=3)
    assert losses(two) == pytest.approx(losses(one), rel=5e-3)
    assert {tensor.dtype for name, tensor in state(two).items() if "step" not in name} == {torch.float32}


@pytest.mark.slow
def test_context_parallel_on_cached_latents_beside_a_file(tmp_path: Path) -> None:
    base = run(tmp_path / "base", BLOCKS, "trainer.max_iter=1").folder.exports(1)["both"]
    latents = tmp_path / "latents"
    common = [
        "experiment=tiny_video2world",
        "debug=true",
        "text=tiny",
        "dataloader_train.dataset.dataset_dir=assets/robot_arm",
    ]
    subprocess.run(
        [sys.executable, "scripts/cache_latents.py", "--output_dir", latents, "--", *common],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    options = [*LORA, f"checkpoint.load_path={base}", "data=latent_cache", "model.with_tokenizer=false"]
    options += [f"dataloader_train.dataset.cache_dir={latents}"]
    one = train(tmp_path / "one", 1, *options, steps=STEPS)
    two = train(tmp_path / "two", 2, *options, f"{CONTEXT}=2", f"{SHARD}=2", steps=STEPS, torchrun=True)
    assert_same_run(two, one)
    assert two.read_index(STEPS)["lora"]["base_hash"] == file_hash(base)

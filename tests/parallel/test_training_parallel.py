"""Training on two real processes equals training on one: losses, weights, checkpoints, resume at other world sizes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.errors import ConfigError
from cosmos_predict.parallel.mesh import mesh_sizes
from tests.parallel.ranks import REPOSITORY
from tests.parallel.training_runs import (
    CONTEXT,
    FOUR,
    FRAMES,
    PIPE,
    SHARD,
    STEPS,
    assert_identical,
    assert_same_run,
    folder_of,
    launch,
    losses,
    rank_process,
    relative_distance,
    state,
    train,
    wait_for,
)

BROKEN_SAMPLE = "tests.parallel.broken_samples.BrokenSample"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One process, four samples per update."""
    return train(tmp_path_factory.mktemp("alone"), 1, *FOUR)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([f"{SHARD}=2", "dataloader_train.batch_size=2"], id="fsdp"),
        pytest.param([f"{SHARD}=1", "dataloader_train.batch_size=2"], id="replicas"),
        pytest.param([f"{SHARD}=-1"], id="fsdp-accumulation"),
        pytest.param([f"{SHARD}=1"], id="replicas-accumulation"),
    ],
)
def test_two_ranks_compute_what_one_does(tmp_path: Path, alone: RunFolder, overrides: list[str]) -> None:
    assert_same_run(train(tmp_path, 2, *FOUR, *overrides, torchrun=True), alone)


@pytest.mark.slow
def test_four_ranks_as_two_replicas_of_two_shards(tmp_path: Path, alone: RunFolder) -> None:
    folder = train(tmp_path, 4, *FOUR, f"{SHARD}=2", torchrun=True)
    assert_same_run(folder, alone)
    names = {path.name for path in folder.part("trainer", STEPS).glob("weights*")}
    assert names == {"weights_00000-of-00002.safetensors", "weights_00001-of-00002.safetensors"}


@pytest.fixture(scope="module")
def alone_longer(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One process, two samples per update, clips of four latent frames."""
    return train(tmp_path_factory.mktemp("alone"), 1, *FRAMES, "trainer.global_batch_size=2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        pytest.param(2, [f"{SHARD}=1"], id="context"),
        pytest.param(2, [f"{SHARD}=2", "dataloader_train.batch_size=2"], id="context-fsdp"),
        pytest.param(4, [f"{SHARD}=2"], id="two-contexts-hybrid"),
        pytest.param(2, [f"{SHARD}=2", "trainer.activation_checkpointing=full"], id="context-checkpointing-full"),
        pytest.param(2, [f"{SHARD}=2", "trainer.activation_checkpointing=selective"], id="context-checkpointing"),
    ],
)
def test_context_parallel_computes_what_one_rank_does(
    tmp_path: Path, alone_longer: RunFolder, ranks: int, overrides: list[str]
) -> None:
    folder = train(tmp_path, ranks, *FRAMES, f"{CONTEXT}=2", "trainer.global_batch_size=2", *overrides, torchrun=True)
    assert folder.read_index(STEPS)["data_parallel"] == ranks // 2
    assert_same_run(folder, alone_longer)


@pytest.mark.slow
@pytest.mark.parametrize("most", [0, 2])
def test_context_parallel_with_none_and_with_several_given_frames(tmp_path: Path, most: int) -> None:
    """Up to two of four latent frames, so that the second rank has none of them, and each of a micro-batch its own."""
    frames = [*FRAMES, f"{PIPE}.min_num_conditional_frames=0", f"{PIPE}.max_num_conditional_frames={most}"]
    frames += ["dataloader_train.batch_size=2", "trainer.global_batch_size=2"]
    one = train(tmp_path / "one", 1, *frames)
    assert_same_run(train(tmp_path / "two", 2, *frames, f"{CONTEXT}=2", f"{SHARD}=2", torchrun=True), one)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [1, 2])
def test_an_update_with_a_broken_sample_on_one_rank_is_skipped_on_all(tmp_path: Path, shard: int) -> None:
    options = [f"dataloader_train.dataset._target_={BROKEN_SAMPLE}", "trainer.global_batch_size=2"]
    one = train(tmp_path / "one", 1, *options, steps=5, allow="tests.parallel")
    two = train(tmp_path / "two", 2, *options, f"{SHARD}={shard}", steps=5, allow="tests.parallel")
    for folder in (one, two):
        assert folder.read_index(5)["skipped"] == 1
        assert [math.isfinite(loss) for loss in losses(folder)] == [True, True, False, True, True]
    first, second = state(two), state(one)
    names = [name for name in first if name.startswith(("weights:", "ema:"))]
    assert all(torch.isfinite(first[name]).all() for name in first)
    assert relative_distance([first[n] for n in names], [second[n] for n in names]) <= 1e-5


@pytest.mark.slow
def test_compiled_blocks_on_two_ranks(tmp_path: Path, alone_longer: RunFolder) -> None:
    options = [f"{SHARD}=2", "trainer.activation_checkpointing=selective", "trainer.compile=true"]
    folder = train(tmp_path, 2, *FRAMES, "trainer.global_batch_size=2", *options)
    assert losses(folder) == pytest.approx(losses(alone_longer), rel=1e-4)


@pytest.mark.slow
def test_frames_and_heads_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    fit = r"the 3 latent frames \(of each view\) and the 8 attention heads; sizes that fit: 1\n"
    with pytest.raises(RuntimeError, match=rf"status 2:(.|\n)*context_parallel_size=2 must divide {fit}"):
        train(tmp_path, 2, "dataloader_train.dataset.num_frames=9", f"{CONTEXT}=2", steps=1)
    fit = r"the 4 latent frames \(of each view\) and the 1 attention heads; sizes that fit: 1\n"
    with pytest.raises(RuntimeError, match=rf"status 2:(.|\n)*context_parallel_size=2 must divide {fit}"):
        train(tmp_path, 2, *FRAMES, f"{PIPE}.net.num_heads=1", f"{CONTEXT}=2", steps=1)


@pytest.mark.slow
def test_resume_at_the_same_size_is_bit_identical(tmp_path: Path) -> None:
    sharded = [f"{SHARD}=2", *FOUR, "checkpoint.save_iter=2"]
    whole = train(tmp_path / "whole", 2, *sharded, steps=4)
    train(tmp_path / "parts", 2, *sharded, steps=2)
    assert_identical(train(tmp_path / "parts", 2, *sharded, steps=4), whole)


@pytest.mark.slow
def test_two_ranks_then_one_then_two(tmp_path: Path, alone: RunFolder) -> None:
    """Accumulation makes up for the ranks: nothing but the number of processes changes between the three commands."""
    keep = ["checkpoint.keep_last_k=null", "dataloader_train.batch_size=2"]
    train(tmp_path, 2, f"{SHARD}=-1", *keep, steps=2)
    folder = train(tmp_path, 1, f"{SHARD}=-1", *keep, steps=4)
    train(tmp_path, 2, f"{SHARD}=-1", *keep)
    assert [folder.read_index(n)["world_size"] for n in (2, 4, STEPS)] == [2, 1, 2]
    assert {folder.read_index(n)["global_batch_size"] for n in (2, 4, STEPS)} == {4}
    assert_same_run(folder, alone)


@pytest.mark.slow
def test_export_is_that_of_one_process(tmp_path: Path) -> None:
    """Published files that are gone are made again at start: two ranks write the very bytes that one process wrote."""
    folder = train(tmp_path, 1, "trainer.global_batch_size=2", steps=1)
    path = folder.exports(1)["both"]
    content = path.read_bytes()
    path.unlink()
    train(tmp_path, 2, "trainer.global_batch_size=2", f"{SHARD}=2", steps=1)
    assert path.read_bytes() == content


@pytest.mark.slow
def test_refused_sizes_name_what_fits(tmp_path: Path) -> None:
    train(tmp_path, 1, "dataloader_train.batch_size=1", steps=1)
    with pytest.raises(RuntimeError, match=r"global batch of 1, .* 1 x 2 data-parallel ranks; .* ranks fit: 1\n"):
        train(tmp_path, 2, steps=2)
    with pytest.raises(RuntimeError, match=r"fsdp_shard_size=2 does not divide the 3 processes; sizes that fit: 1, 3"):
        train(tmp_path, 3, f"{SHARD}=2", steps=2)


def test_meshes_that_do_not_fit_name_what_does() -> None:
    with pytest.raises(ConfigError, match=r"context_parallel_size=3 does not divide the 8 .*divisor \(1, 2, 4, 8\)"):
        mesh_sizes(8, context=3)
    with pytest.raises(ConfigError, match=r"fsdp_shard_size=6 does not divide the 8 .*fit: 1, 2, 4, 8"):
        mesh_sizes(8, shard=6)
    with pytest.raises(ConfigError, match=r"fsdp_shard_size=-2: expected -1 \(all ranks\), 0 \(off\) or a number"):
        mesh_sizes(8, shard=-2)
    assert (
        mesh_sizes(8, shard=32).shard == 8 and mesh_sizes(8, shard=-1).shard == 8 and mesh_sizes(8, shard=0).shard == 1
    )


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_saves(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    process = launch(tmp_path, "trainer.max_iter=100000", f"{SHARD}=2")
    try:
        wait_for((folder.root / "metrics.jsonl").exists, process)
        os.kill(rank_process(process.pid, 1), signal.SIGUSR1)
        output = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 0, output
    newest = folder.newest()
    assert newest is not None and f"SIGUSR1: saved iteration {newest}" in output


@pytest.mark.slow
def test_base_checkpoint_fills_shards(tmp_path: Path) -> None:
    """A run on two ranks that starts from a published file has the losses of one process that starts from it."""
    base = str(train(tmp_path / "base", 1, steps=2).exports(2)["both"])
    start = ["dataloader_train.batch_size=1", "trainer.global_batch_size=2", f"checkpoint.load_path={base}"]
    one = train(tmp_path / "one", 1, *start, steps=2)
    two = train(tmp_path / "two", 2, *start, f"{SHARD}=2", steps=2)
    assert_same_run(two, one, steps=2)


@pytest.mark.slow
def test_a_folder_in_use_is_refused_on_all_ranks(tmp_path: Path) -> None:
    holder = folder_of(tmp_path)
    holder.acquire()
    try:
        with pytest.raises(RuntimeError, match="status 2:(.|\n)*is held by a run that is still alive"):
            train(tmp_path, 2, steps=1)
    finally:
        holder.release()


@pytest.mark.slow
def test_bfloat16_compute_keeps_float32_weights(tmp_path: Path) -> None:
    """One process and two agree about it, and neither is what float32 gives."""
    options = ["trainer.compute_dtype=bfloat16", "trainer.global_batch_size=2"]
    one = train(tmp_path / "one", 1, *options, steps=3)
    two = train(tmp_path / "two", 2, *options, f"{SHARD}=2", steps=3)
    exact = train(tmp_path / "exact", 1, "trainer.global_batch_size=2", steps=3)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert losses(exact) != losses(one) and losses(exact) == pytest.approx(losses(one), rel=2e-2)
    assert {tensor.dtype for name, tensor in state(two).items() if "step" not in name} == {torch.float32}


@pytest.mark.slow
def test_log_variance_head_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    """Its two untrained tensors are part of the state too; a second run starts from the published file."""
    head = ["model.config.loss_add_logvar=true", "trainer.global_batch_size=2"]
    one = train(tmp_path / "one", 1, *head, steps=3)
    two = train(tmp_path / "two", 2, *head, f"{SHARD}=2", steps=3)
    assert_same_run(two, one, steps=3)
    assert {f"weights:logvar.{name}" for name in ("0.freqs", "0.phases", "1.weight")} <= state(two).keys()
    start = [*head, f"checkpoint.load_path={one.exports(3)['both']}", "trainer.seed=5"]
    again = [train(tmp_path / f"again{ranks}", ranks, *start, f"{SHARD}=-1", steps=1) for ranks in (1, 2)]
    for folder in again:
        assert torch.equal(state(folder)["weights:logvar.0.freqs"], state(one)["weights:logvar.0.freqs"])
    assert_same_run(again[1], again[0], steps=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["optimizer=adamw8bit"], id="8bit"),
        pytest.param(["optimizer=adamw_bf16", "model.dtype=bfloat16"], id="bf16-stochastic"),
    ],
)
def test_low_memory_optimizers_resume_their_shards(tmp_path: Path, options: list[str]) -> None:
    """Bit for bit on two ranks; and one process continues what two began."""
    common = [*options, f"{SHARD}=-1", "trainer.global_batch_size=2", "checkpoint.keep_last_k=null"]
    whole = train(tmp_path / "whole", 2, *common, steps=4)
    train(tmp_path / "parts", 2, *common, steps=2)
    parts = train(tmp_path / "parts", 2, *common, steps=4)
    assert_identical(parts, whole)
    train(tmp_path / "other", 2, *common, steps=2)
    other = train(tmp_path / "other", 1, *common, steps=4)
    assert losses(other) == pytest.approx(losses(whole), rel=1e-3)


@pytest.mark.slow
def test_context_parallel_on_cached_latents(tmp_path: Path) -> None:
    latents = tmp_path / "latents"
    common = ["experiment=tiny_video2world", "debug=true", "text=tiny"]
    dataset = "dataloader_train.dataset.dataset_dir=assets/robot_arm"
    subprocess.run(
        [sys.executable, "scripts/cache_latents.py", "--output_dir", latents, "--", *common, dataset],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    cached = ["data=latent_cache", f"dataloader_train.dataset.cache_dir={latents}", "model.with_tokenizer=false"]
    one = train(tmp_path / "one", 1, *cached)
    assert_same_run(train(tmp_path / "two", 2, *cached, f"{CONTEXT}=2", f"{SHARD}=2"), one)


@pytest.mark.slow
def test_a_killed_run_of_two_ranks_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Killed at once on both ranks, at moments that differ, saves among them; the lock it leaves blocks nobody."""
    options = [f"{SHARD}=2", "checkpoint.save_iter=1"]
    whole = train(tmp_path / "whole", 2, *options, steps=12)
    folder = folder_of(tmp_path / "killed")
    for saved in (1, 4, 8):
        process = launch(tmp_path / "killed", *options, "trainer.max_iter=12")
        wait_for(lambda n=saved: (folder.newest() or 0) >= n, process)
        time.sleep(0.02 * saved)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert_identical(train(tmp_path / "killed", 2, *options, steps=12), whole)

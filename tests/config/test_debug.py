"""The `debug` overlay: what it lowers for a number of processes, and what it leaves alone."""

import pytest

from cosmos_predict.config.debug import fit_ranks, launched_ranks
from cosmos_predict.config.lazy import lazy_dict
from cosmos_predict.config.schema import Config, ModelParallelConfig, TrainerConfig
from cosmos_predict.errors import ConfigError


def config(tensor=1, context=1, shard=1, heads=8, frames=5, batch=1, total=None) -> Config:
    return Config(
        model=lazy_dict({"config": {"fsdp_shard_size": shard, "pipe_config": {"net": {"num_heads": heads}}}}),
        dataloader_train=lazy_dict({"batch_size": batch, "dataset": {"num_frames": frames}}),
        trainer=TrainerConfig(global_batch_size=total),
        model_parallel=ModelParallelConfig(tensor_model_parallel_size=tensor, context_parallel_size=context),
    )


def sizes(made: Config) -> tuple:
    assert made.model is not None
    parallel = made.model_parallel
    return parallel.tensor_model_parallel_size, parallel.context_parallel_size, made.model.config.fsdp_shard_size


@pytest.mark.parametrize(
    ("given", "world", "expected"),
    [
        ({"context": 8, "shard": 32}, 1, (1, 1, 1)),
        ({"context": 8, "shard": 32}, 2, (1, 2, 2)),
        ({"context": 8, "shard": 32}, 4, (1, 2, 4)),  # 5 frames are 2 latent ones
        ({"context": 8, "shard": 32, "frames": 13}, 4, (1, 4, 4)),
        ({"context": 2, "shard": 8}, 6, (1, 2, 6)),
        ({"context": 2, "shard": 8}, 3, (1, 1, 3)),
        ({"tensor": 8, "context": 2, "shard": 8}, 4, (4, 1, 1)),  # tensor comes first
        ({"tensor": 8, "context": 2, "shard": 8, "heads": 2}, 4, (2, 1, 2)),
        ({"context": 8, "shard": -1, "frames": 1}, 4, (1, 4, -1)),  # images are not divided; -1 is all ranks
        ({"context": 1, "shard": 0}, 4, (1, 1, 0)),
        ({"context": 2, "shard": 2}, 2, (1, 2, 2)),
    ],
)
def test_sizes_are_lowered_to_what_divides(given, world, expected):
    made, report = config(**given), []
    before = sizes(made)
    fit_ranks(made, (), report, world)
    assert sizes(made) == expected
    assert len(report) == sum(old != new for old, new in zip(before, expected, strict=True))


def test_the_global_batch_is_rounded_up():
    made, report = config(batch=2, total=7, context=2, shard=4), []
    fit_ranks(made, (), report, 4)
    assert made.trainer.global_batch_size == 8  # batch of 2 on 2 data-parallel ranks
    assert report == ["debug: trainer.global_batch_size: rounded up to 8, a multiple of 4"]


def test_what_the_command_line_sets_stays():
    kept = ["model_parallel", "model.config.fsdp_shard_size", "trainer.global_batch_size"]
    made, report = config(context=8, shard=32, total=3), []
    fit_ranks(made, kept, report, 2)
    assert sizes(made) == (1, 8, 32) and made.trainer.global_batch_size == 3 and report == []


def test_a_config_without_model_or_data():
    made, report = Config(model_parallel=ModelParallelConfig(context_parallel_size=4)), []
    fit_ranks(made, (), report, 2)
    assert made.model_parallel.context_parallel_size == 2


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"WORLD_SIZE": "8"}, 8),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "4"}, 4),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, 16),
        ({"SLURM_NTASKS": "16"}, None),  # a shell inside an allocation, outside a step
    ],
)
def test_launched_ranks(env, expected):
    assert launched_ranks(env) == expected


def test_launched_ranks_refuses_what_is_no_number():
    with pytest.raises(ConfigError, match="WORLD_SIZE='many': expected the number of processes"):
        launched_ranks({"WORLD_SIZE": "many"})

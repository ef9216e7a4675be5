"""What `--dryrun` says: sizes against formulas and built networks, files that are missing, meshes that do not fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from cosmos_predict.cli.train import main
from cosmos_predict.config.compose import compose
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.config.schema import Config
from cosmos_predict.errors import ConfigError
from cosmos_predict.parallel.activation import activation_bytes
from cosmos_predict.parallel.mesh import MeshSizes
from cosmos_predict.training.forecast import forecast, memory_forecast, meta_network, missing_files
from tests.training.tiny_run import run

CONTEXT = "model_parallel.context_parallel_size"
NAME = "experiment=predict2_video2world_training_{}_cosmos_nemo_assets"
GIB = 2**30
DOCUMENT = Path(__file__).parents[2] / "docs/parallelism.md"


def config_of(*overrides: str) -> Config:
    return compose(overrides, report=[])


def memory(*overrides: str, world: int = 1, shard: int = 1) -> dict[str, float]:
    config = config_of(*overrides)
    assert config.model is not None
    model = instantiate(config.model.config)
    net = meta_network(config, model)
    return memory_forecast(config, net, model.pipe_config.ema.enabled, MeshSizes(world, shard))


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), (4, 4, 8)),
        (("optimizer=adamw8bit",), (4, 4, 2.03125)),
        (("model.dtype=bfloat16",), (2, 2, 12)),  # with float32 masters
        (("model.dtype=bfloat16", "optimizer=adamw_bf16"), (2, 2, 2.03125)),
        (("model.dtype=bfloat16", "optimizer=adamw_bf16", "optimizer.moments=fp32"), (2, 2, 8)),
    ],
)
def test_bytes_per_parameter(overrides: tuple[str, ...], expected: tuple[float, ...]) -> None:
    held = memory("experiment=tiny_video2world", *overrides)
    config = config_of("experiment=tiny_video2world")
    assert config.model is not None
    count = sum(p.numel() for p in meta_network(config, instantiate(config.model.config)).parameters())
    assert [held[part] / count for part in ("weights", "gradients", "moments")] == pytest.approx(expected)
    assert held["EMA"] == 4 * count and "gathered" not in held


def test_state_of_a_real_run(tmp_path: Path) -> None:
    """Against the tensors that a trainer holds after a step."""
    trainer = run(tmp_path, "trainer.max_iter=1")
    held = memory("experiment=tiny_video2world", "data=synthetic", "debug=true")
    assert held["weights"] == sum(p.nbytes for p in trainer.model.net.parameters())
    moments = [v.nbytes for s in trainer.optimizer.state.values() for v in s.values() if v.ndim]
    assert held["moments"] == sum(moments)
    assert trainer.ema is not None
    assert held["EMA"] == sum(v.nbytes for v in trainer.ema.state_dict().values())


def test_shards_divide_the_state_and_gather_blocks() -> None:
    whole, part = memory(NAME.format("2b")), memory(NAME.format("2b"), world=8, shard=8)
    for name in ("weights", "gradients", "moments", "EMA"):
        assert part[name] == whole[name] / 8
    assert part["gathered"] == whole["gathered"] < 0.2 * whole["weights"]  # bfloat16 compute gathers on one process too


def test_lora_trains_a_hundredth() -> None:
    held = memory(f"{NAME.format('2b')}", "model.config.train_architecture=lora", world=8, shard=8)
    assert held["gradients"] * 8 == 4 * 22_937_600 and held["moments"] * 8 == 8 * 22_937_600
    text = forecast(config_of(NAME.format("2b"), "model.config.train_architecture=lora"))
    assert "1,979.4 M parameters, 22.9 M of them trained (LoRA)" in text
    with pytest.raises(ConfigError, match="k_prj"):
        forecast(
            config_of(
                NAME.format("2b"), "model.config.train_architecture=lora", "model.config.lora_target_modules=k_prj"
            )
        )


def test_mesh_of_the_processes_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(NAME.format("2b"))
    assert "8 rank(s): weights 1 replicas x 8 shards, samples 4 data x 2 context (the fewest" in forecast(config)
    monkeypatch.setenv("WORLD_SIZE", "16")
    text = forecast(config)
    assert "16 rank(s): weights 2 replicas x 8 shards, samples 8 data x 2 context\n" in text
    assert "1 per step x 8 data-parallel rank(s) x 1 accumulation = 8 per update" in text
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"context_parallel_size=2 does not divide the 3 process\(es\).*\(1, 3\)"):
        forecast(config)
    monkeypatch.setenv("WORLD_SIZE", "12")
    with pytest.raises(
        ConfigError, match=r"fsdp_shard_size=8 does not divide the 12 processes; sizes that fit: 1, 2, 3"
    ):
        forecast(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model_parallel.context_parallel_size=16"], "must divide the 24 latent frames .* 16 attention heads; .*: 1, 2, 4, 8"),
        (["dataloader_train.dataset.num_frames=61", "model_parallel.context_parallel_size=3"], "divide the 16 latent"),
        (["data=video_folder", f"{CONTEXT}=8", "dataloader_train.dataset.length_buckets=[97,61,33]"], "of 33 frames .*: .* the 9 latent"),
        (["data=images_and_videos", f"{CONTEXT}=8", "dataloader_train.dataset.parts.videos.length_buckets=[9]"], "samples of 9 frames"),
        (["dataloader_train.dataset.num_frames=90"], "90"),
        (["model.config.pipe_config.state_t=16"], "state_t=16, but .*num_frames=93 makes 24 latent frames: set num_frames=61"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        forecast(config_of(NAME.format("2b"), *overrides))


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    config = config_of(
        NAME.format("2b"),
        f"dataloader_train.dataset.dataset_dir={folder}",
        "val=video_folder",
        "text=tiny",
        "model.config.pipe_config.tokenizer.path=no/tokenizer.pth",
    )
    weights = "checkpoints/nvidia/Cosmos-Predict2-2B-Video2World/model-720p-16fps.pt"
    assert missing_files(config) == [
        f"dataloader_train.dataset.dataset_dir: {folder}",
        f"model.config.model_manager_config.dit_path: {weights}",
        "model.config.pipe_config.tokenizer.path: no/tokenizer.pth",
    ]
    folder.mkdir()
    config.trainer.run_validation, config.checkpoint.load_path = True, str(tmp_path)
    assert missing_files(config) == [
        "dataloader_val.dataset.dataset_dir: datasets/mine_val",
        "model.config.pipe_config.tokenizer.path: no/tokenizer.pth",
    ]
    assert "missing      dataloader_val.dataset.dataset_dir: datasets/mine_val" in forecast(config)


def test_it_says_what_the_run_starts_from() -> None:
    assert "starts from  checkpoints/nvidia/Cosmos-Predict2-2B-Video2World/model-720p" in forecast(
        config_of(NAME.format("2b"))
    )
    assert "starts from  elsewhere.pt" in forecast(config_of(NAME.format("2b"), "checkpoint.load_path=elsewhere.pt"))
    assert "starts from  scratch" in forecast(config_of("experiment=tiny_video2world"))


def test_validation_says_on_what() -> None:
    text = forecast(config_of(NAME.format("2b"), "trainer.run_validation=true", "trainer.validation_iter=7"))
    assert (
        "validation   every 7 updates, on other draws of the training clips' windows; not held out: set dataloader_val"
        in text
    )


def test_a_save_takes_host_memory() -> None:
    config = config_of("experiment=tiny_video2world")
    held = memory("experiment=tiny_video2world")
    copy = (held["weights"] + held["moments"] + held["EMA"]) / 2**20
    line = f"saving       {copy:,.2f} MiB of host memory on top, per process (checkpoint.async_save)"
    assert line in forecast(config)
    assert "saving  " not in forecast(config_of("experiment=tiny_video2world", "checkpoint.async_save=false"))


def test_the_table_of_the_documentation() -> None:
    """docs/parallelism.md prints what the forecast computes, for 93 frames of 704 x 1280."""
    rows = re.findall(r"^\| (2B|14B) \| (\w+) \| (\d+) \| (\d+) \| ([\d. |]+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(rows) >= 8
    for size, optimizer, shard, context, numbers in rows:
        overrides = [NAME.format(size.lower())] + [f"optimizer={optimizer}"] * (optimizer != "adamw")
        held = sum(memory(*overrides, world=max(int(shard), int(context)), shard=int(shard)).values())
        config = config_of(*overrides)
        assert config.model is not None
        net = instantiate(config.model.config.pipe_config.net)
        local = [activation_bytes(net, 84480 // int(context), policy, 1, 2) for policy in ("none", "selective", "full")]
        computed = [held, *(held + size for size in local)]
        assert [float(x) for x in numbers.split("|")] == pytest.approx([x / GIB for x in computed], abs=0.06), (
            size,
            shard,
        )


def test_nothing_is_allocated() -> None:
    config = config_of(NAME.format("14b"))
    assert config.model is not None
    net = meta_network(config, instantiate(config.model.config))
    assert {p.device for p in net.parameters()} == {torch.device("meta")}


def test_one_process_prints_and_changes_of_debug_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dryrun", "--", NAME.format("14b"), "debug=true"]
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for rank in ("1", "0"):
        assert capsys.readouterr().out == ""
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "fsdp_shard_size: 32 -> 2 (the largest that divides 2 processes)" in out
    assert "samples 1 data x 2 context\n" in out and "max_iter: 2" in out
    assert "missing      dataloader_train.dataset.dataset_dir: datasets/cosmos_nemo_assets" in out


def test_without_a_tokenizer_its_file_is_not_missing() -> None:
    config = ["experiment=predict2_video2world_training_2b_cosmos_nemo_assets"]
    assert any("tokenizer.path" in line for line in missing_files(compose(config, report=[])))
    cached = compose([*config, "data=latent_cache", "model.with_tokenizer=false"], report=[])
    assert not any("tokenizer.path" in line for line in missing_files(cached))

"""Tensor parallelism against one process: networks, training, run state, exports; what does not fit is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.config.compose import compose
from cosmos_predict.config.debug import fit_ranks
from cosmos_predict.config.schema import Config
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.models.published import published_config
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import build_dit
from cosmos_predict.parallel.activation import activation_bytes, apply_activation_checkpointing
from cosmos_predict.parallel.context_parallel import check_context_parallel
from cosmos_predict.parallel.distributed import Ranks
from cosmos_predict.parallel.mesh import MeshSizes, make_mesh, mesh_sizes
from cosmos_predict.parallel.shards import own
from cosmos_predict.parallel.tensor_parallel import apply_tensor_parallel, is_divided
from cosmos_predict.training.checks import check_supported
from cosmos_predict.training.forecast import forecast, memory_forecast
from cosmos_predict.training.low_memory import NAMES, adamw8bit
from cosmos_predict.training.trainer import Trainer
from tests.parallel import test_lora_parallel as lora
from tests.parallel.cp_network import SMALL
from tests.parallel.ranks import REPOSITORY, check, run_ranks
from tests.parallel.training_runs import (
    BASE,
    CONTEXT,
    FRAMES,
    PIPE,
    SHARD,
    assert_identical,
    assert_same_run,
    losses,
    relative_distance,
    state,
    train,
)

STEPS = 10
TENSOR = "model_parallel.tensor_model_parallel_size"
SEQUENCE = "model_parallel.sequence_parallel=true"
TWO = "trainer.global_batch_size=2"
NET = f"{PIPE}.net"
PREDICT1 = [f"{PIPE}.family=predict1", f"{NET}.extra_pos_emb=learnable", f"{NET}.initialization=xavier"]
PREDICT1 += [f"{NET}.rope_enable_fps_modulation=true", "model.config.loss_add_logvar=true", "checkpoint=predict1"]
PREDICT1 += [f"{NET}.crossattn_proj_in_channels=null", f"{NET}.crossattn_emb_channels=1024"]


@pytest.fixture
def four() -> Iterator[DeviceMesh]:
    """Rank 0 of four that are not there: exchanges leave their results as they were allocated."""
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield init_device_mesh("cpu", (4,), mesh_dim_names=("tensor",))
    dist.destroy_process_group()


def test_networks_over_two_ranks() -> None:
    check(run_ranks("tests.parallel.tp_network", ranks=2))


@pytest.mark.slow
def test_networks_over_two_context_groups_of_two() -> None:
    check(run_ranks("tests.parallel.tp_network", "2", ranks=4))


@pytest.mark.slow
def test_compiled_networks() -> None:
    check(run_ranks("tests.parallel.tp_network", "1", "compile", ranks=2, timeout=300))


# ---- training ----------------------------------------------------------------------------------------------------


def alone_of(root: Path, *overrides: str) -> RunFolder:
    return train(root, 1, *FRAMES, TWO, *overrides)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return alone_of(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def alone_predict1(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder(alone_of(tmp_path_factory.mktemp("predict1"), *PREDICT1).root, "predict1")


def norms(folder: RunFolder) -> list[float]:
    lines = (json.loads(line) for line in (folder.root / "metrics.jsonl").read_text().splitlines())
    return [line["grad_norm"] for line in lines if "grad_norm" in line]


def weights_report(folder: RunFolder) -> dict[str, dict[str, float]]:
    return json.loads((folder.root / "weights_report.json").read_text())["groups"]


def assert_same_exports(folder: RunFolder, other: RunFolder) -> None:
    """The same names, shapes and dtypes; values as close as float32 weights are, rounded to bfloat16 in part."""
    ours, theirs = folder.exports(STEPS), other.exports(STEPS)
    assert ours.keys() == theirs.keys()
    for part in ours:
        with TensorFile(ours[part]) as a, TensorFile(theirs[part]) as b:
            names = list(a.keys())
            assert names == list(b.keys()) and names
            pairs = [(a.get(name), b.get(name)) for name in names]
        assert all(x.shape == y.shape and x.dtype == y.dtype for x, y in pairs)
        exact = [(x, y) for x, y in pairs if x.dtype == torch.float32]
        for some, limit in ((exact, 1e-5), (pairs, 1e-3)):
            if some:
                assert relative_distance([x for x, _ in some], [y for _, y in some]) <= limit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        pytest.param(2, [], id="tensor"),
        pytest.param(2, [SEQUENCE, "trainer.activation_checkpointing=selective"], id="sequence"),
        pytest.param(4, [f"{CONTEXT}=2"], id="context"),
        pytest.param(4, [SEQUENCE, f"{CONTEXT}=2"], id="sequence-context"),
        pytest.param(4, [SEQUENCE, f"{SHARD}=2"], id="sequence-fsdp"),
    ],
)
def test_tensor_parallel_computes_what_one_rank_does(
    tmp_path: Path, alone: RunFolder, ranks: int, overrides: list[str]
) -> None:
    folder = train(tmp_path, ranks, *FRAMES, TWO, f"{TENSOR}=2", *overrides, torchrun=True)
    assert folder.read_index(STEPS)["data_parallel"] == ranks // (4 if f"{CONTEXT}=2" in overrides else 2)
    assert_same_run(folder, alone)
    assert norms(folder) == pytest.approx(norms(alone), rel=1e-4)
    assert_same_exports(folder, alone)
    moved, expected = weights_report(folder), weights_report(alone)
    for group, entry in expected.items():
        assert moved[group] == pytest.approx(entry, rel=1e-3)  # of large tensors from some values


@pytest.mark.slow
def test_bfloat16_compute_over_four_ranks(tmp_path: Path) -> None:
    """Partial sums of a layer are rounded to bfloat16 before they are added up: close to one process, not equal."""
    options = [*FRAMES, TWO, "trainer.compute_dtype=bfloat16"]
    one = train(tmp_path / "one", 1, *options, steps=5)
    four = train(tmp_path / "four", 4, *options, f"{TENSOR}=2", f"{SHARD}=2", SEQUENCE, steps=5)
    assert losses(four) == pytest.approx(losses(one), rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        pytest.param(4, [f"{SHARD}=2"], id="tensor-fsdp"),
        pytest.param(4, [f"{CONTEXT}=2"], id="tensor-context"),
        pytest.param(
            2, [SEQUENCE, f"{SHARD}=-1", "trainer.activation_checkpointing=full"], id="sequence-checkpointing"
        ),
    ],
)
def test_predict1_networks(tmp_path: Path, alone_predict1: RunFolder, ranks: int, overrides: list[str]) -> None:
    """EDM, learnable positions that every block adds, a log-variance head, the other layout of files."""
    folder = train(tmp_path, ranks, *FRAMES, TWO, f"{TENSOR}=2", *PREDICT1, *overrides, torchrun=True)
    folder, shared = RunFolder(folder.root, "predict1"), f"{CONTEXT}=2" in overrides
    assert folder.read_index(STEPS)["data_parallel"] == ranks // (4 if shared else 2)
    assert_same_run(folder, alone_predict1)
    assert norms(folder) == pytest.approx(norms(alone_predict1), rel=1e-4)
    assert_same_exports(folder, alone_predict1)
    files = {path.name for path in folder.part("trainer", STEPS).glob("weights*")}
    parts = ranks // 2 if shared else ranks  # the ranks of a context hold the same weights
    assert files == {f"weights_{part:05d}-of-{parts:05d}.safetensors" for part in range(parts)}


@pytest.mark.slow
def test_resume_is_bit_identical_and_other_meshes_continue(tmp_path: Path, alone: RunFolder) -> None:
    keep = [*FRAMES, TWO, "checkpoint.save_iter=2", "checkpoint.keep_last_k=null"]
    divided = [*keep, f"{TENSOR}=2", SEQUENCE]
    whole = train(tmp_path / "whole", 2, *divided, steps=4)
    train(tmp_path / "parts", 2, *divided, steps=2)
    assert_identical(train(tmp_path / "parts", 2, *divided, steps=4), whole)
    train(tmp_path / "whole", 1, *keep, steps=6)
    folder = train(tmp_path / "whole", 4, *keep, f"{TENSOR}=2", f"{SHARD}=2")
    assert [folder.read_index(n)["world_size"] for n in (4, 6, STEPS)] == [2, 1, 4]
    assert_same_run(folder, alone)


@pytest.mark.slow
def test_adapters(tmp_path: Path) -> None:
    """The base that the seed makes has the same hash; adapters of divided layers are divided with them, or summed."""
    one = train(tmp_path / "one", 1, *lora.GENERATED, steps=4)
    two = train(tmp_path / "two", 2, *lora.GENERATED, f"{TENSOR}=2", SEQUENCE, steps=4)
    lora.assert_same_run(two, one, steps=4)


@pytest.mark.slow
def test_moments_in_8_bits(tmp_path: Path) -> None:
    """Blocks of 256 columns are divided where none is cut; another mesh makes the same step of them."""
    options = [f"{NET}.model_channels=512", f"{NET}.num_blocks=1", "optimizer=adamw8bit", TWO]
    options += ["checkpoint.keep_last_k=null"]
    whole = train(tmp_path / "whole", 2, *options, f"{TENSOR}=2", steps=3)
    codes = {name.split(".", 2)[2] for name in state(whole) if "exp_avg_codes" in name}
    assert {f"blocks.0.{name}.weight" for name in ("mlp.layer1", "mlp.layer2", "self_attn.output_proj")} <= codes
    parts = train(tmp_path / "parts", 2, *options, f"{TENSOR}=2", steps=2)
    shutil.copytree(tmp_path / "parts", tmp_path / "other")
    other = train(tmp_path / "other", 1, *options, steps=3)
    begun, ours, theirs = state(parts), state(other), state(whole)
    assert_identical(train(tmp_path / "parts", 2, *options, f"{TENSOR}=2", steps=3), whole)
    names = [name for name in begun if name.startswith("weights:")]
    changes = [[each[name] - begun[name] for name in names] for each in (ours, theirs)]
    assert ours.keys() == theirs.keys() and relative_distance(*changes) <= 1e-3


def test_moments_in_8_bits_are_not_cut(four: DeviceMesh) -> None:
    layer = torch.nn.Linear(512, 2, bias=False)
    layer.weight = torch.nn.Parameter(DTensor.from_local(torch.ones(2, 128), four, [Shard(1)], run_check=False))
    optimizer = adamw8bit(layer)
    codes, scales = torch.zeros(2, 512, dtype=torch.uint8), torch.zeros(2, 2)
    moments = {f"{name}_{part}": value for name in NAMES for part, value in (("codes", codes), ("scales", scales))}
    saved = {**optimizer.state_dict(), "state": {0: {"step": torch.tensor(1), **moments}}}
    with pytest.raises(CheckpointError, match="blocks of 256 columns, which parts of 128 of its 512 columns would cut"):
        optimizer.load_state_dict(saved)


# ---- what does not fit -------------------------------------------------------------------------------------------


def test_groups_of_a_mesh() -> None:
    """Each once: replicas, shards, tensor and context, beside that of all ranks."""
    dist.init_process_group("fake", rank=5, world_size=16, store=FakeStore())
    try:
        sizes = mesh_sizes(16, shard=2, context=2, tensor=2)
        mesh = make_mesh(Ranks(5, 16), sizes, torch.device("cpu"))
        assert mesh.context is not None and dist.get_process_group_ranks(mesh.context) == [5, 7]
        assert mesh.tensor is not None and dist.get_process_group_ranks(mesh.tensor.get_group()) == [4, 5]
        assert len(dist.distributed_c10d._world.pg_map) == 5
    finally:
        dist.destroy_process_group()


def test_meshes_that_do_not_fit_name_what_does() -> None:
    with pytest.raises(
        ConfigError, match=r"tensor_model_parallel_size=3 does not divide the 8 .*divisor \(1, 2, 4, 8\)"
    ):
        mesh_sizes(8, tensor=3)
    with pytest.raises(ConfigError, match=r"context_parallel_size=4 does not divide the 2 .*\(of 8, with .*\(1, 2\)"):
        mesh_sizes(8, context=4, tensor=4)
    with pytest.raises(ConfigError, match=r"fsdp_shard_size=3 does not divide the 4 .*fit: 1, 2, 4$"):
        mesh_sizes(8, shard=3, tensor=2)
    sizes = mesh_sizes(16, shard=-1, context=2, tensor=4)
    assert (sizes.shard, sizes.replicas, sizes.data, sizes.parts) == (4, 1, 2, 16)
    fit = "the 40 attention heads, 5 on each of 8 tensor parallel ranks; sizes that fit: 1$"
    with pytest.raises(ConfigError, match=fit):
        check_context_parallel(2, 24, 40, 8)


@pytest.mark.parametrize(
    ("ranks", "overrides", "message"),
    [
        (
            3,
            [f"{TENSOR}=3"],
            r"size=3 must divide the 8 attention heads \(and the MLP's 256 channels\).*fit: 1, 2, 4, 8$",
        ),
        (8, [f"{TENSOR}=8", SEQUENCE], r"the 12 tokens of a frame over .*=8: .* these sizes: 1, 2, 3, 4, 6, 12$"),
        (8, [f"{TENSOR}=4", f"{CONTEXT}=2", f"{NET}.num_heads=4", *FRAMES], r"4 .*heads, 1 on each of 4 .*fit: 1$"),
    ],
)
def test_a_forecast_refuses_what_a_run_would(
    monkeypatch: pytest.MonkeyPatch, ranks: int, overrides: list[str], message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    with pytest.raises(ConfigError, match=message):
        forecast(compose([*BASE, *overrides], report=[]))


def aspect_run(*overrides: str) -> Config:
    """Nominal frames have 16 tokens; the clips, wider, take the bucket of 48 x 80, whose 15 tokens are odd."""
    options = [option for option in BASE if option != "data=synthetic"] + ["text=tiny", SEQUENCE, f"{TENSOR}=2"]
    dataset = "dataloader_train.dataset"
    options += [f"{dataset}.dataset_dir={REPOSITORY}/assets/robot_arm", f"{dataset}.video_size=[64,64]"]
    return compose([*options, f"{dataset}.aspect_buckets=true", *overrides], report=[])


ODD = "samples of 48 x 80 .video_size or aspect_buckets.: .* the 15 tokens of a frame over .*=2: .* sizes: 1, 3, 5, 15"


def test_a_run_refuses_a_bucket_whose_tokens_do_not_divide() -> None:
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with pytest.raises(ConfigError, match=ODD):
            Trainer(aspect_run(), Ranks(0, 2), "cpu").build()
    finally:
        dist.destroy_process_group()


def test_a_forecast_warns_of_such_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether any clip has that shape only the data says."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert re.search(rf"\nwarning +a run refuses .*: {ODD}", forecast(aspect_run()))
    assert "warning  " not in forecast(aspect_run("dataloader_train.dataset.aspect_buckets=false"))


def test_compilation_with_full_checkpointing_is_refused() -> None:
    overrides = [f"{TENSOR}=2", "trainer.compile=true", "trainer.activation_checkpointing=full"]
    with pytest.raises(ConfigError, match="=full: use selective, or trainer.compile=false"):
        check_supported(compose([*BASE, *overrides], report=[]))


@pytest.mark.slow
def test_a_run_refuses_heads_that_do_not_divide(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"status 2:(.|\n)*tensor_model_parallel_size=2 must divide the 1 attention"):
        train(tmp_path, 2, f"{TENSOR}=2", f"{NET}.num_heads=1", steps=1)


# ---- the forecast ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["none", "full"])
@pytest.mark.parametrize("sequence", [False, True])
def test_forecast_of_what_is_kept(four: DeviceMesh, policy: str, sequence: bool) -> None:
    """Six blocks more keep six times what the forecast says of one."""
    config, kept = SMALL.replace(model_channels=256, num_heads=8), []
    for blocks in (1, 7):
        net = build_dit(config.replace(num_blocks=blocks))
        apply_tensor_parallel(net, four, sequence)
        apply_activation_checkpointing(net, policy)
        weights = {own(p).untyped_storage().data_ptr() for p in net.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor, seen: dict[int, int] = storages) -> torch.Tensor:
            storage = own(tensor).untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(torch.randn(1, 4, 4, 16, 16), torch.randn(1, 4), torch.randn(1, 8, 16))
        kept.append(sum(size for pointer, size in storages.items() if pointer not in weights))
    forecasts = [
        activation_bytes(config.replace(num_blocks=blocks), 4 * 8 * 8, policy, tensor=4, sequence=sequence)
        for blocks in (1, 7)
    ]
    assert kept[1] - kept[0] == pytest.approx(forecasts[1] - forecasts[0], rel=0.05)


def test_the_numbers_of_the_documentation() -> None:
    """docs/parallelism.md compares what the forecast says of the 14B on eight processes."""
    net = build_dit(published_config("predict2_14b_video2world"), device="meta")
    config = compose(["experiment=predict2_video2world_training_14b_cosmos_nemo_assets"], report=[])
    text = (REPOSITORY / "docs" / "parallelism.md").read_text()
    numbers = re.search(
        r"([\d.]+) GiB with `T = 8` and sequence parallel \(([\d.]+) without\) against ([\d.]+) GiB", text
    )
    assert numbers is not None
    for number, sizes, sequence in zip(
        numbers.groups(), (MeshSizes(8, 1, 1, 8), MeshSizes(8, 1, 1, 8), MeshSizes(8, 8, 8)), (True, False, False), strict=True
    ):  # fmt: skip
        held = sum(memory_forecast(config, net, True, sizes).values())
        held += activation_bytes(net.config, 84480 // sizes.context, "selective", 1, 2, sizes.tensor, sequence)
        assert held / 2**30 == pytest.approx(float(number), abs=0.06)


def test_debug_lowers_tensor_parallelism_to_the_tokens_of_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    report: list[str] = []
    config = compose(["experiment=tiny_video2world", "debug=true", SEQUENCE], report=report)
    config.model_parallel.tensor_model_parallel_size = 8
    fit_ranks(config, (), report, 8)
    assert config.model_parallel.tensor_model_parallel_size == 4
    assert any("8 -> 4 (the largest that divides 8 processes, 8 heads, 12 tokens)" in line for line in report)


def test_which_parameters_are_divided() -> None:
    config = DiTConfig(model_channels=64, num_blocks=1, num_heads=4, crossattn_proj_in_channels=8)
    names = [name for name in dict(build_dit(config, device="meta").named_parameters()) if is_divided(name)]
    attention = [f"blocks.0.{a}_attn.{p}_proj.weight" for a in ("self", "cross") for p in ("q", "k", "v", "output")]
    assert names == [*attention, "blocks.0.mlp.layer1.weight", "blocks.0.mlp.layer2.weight"]
    column, row = "blocks.3.self_attn.q_proj", "blocks.3.mlp.layer2"
    assert is_divided(f"{column}.base_layer.weight") and is_divided(f"{column}.lora_B.default.weight")
    assert is_divided(f"{row}.lora_A.default.weight")
    assert not is_divided(f"{column}.lora_A.default.weight") and not is_divided(f"{row}.lora_B.default.weight")

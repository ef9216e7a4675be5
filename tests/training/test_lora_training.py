"""Training of LoRA adapters: what a run keeps and publishes, resume, refusals. Two processes: tests/parallel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
import torch.distributed as dist

from cosmos_predict.checkpoint.convert import Conversion, convert
from cosmos_predict.checkpoint.load import load_network, load_state
from cosmos_predict.checkpoint.lora_runs import adapter_folder, file_hash, load_adapters
from cosmos_predict.checkpoint.run_folder import RunFolder, published_file
from cosmos_predict.checkpoint.run_state import SavedState
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.tensors import TensorFile, load_tensors
from cosmos_predict.networks.dit import DiT, build_dit
from cosmos_predict.networks.lora import without_adapters
from cosmos_predict.parallel.activation import compile_blocks
from cosmos_predict.training.reports import adapter_effect
from cosmos_predict.training.trainer import Trainer
from tests.training.tiny_run import BASE, run

LORA = ["model.config.train_architecture=lora", "model.config.lora_rank=4", "model.config.lora_alpha=8"]
LORA += ["scheduler.cycle_lengths=[2000]"]  # the same rates, however long a run is
FAST = ["scheduler.warm_up_steps=[0]", "optimizer.lr=0.02"]  # far enough from the base to tell apart


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published file of a run of all weights."""
    return run(tmp_path_factory.mktemp("base"), "trainer.max_iter=1").folder.exports(1)["both"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Trainer:
    """Three updates of adapters beside `base`, a state after two."""
    options = ["trainer.max_iter=3", "checkpoint.save_iter=2", "checkpoint.keep_last_k=null"]
    return run(tmp_path_factory.mktemp("trained"), *LORA, *FAST, f"checkpoint.load_path={base}", *options)


@pytest.fixture(autouse=True)
def no_group_left() -> Iterator[None]:
    """A compute dtype of its own makes one process a group, which a command ends with itself."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def states(folder: RunFolder) -> dict[str, torch.Tensor]:
    iteration = folder.newest()
    assert iteration is not None
    with SavedState(folder, iteration) as saved:
        kinds = ("weights", "ema", "optimizer")
        return {f"{kind}:{name}": saved.read(kind, name) for kind in kinds for name in saved.names(kind)}


def assert_identical(folder: RunFolder, other: RunFolder) -> None:
    a, b = states(folder), states(other)
    assert a.keys() == b.keys() and not [name for name in a if not torch.equal(a[name], b[name])]


def plain_network(trainer: Trainer, base: Path) -> DiT:
    net = build_dit(trainer.model.net.config, init=None)
    with TensorFile(base) as source:
        load_state(net, source)
    return net.eval()


@torch.no_grad()
def output(net: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 2, 6, 8, generator=generator)
    text = torch.randn(1, 5, 1024, generator=generator)
    options = {"condition_mask": torch.zeros(1, 1, 2, 6, 8), "padding_mask": torch.zeros(1, 1, 6, 8)}
    return net(x, torch.tensor([0.3]), text, **options)


def test_the_state_holds_what_is_trained_and_names_the_base(trained: Trainer, base: Path) -> None:
    folder = trained.folder
    about = {"base": str(base), "base_hash": file_hash(base), "made_for": "predict2 video2world"}
    assert folder.read_index(3)["lora"] == {**about, "rank": 4, "alpha": 8.0}
    state = states(folder)
    assert len([name for name in state if name.startswith("weights:")]) == 20  # 10 layers of one block
    assert not [name for name in state if ".lora_" not in name]
    trainable = sum(p.numel() for p in trained.model.parameters() if p.requires_grad)
    assert sum(t.numel() for name, t in state.items() if name.startswith("ema:")) == trainable
    assert all(p.grad is None for p in trained.model.parameters() if not p.requires_grad)


def test_the_base_is_untouched(trained: Trainer, base: Path) -> None:
    published = {key: t for key, t in load_tensors(base).items() if key.startswith("net.")}
    with without_adapters(trained.model.net):
        present = {f"net.{name}": tensor for name, tensor in trained.model.net.state_dict().items()}
    assert present.keys() == published.keys()
    assert not [name for name in present if not torch.equal(present[name], published[name].float())]


@pytest.mark.parametrize("part", ["reg", "ema"])
def test_exports_compute_what_was_trained_here_and_in_peft(trained: Trainer, base: Path, part: str) -> None:
    folder = trained.folder.adapters(3)[part]
    if part == "reg":
        expected = output(trained.model.eval().net)
    else:
        assert trained.ema is not None
        with trained.ema.scope(trained.model):
            expected = output(trained.model.eval().net)
    net, plain = plain_network(trained, base), output(plain_network(trained, base))
    (adapter,) = load_adapters(net, trained.folder.root, ema=part == "ema")
    assert (adapter.base, adapter.base_hash, adapter.where) == (str(base), file_hash(base), str(folder))
    assert torch.equal(output(net), expected)
    assert (expected - plain).norm() > 1e-3 * plain.norm()
    peer = peft.PeftModel.from_pretrained(plain_network(trained, base), str(folder))
    assert (output(peer) - expected).norm() <= 1e-5 * expected.norm()


def test_exports_merge_into_the_base(trained: Trainer, base: Path, tmp_path: Path) -> None:
    how = Conversion(lora=[trained.folder.adapters(3)["reg"]], merge=True, dtype=torch.float32)
    convert(base, tmp_path / "merged.pt", how)
    net = load_network(tmp_path / "merged.pt", config=trained.model.net.config).eval()
    expected = output(trained.model.eval().net)
    assert (output(net) - expected).norm() <= 1e-2 * expected.norm()  # the base is bfloat16, and so are the sums


def test_published_names_of_the_run(trained: Trainer, tmp_path: Path) -> None:
    folder = trained.folder
    assert (folder.checkpoints / "latest_checkpoint.txt").read_text() == "iter_000000003_lora\n"
    found = sorted(str(p.relative_to(folder.checkpoints / "model")) for p in folder.checkpoints.glob("model/*/*/*.*"))
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert found == [
        f"iter_00000000{n}_lora/{part}/{name}" for n in (2, 3) for part in ("ema", "reg") for name in names
    ]
    assert adapter_folder(folder.root) == folder.adapters(3)["reg"]
    assert adapter_folder(folder.adapters(2)["reg"].parent, ema=True) == folder.adapters(2)["ema"]
    with pytest.raises(CheckpointError, match=r"holds LoRA adapters alone: give their base \(.*\.pt\) in its place"):
        published_file(folder.root)


def test_resume_is_bit_identical_and_remakes_exports(trained: Trainer, base: Path, tmp_path: Path) -> None:
    options = [*LORA, *FAST, "checkpoint.save_iter=2", "checkpoint.keep_last_k=1", f"checkpoint.load_path={base}"]
    folder = run(tmp_path, *options, "trainer.max_iter=2").folder
    config = folder.adapters(2)["ema"] / "adapter_config.json"
    config.unlink()
    run(tmp_path, *options, "trainer.max_iter=2")
    assert config.is_file()
    moved = tmp_path / "moved.pt"  # the same file elsewhere is the same base
    moved.write_bytes(base.read_bytes())
    run(tmp_path, *options, "trainer.max_iter=3", f"checkpoint.load_path={moved}")
    assert_identical(folder, trained.folder)
    assert [path.name for path in (folder.checkpoints / "model").iterdir()] == ["iter_000000003_lora"]


def test_another_base_rank_or_scale_is_refused(tmp_path: Path, base: Path) -> None:
    start = ["trainer.max_iter=1", f"checkpoint.load_path={base}"]
    run(tmp_path, *LORA, *start)
    other = run(tmp_path / "other", "trainer.max_iter=1", "trainer.seed=5").folder.exports(1)["both"]
    for change, message in (
        (f"checkpoint.load_path={other}", r"trained beside .*\(sha256:\w+\); this run's base is .*\(sha256:\w+\)"),
        ("model.config.model_manager_config.load_ema=true", r"this run's base is .*\(sha256:\w+#ema\)"),
        ("model.config.lora_rank=2", "adapters with lora_rank=4, this run has lora_rank=2: set that"),
        ("model.config.lora_alpha=4", "adapters with lora_alpha=8.0, this run has lora_alpha=4.0"),
        ("model.config.lora_target_modules=q_proj", "holds another network: 16 names differ"),
        ("model.config.train_architecture=base", "run with train_architecture=lora, this one has base: choose another"),
    ):
        with pytest.raises(CheckpointError, match=message):
            run(tmp_path, *LORA, *start, change)
    with pytest.raises(CheckpointError, match="run with train_architecture=base, this one has lora: choose another"):
        run(tmp_path / "other", *LORA, "trainer.max_iter=2")
    with pytest.raises(
        CheckpointError, match="is a run that trained all weights: give it as --dit_path, not --lora_path"
    ):
        adapter_folder(RunFolder(other.parents[2]).root)


def test_a_random_base_is_made_again_from_the_seed(tmp_path: Path) -> None:
    ranks = {}
    for rank in (2, 4):  # the base does not depend on the adapters
        trainer = run(tmp_path / str(rank), *LORA, f"model.config.lora_rank={rank}", "trainer.max_iter=1")
        ranks[rank] = trainer.folder.read_index(1)["lora"]
    assert ranks[2]["base"] is None and ranks[2]["base_hash"] == ranks[4]["base_hash"]
    config = json.loads((trainer.folder.adapters(1)["reg"] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None and config["revision"] == ranks[4]["base_hash"]
    plain = run(tmp_path / "base", "trainer.max_iter=1", "optimizer.lr=0", "model.config.pipe_config.ema.enabled=false")
    with without_adapters(trainer.model.net):
        for name, tensor in trainer.model.net.state_dict().items():
            assert torch.equal(tensor, plain.model.net.state_dict()[name]), name
    run(tmp_path / "4", *LORA, "trainer.max_iter=2")
    with pytest.raises(CheckpointError, match="trained beside a random base .* this run's base is a random base"):
        run(tmp_path / "4", *LORA, "trainer.max_iter=3", "trainer.seed=1")


def test_settings_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    lora = LORA[0]
    for change, message in (
        ("model.config.train_architecture=lroa", "train_architecture='lroa' is not 'base' or 'lora'"),
        (
            "model.config.lora_target_modules=q_prj",
            "LoRA target 'q_prj' matches no layer.*Nearest linear layers: q_proj",
        ),
        ("model.config.lora_rank=0", "lora_rank=0 must be at least 1"),
        ("model.config.init_lora_weights=false", "init_lora_weights=False is not available"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tmp_path, lora, change, "trainer.max_iter=1")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["optimizer=adamw8bit"], id="8bit"),
        pytest.param(["+model.dtype=bfloat16"], id="bf16-base"),
        pytest.param(["trainer.compute_dtype=bfloat16", "+model.dtype=bfloat16"], id="bf16-compute"),
        pytest.param(["trainer.activation_checkpointing=selective"], id="checkpointing"),
        pytest.param(["checkpoint=predict1", "model.config.loss_add_logvar=true"], id="predict1-layout"),
    ],
)
def test_other_settings_resume_bit_for_bit(tmp_path: Path, options: list[str]) -> None:
    """Adapters stay float32 beside a bfloat16 base; a trained log-variance head is part of the state."""
    options = [*LORA, *options, "model.config.lora_target_modules=output_proj,mlp.layer1", "checkpoint.save_iter=1"]
    whole = run(tmp_path / "whole", *options, "trainer.max_iter=3")
    run(tmp_path / "parts", *options, "trainer.max_iter=1")
    parts = run(tmp_path / "parts", *options, "trainer.max_iter=3")
    assert_identical(parts.folder, whole.folder)
    state = states(whole.folder)
    assert {t.dtype for name, t in state.items() if name.startswith(("weights", "ema"))} == {torch.float32}
    assert ("weights:logvar.1.weight" in state) == ("loss_add_logvar" in str(options))
    assert adapter_folder(whole.folder.root, ema=True) == whole.folder.adapters(3)["ema"]


def test_the_end_report_tells_how_far_the_adapters_reach(trained: Trainer, tmp_path: Path) -> None:
    net = trained.model.net
    report = json.loads((trained.folder.root / "weights_report.json").read_text())
    change = weight = 0.0
    for module in net.modules():
        if hasattr(module, "merged_weight"):
            change += float((module.merged_weight() - module.weight).square().sum())
            weight += float(module.weight.square().sum())
    assert report["adapter_effect"] == pytest.approx((change / weight) ** 0.5, rel=1e-3)
    assert report["unmoved"] == []
    with without_adapters(net):
        assert adapter_effect(net) is None


def test_blocks_with_adapters_compile_whole(trained: Trainer, base: Path) -> None:
    from torch._dynamo.utils import counters

    net = plain_network(trained, base)
    load_adapters(net, trained.folder.root)
    expected = output(net)
    counters.clear()
    compile_blocks(net, backend="aot_eager")
    torch.testing.assert_close(output(net), expected, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] >= 1 and not counters["graph_break"]


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, base: Path) -> None:
    """The command line, killed during updates and saves."""
    options = [*LORA, *FAST, f"checkpoint.load_path={base}", "checkpoint.save_iter=1", "trainer.max_iter=12"]
    whole = run(tmp_path / "whole", *options)
    folder = RunFolder(tmp_path / "killed" / "cosmos_predict" / "tiny" / "tiny_video2world_debug")
    for saved in (1, 6):
        process = subprocess.Popen(
            [sys.executable, "-m", "train", "--", *BASE, *options],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OUTPUT_ROOT": str(tmp_path / "killed"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.monotonic() + 120
        while (folder.newest() or 0) < saved:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.01)
        time.sleep(0.02 * saved)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert_identical(run(tmp_path / "killed", *options).folder, whole.folder)

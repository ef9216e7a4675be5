"""TensorBoard, Weights & Biases, weights report, profiler, and the choices of callbacks. Real runs of the tiny experiment."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loguru import logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from cosmos_predict.config.compose import compose
from cosmos_predict.config.files import load_config, save_config
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.errors import ConfigError
from cosmos_predict.models.published import PUBLISHED, published_config
from cosmos_predict.networks.dit import DiT
from cosmos_predict.training.reports import KEPT_VALUES, _movement, _snapshot, group_of
from cosmos_predict.training.trainer import Trainer
from tests.training.tiny_run import BASE, metrics, run

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def messages():
    """What is logged, a line each."""
    lines: list[str] = []
    handler = logger.add(lambda message: lines.append(str(message).strip()), format="{level}: {message}")
    yield lines
    logger.remove(handler)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Three updates with a save after the second, then resumed from the second to the fourth."""
    root = tmp_path_factory.mktemp("run")
    options = ["callbacks=[validation,samples]", "trainer.callbacks.samples.num_steps=2", "trainer.max_val_iter=1"]
    first = run(root, *options, "trainer.max_iter=3", "checkpoint.save_iter=2", "checkpoint.keep_last_k=null")
    first.folder.remove(3)
    return run(root, *options, "trainer.max_iter=4")


def test_tensorboard_holds_what_was_published(resumed: Trainer) -> None:
    events = EventAccumulator(str(resumed.folder.root / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/lr", "train/skipped", "train/grad_norm", "val/loss", "val/high/mse"} <= set(
        tags["scalars"]
    )
    lines = {line["iteration"]: line for line in metrics(resumed) if "loss" in line}  # the later of two lines
    shown = events.Scalars("train/loss")
    # The third update was made twice: the resumed run hides the first one.
    assert [event.step for event in shown] == [1, 2, 3, 4]
    assert [event.value for event in shown] == pytest.approx([lines[n]["loss"] for n in (1, 2, 3, 4)])
    assert [event.step for event in events.Scalars("val/loss")] == [0, 4]
    assert [event.step for event in events.Images("samples")] == [4]
    assert "tiny_video2world" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


def test_rates_do_not_count_what_comes_between_updates(resumed: Trainer) -> None:
    lines = [line for line in metrics(resumed) if "samples_per_s" in line]
    assert all(line["samples_per_s"] > 0 and 0 <= line["wait_share"] <= 1 for line in lines)


def test_rates_count_every_micro_batch_with_its_own_shape(resumed: Trainer) -> None:
    """Videos of two latent frames and an image, of other sizes than the last."""
    from cosmos_predict.networks.flops import training_flops
    from cosmos_predict.training.callbacks import LossRecord, ProgressLine, StepReport

    loss, line = torch.tensor(1.0), ProgressLine()
    shapes = [(2, 16, 2, 6, 8), (3, 16, 1, 4, 4)]  # 24 and 4 tokens a sample
    line.reports = [StepReport(1, [LossRecord(loss, loss, shape) for shape in shapes], 1.0, 1e-3, False, 5, 0.1, 2.0)]
    line.started = 0.0
    values = line._measure(resumed)
    assert values["tokens_per_s"] == (2 * 24 + 3 * 4) / 2.0 and values["samples_per_s"] == 2.5
    net = resumed.model.net.config
    flops = 2 * training_flops(net, (2, 6, 8)) + 3 * training_flops(net, (1, 4, 4))
    assert values["tflops"] == pytest.approx(flops / 2.0 / 1e12)


def test_wandb_without_key_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    root = run(tmp_path, "trainer.max_iter=1").folder.root
    assert not any("WANDB" in line or "Weights & Biases" in line for line in messages)
    assert not (root / "wandb_run_id.txt").exists() and not (root / "wandb").exists()


def test_wandb_without_the_package_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setitem(sys.modules, "wandb", None)  # what an absent package does to an import
    trainer = run(tmp_path, "trainer.max_iter=2")
    assert [line for line in messages if "WANDB_API_KEY" in line] == [
        "WARNING: WANDB_API_KEY is set, but the package is missing: pip install wandb; nothing is sent"
    ]
    assert trainer.progress.iteration == 2


def test_wandb_offline_run_takes_names_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra 'track' is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_PROJECT_NAME", "project_of_mine")
    monkeypatch.setenv("WANDB_RUN_ID", "run42")
    monkeypatch.setenv("WANDB_RUN_NAME", "name_of_mine")
    trainer = run(tmp_path, "trainer.max_iter=2")
    sent = next(callback.run for callback in trainer.callbacks if type(callback).__name__ == "Wandb")
    assert (sent.project, sent.group, sent.name, sent.id) == (
        "project_of_mine",
        "tiny",
        "name_of_mine",
        "run42",
    )
    log = next((trainer.folder.root / "wandb").glob("offline-run-*/run-run42.wandb")).read_bytes()
    assert b"train/loss" in log and b"train/lr" in log
    assert (trainer.folder.root / "wandb_run_id.txt").read_text() == "run42\n"
    assert wandb.run is None


def test_weights_report_measures_groups(resumed: Trainer) -> None:
    report = json.loads((resumed.folder.root / "weights_report.json").read_text())
    assert (report["from_iteration"], report["to_iteration"]) == (2, 4)
    assert set(report["groups"]) == {
        "modulation", "self-attention", "cross-attention", "mlp", "final layer", "embedders"
    }  # fmt: skip
    parameters = [p.numel() for p in resumed.model.parameters()]
    assert sum(group["parameters"] for group in report["groups"].values()) == sum(parameters)
    assert all(0 < group["relative_change"] < 0.1 for group in report["groups"].values())


def test_weights_report_is_exact_for_small_tensors(tmp_path: Path) -> None:
    """The MLP's change is recomputed from the weights of the first and the last saved iteration."""
    from cosmos_predict.io.tensors import load_tensors

    options = ["checkpoint.save_iter=1", "checkpoint.keep_last_k=null"]
    run(tmp_path, *options, "trainer.max_iter=1")
    folder = run(tmp_path, *options, "trainer.max_iter=3").folder
    first, last = (load_tensors(next(folder.part("trainer", n).glob("weights*"))) for n in (1, 3))
    names = [name for name in first if ".mlp." in name and "modulation" not in name]
    change = sum(float((last[name] - first[name]).double().square().sum()) for name in names)
    start = sum(float(first[name].double().square().sum()) for name in names)
    report = json.loads((folder.root / "weights_report.json").read_text())
    assert report["groups"]["mlp"]["relative_change"] == pytest.approx((change / start) ** 0.5, rel=1e-6)


def test_tensors_that_do_not_move_are_named(tmp_path: Path, messages: list[str]) -> None:
    """Without given frames, text or weight decay, nothing reaches the text projection; with lr 0 nothing moves."""
    trainer = run(tmp_path / "a", "trainer.max_iter=2", "optimizer.weight_decay=0")
    unmoved = json.loads((trainer.folder.root / "weights_report.json").read_text())["unmoved"]
    assert "net.crossattn_proj.0.weight" in unmoved and "net.final_layer.linear.weight" not in unmoved
    assert any("trained tensors did not move at all: net.crossattn_proj.0.weight" in line for line in messages)
    trainer = run(tmp_path / "b", "trainer.max_iter=2", "optimizer.lr=0.0")
    unmoved = json.loads((trainer.folder.root / "weights_report.json").read_text())["unmoved"]
    assert len(unmoved) == len(list(trainer.model.parameters()))
    assert any("and 21 more" in line for line in messages)


def test_finished_run_that_is_started_again_has_no_report(tmp_path: Path, messages: list[str]) -> None:
    root = run(tmp_path, "trainer.max_iter=1").folder.root
    (root / "weights_report.json").unlink()
    run(tmp_path, "trainer.max_iter=1")
    assert not (root / "weights_report.json").exists()
    assert not any("did not move" in line for line in messages)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_moved_value_of_a_large_tensor_is_seen(dtype: torch.dtype) -> None:
    """Even where it is not among the values that are kept."""
    weight = nn.Parameter(torch.randn(KEPT_VALUES, 4, generator=torch.Generator().manual_seed(0)).to(dtype))
    before = _snapshot(weight)
    assert len(before.values) <= KEPT_VALUES
    assert _movement(before, weight)[2] == 0
    with torch.no_grad():
        weight[0, 1] *= 1.5
    change, start, moved = _movement(before, weight)
    assert change == 0 and moved == 1
    assert start == pytest.approx(float(weight.detach().double().square().sum()), rel=0.02)


def test_estimate_of_a_large_tensor_is_close() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(512, 1024, generator=generator))
    before = _snapshot(weight)
    step = torch.randn(512, 1024, generator=generator) * torch.linspace(0, 1, 1024)  # columns move differently
    with torch.no_grad():
        weight += step
    change, _, _ = _movement(before, weight)
    assert change == pytest.approx(float(step.double().square().sum()), rel=0.02)


def test_every_published_parameter_has_its_group() -> None:
    controls = set()
    for name in PUBLISHED:
        with torch.device("meta"):
            net = DiT(published_config(name).replace(num_blocks=1))
        controls |= {key for key, _ in net.named_parameters(prefix="net") if group_of(key) == "controls"}
    known = ("action_embedder", "traj_embeddings", "view_embeddings", "repeat_frame_embedding", "augment_sigma_embedder",
             "camera", "cam_", "pluck", "add_map", "ctrl", "control")  # fmt: skip
    assert controls and [key for key in controls if not any(part in key for part in known)] == []


def test_profiler_writes_a_trace_of_the_updates(tmp_path: Path) -> None:
    options = ["callbacks=profiler", "trainer.callbacks.profiler.skip=1", "trainer.callbacks.profiler.active=1"]
    trainer = run(tmp_path, *options, "trainer.max_iter=4")
    folder = trainer.folder.root / "profile"
    assert sorted(path.name for path in folder.iterdir()) == ["iter_000000003.json.gz", "iter_000000003.txt"]
    with gzip.open(folder / "iter_000000003.json.gz") as stream:
        names = {event.get("name", "") for event in json.load(stream)["traceEvents"]}
    assert "aten::addmm" in names or "aten::mm" in names
    assert any("AdamW" in name or "_fused_adam" in name for name in names)
    assert "Self CPU" in (folder / "iter_000000003.txt").read_text()


def test_profiler_refuses_counts_that_do_not_fit() -> None:
    config = compose([*BASE, "callbacks=profiler", "trainer.callbacks.profiler.active=0"], report=[])
    with pytest.raises(ConfigError, match="profiler skip=5, warmup=1, active=0: expected"):
        instantiate(config.trainer.callbacks.profiler)


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callbacks of rank 1 of 2 around a step of their own: no file, no line."""
    from cosmos_predict.parallel.distributed import Ranks
    from cosmos_predict.training.callbacks import LossRecord, StepReport

    options = ["callbacks=[validation,samples,profiler]", "trainer.max_val_iter=1", "trainer.max_iter=1"]
    trainer = run(tmp_path / "a", *options, "trainer.callbacks.samples.num_steps=2")
    for path in [path for path in trainer.folder.root.rglob("*") if path.is_file() and "checkpoints" not in path.parts]:
        path.unlink()
    left = sorted(trainer.folder.root.rglob("*"))
    trainer.ranks = Ranks(rank=1, world_size=2)
    trainer.progress.iteration = 0
    trainer.callbacks = [instantiate(entry) for entry in trainer.config.trainer.callbacks.values()]
    loss = torch.tensor(1.0)
    report = StepReport(1, [LossRecord(loss, loss, (1, 16, 2, 6, 8))], 1.0, 1e-3, False, 1, 0.1, 1.0)
    for callback in trainer.callbacks:
        callback.on_train_start(trainer)
    trainer.progress.iteration = 1
    for callback in trainer.callbacks:
        callback.on_step(trainer, report)
    for callback in trainer.callbacks:
        callback.on_train_end(trainer)
    assert sorted(trainer.folder.root.rglob("*")) == left


def test_choices_add_to_the_defaults_and_survive_a_file(tmp_path: Path) -> None:
    default = {"progress", "tensorboard", "wandb", "validation", "weights"}
    assert set(compose(BASE, report=[]).trainer.callbacks) == default
    config = compose([*BASE, "callbacks=[profiler,samples]", "~trainer.callbacks.wandb"], report=[])
    assert set(config.trainer.callbacks) == default - {"wandb"} | {"profiler", "samples"}
    assert config.trainer.callbacks.validation.enabled is False
    assert compose([*BASE, "callbacks=validation"], report=[]).trainer.callbacks.validation.enabled is True
    save_config(config, tmp_path / "config.yaml")
    loaded = load_config(tmp_path / "config.yaml")
    assert [type(instantiate(entry)).__name__ for entry in loaded.trainer.callbacks.values()]


def test_run_validation_enables_the_default_callback() -> None:
    loader = "dataloader_val={_target_: cosmos_predict.data.loader.build_dataloader}"
    config = compose([*BASE, "trainer.run_validation=true", loader], report=[])
    assert config.trainer.callbacks.validation.enabled is True


def test_registering_callbacks_imports_no_torch() -> None:
    code = "import sys, experiments.callbacks as c; c.basic_callbacks(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_pictures_reach_every_callback_as_uint8(resumed: Trainer) -> None:
    events = EventAccumulator(str(resumed.folder.root / "tensorboard"))
    events.Reload()
    image = events.Images("samples")[0]
    from cosmos_predict.data.video_reader import read_image

    picture = read_image(resumed.folder.root / "samples" / "iter_000000004.png")
    assert (image.height, image.width) == picture.shape[:2] and picture.dtype == np.uint8

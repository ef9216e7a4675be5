"""Every way of starting from what this run or another one left. Real runs of the tiny experiment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from loguru import logger

from cosmos_predict.checkpoint.run_folder import RunFolder, find_run_folder, published_file, state_at
from cosmos_predict.config.compose import compose
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.tensors import load_tensors
from cosmos_predict.training.saving import forget_metrics
from cosmos_predict.training.trainer import Trainer
from tests.parallel.ranks import check, run_ranks
from tests.training.test_saving import weights
from tests.training.test_trainer import state_of
from tests.training.tiny_run import BASE, metrics, run

OUT = "final_layer.linear.weight"
WIDER = ["model.config.pipe_config.net.adaln_lora_dim=16"]


def messages(level: str = "WARNING") -> list[str]:
    lines: list[str] = []
    logger.add(lambda message: lines.append(str(message)), level=level, format="{message}")
    return lines


# ---- metrics and settings ------------------------------------------------------------------------------------------------


def test_metrics_past_the_resumed_iteration_are_dropped(tmp_path: Path) -> None:
    trainer = run(tmp_path, "trainer.max_iter=2")
    with (trainer.folder.root / "metrics.jsonl").open("a") as stream:
        stream.write('{"iteration": 3, "loss": 1.0}\n{"iteration": 4, "lo')
    trainer = run(tmp_path, "trainer.max_iter=4")
    assert [line["iteration"] for line in metrics(trainer)] == [1, 2, 3, 4]
    path = tmp_path / "m.jsonl"
    path.write_text('{"iteration": 0, "val/loss": 1.0}\n')
    forget_metrics(path, 2)
    assert json.loads(path.read_text())["iteration"] == 0
    forget_metrics(path, 0)
    assert not path.read_text()


def test_changed_settings_are_named_on_resume(tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_iter=1", "optimizer.lr=1e-3")
    lines = messages()
    run(tmp_path, "trainer.max_iter=2", "optimizer.lr=1e-6")
    (line,) = [line for line in lines if "settings changed" in line]
    assert (
        "trainer.max_iter: 1 -> 2" in line and "optimizer.lr: 0.001 -> 1e-06" in line and line.count("->") == 3
    )  # the schedule's length too
    del lines[:]
    run(tmp_path, "trainer.max_iter=2", "optimizer.lr=1e-6")
    assert not [line for line in lines if "settings changed" in line]


# ---- strict_resume, keys_not_to_resume ---------------------------------------------------------------------------------


def test_other_tensors_are_refused_or_reported_and_left(tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_iter=1")
    with pytest.raises(CheckpointError, match=r"this run's is .*checkpoint.strict_resume=false takes what fits"):
        run(tmp_path, "trainer.max_iter=2", *WIDER)
    lines = messages()
    assert run(tmp_path, "trainer.max_iter=2", *WIDER, "checkpoint.strict_resume=false").progress.iteration == 2
    assert [line for line in lines if "tensors do not fit and are left: ['net.blocks.0.adaln" in line]


def test_base_with_other_tensors(tmp_path: Path) -> None:
    base = run(tmp_path / "base", "trainer.max_iter=1")
    path = base.folder.exports(1)["both"]
    start = ["trainer.max_iter=1", "optimizer.lr=1e-12", *WIDER, f"checkpoint.load_path={path}"]
    with pytest.raises(CheckpointError):
        run(tmp_path / "strict", *start)
    lines = messages()
    trainer = run(tmp_path / "loose", *start, "checkpoint.strict_resume=false")
    assert [line for line in lines if "tensors do not fit and are left: ['blocks.0.adaln" in line]
    torch.testing.assert_close(
        weights(trainer)[f"net.{OUT}"], weights(base)[f"net.{OUT}"], rtol=1e-2, atol=1e-6
    )  # of the file's bfloat16
    assert all(tensor.isfinite().all() for tensor in weights(trainer).values())


@pytest.mark.parametrize("part", ["model", "optim", "scheduler", "trainer"])
def test_parts_not_to_resume(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path, "trainer.max_iter=3")
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "other"))
    source = [f"checkpoint.load_path={first.folder.root}", "checkpoint.load_training_state=true"]
    config = compose([*BASE, *source, "trainer.max_iter=3", f"checkpoint.keys_not_to_resume=[{part}]"], report=[])
    config.freeze()
    trainer = Trainer(config, device="cpu")
    trainer.build()
    trainer.saver.resume()
    took = {
        "model": torch.equal(weights(trainer)[f"net.{OUT}"], weights(first)[f"net.{OUT}"]),
        "optim": bool(trainer.optimizer.state_dict()["state"]),
        "scheduler": trainer.scheduler.last_epoch == 3,
        "trainer": trainer.progress.iteration == 3 and trainer.progress.sample_number == 3,
    }
    assert took == {name: name != part for name in took}


def test_parts_not_to_resume_of_the_runs_own_folder(tmp_path: Path) -> None:
    folder = run(tmp_path, "trainer.max_iter=2").folder
    kept = (folder.root / "metrics.jsonl").read_text()
    with pytest.raises(
        CheckpointError, match=r"is this run's own folder(.|\n)*Take 'trainer' out(.|\n)*another job.name"
    ):
        run(tmp_path, "trainer.max_iter=3", "checkpoint.keys_not_to_resume=[trainer,optim]")
    assert folder.newest() == 2 and (folder.root / "metrics.jsonl").read_text() == kept
    lines = messages()
    run(tmp_path, "trainer.max_iter=3", "checkpoint.keys_not_to_resume=[optim]")
    assert [line for line in lines if "keys_not_to_resume: every start begins ['optim'] anew" in line]


def test_updates_skipped_in_a_row_are_counted_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = run(tmp_path, "trainer.max_iter=1")
    trainer.progress.skipped_in_a_row, trainer.progress.skipped, trainer.progress.iteration = 3, 4, 2
    trainer.saver.save(last=True)
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path))
    index = trainer.folder.index(2)
    for expected in (3, 0):
        config = compose([*BASE, "trainer.max_iter=2"], report=[])
        config.freeze()
        again = Trainer(config, device="cpu")
        again.build()
        again.saver.resume()
        assert (again.progress.skipped_in_a_row, again.progress.skipped) == (expected, 4)
        old = json.loads(index.read_text())  # as it was written before this number was kept
        old.pop("skipped_in_a_row", None)
        index.write_text(json.dumps(old))


def test_unknown_part_is_named() -> None:
    with pytest.raises(ConfigError, match=r"keys_not_to_resume: 'optimizer' is no part of a run's state: .*optim"):
        compose([*BASE, "checkpoint.keys_not_to_resume=[optimizer]"], report=[]).validate()


@pytest.mark.parametrize("options", [[], ["optimizer=adamw", "model.dtype=bfloat16"]])
def test_an_average_that_begins_later_starts_from_the_resumed_weights(tmp_path: Path, options: list[str]) -> None:
    """Switched on for a run that kept none: no other network, and moments go on."""
    first = run(tmp_path, *options, "trainer.max_iter=2", "model.config.pipe_config.ema.enabled=false")
    lines = messages()
    trainer = run(tmp_path, *options, "trainer.max_iter=3", "optimizer.lr=1e-12")
    assert [line for line in lines if "kept no EMA: it begins with the weights of now" in line]
    state, before = state_of(trainer), state_of(first)
    kept = f"optimizer:master.net.{OUT}" if options else f"weights:net.{OUT}"
    torch.testing.assert_close(state[f"ema:net.{OUT}"], before[kept], rtol=0, atol=1e-9)
    assert state[f"optimizer:step.net.{OUT}"] == 3


def test_8bit_moments_are_refused_by_an_optimizer_that_cannot_read_them(tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_iter=1", "optimizer=adamw8bit")
    with pytest.raises(
        CheckpointError, match=r"exp_avg_codes(.|\n)*keep that optimizer, or(.|\n)*keys_not_to_resume=\[optim\]"
    ):
        run(tmp_path, "trainer.max_iter=2", "optimizer=adamw")


# ---- starting from another run ---------------------------------------------------------------------------------------


def test_training_state_of_another_run(tmp_path: Path) -> None:
    """A new run goes on from it as the run itself would have."""
    first = run(tmp_path / "first", "trainer.max_iter=2")
    whole = state_of(run(tmp_path / "whole", "trainer.max_iter=4"))
    path = f"checkpoint.load_path={first.folder.root}"
    other = run(tmp_path / "other", "trainer.max_iter=4", path, "checkpoint.load_training_state=true")
    assert other.folder.root != first.folder.root and other.folder.newest() == 4
    same = state_of(other)
    assert all(torch.equal(tensor, same[name]) for name, tensor in whole.items())
    place = run(tmp_path / "place", "trainer.max_iter=1", path, "checkpoint.only_load_scheduler_state=true")
    assert place.progress.iteration == 1 and place.scheduler.last_epoch == 3


def test_training_state_of_another_lora_run(tmp_path: Path) -> None:
    """Such a run holds no base: that is `dit_path`'s, or here the seed's."""
    lora = ["model.config.train_architecture=lora"]
    first = run(tmp_path / "first", *lora, "trainer.max_iter=2")
    path = [f"checkpoint.load_path={first.folder.root}", "checkpoint.load_training_state=true"]
    other = run(tmp_path / "other", *lora, "trainer.max_iter=3", "optimizer.lr=1e-12", *path)
    assert other.progress.iteration == 3
    kept, found = weights(first), weights(other)
    for name, tensor in kept.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-9)


def test_what_holds_no_training_state_is_named(tmp_path: Path) -> None:
    file = run(tmp_path / "a", "trainer.max_iter=1").folder.exports(1)["both"]
    assert state_at(file)[1] == 1
    moved = shutil.copy(file, tmp_path / "alone.pt")
    options = [f"checkpoint.load_path={moved}", "checkpoint.load_training_state=true"]
    with pytest.raises(CheckpointError, match=r"alone.pt' lies in no run folder of this trainer"):
        run(tmp_path / "b", "trainer.max_iter=2", *options)
    with pytest.raises(CheckpointError, match=r"has no complete state of iteration 7; complete ones: 1"):
        state_at(file.with_name("iter_000000007.pt"))


def test_run_folder_of_the_published_trainer(tmp_path: Path) -> None:
    """Its layout: weights, optimizer, scheduler and trainer in files, `latest_checkpoint.txt`, a config.yaml not ours."""
    source = load_tensors(run(tmp_path / "ours", "trainer.max_iter=1").folder.exports(1)["both"])
    root = tmp_path / "published" / "posttraining" / "video2world" / "2b"
    for part in ("model", "optim", "scheduler", "trainer"):
        (root / "checkpoints" / part).mkdir(parents=True)
        for iteration in (500, 1000):
            state = (
                {**source, "net.accum_iteration": torch.tensor(iteration)} if part == "model" else {"a": torch.zeros(1)}
            )
            torch.save(state, root / "checkpoints" / part / f"iter_{iteration:09d}.pt")
    (root / "checkpoints" / "latest_checkpoint.txt").write_text("iter_000000500.pt\n")
    (root / "config.yaml").write_text("_target_: imaginaire.config.Config\n")
    assert find_run_folder(root) is None
    model = root / "checkpoints" / "model"
    assert published_file(root) == published_file(root / "checkpoints") == model / "iter_000000500.pt"
    trainer = run(tmp_path / "new", "trainer.max_iter=1", "optimizer.lr=1e-12", f"checkpoint.load_path={root}")
    torch.testing.assert_close(weights(trainer)[f"net.{OUT}"], source[f"net.{OUT}"].float(), rtol=0, atol=1e-9)
    (model / "iter_000000500.pt").unlink()  # a pointer written before its file
    assert published_file(root) == model / "iter_000001000.pt"
    shutil.rmtree(model)
    with pytest.raises(CheckpointError, match="names iter_000000500 as its latest checkpoint, but holds no iter_"):
        published_file(root)
    with pytest.raises(ConfigError, match=r"holds a run of the published trainer(.|\n)*checkpoint.load_path="):
        RunFolder(root).acquire()


def test_published_run_folder_of_predict1(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("", "_reg_model", "_ema_model", "_optim"):
        (folder / f"iter_000000200{name}.pt").write_bytes(b"x")
    (folder / "latest_checkpoint.txt").write_text("iter_000000200.pt")
    assert published_file(tmp_path / "run").name == "iter_000000200_reg_model.pt"
    assert published_file(tmp_path / "run", ema=True).name == "iter_000000200_ema_model.pt"


# ---- weights in bfloat16 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["optimizer=adamw_bf16"], ["optimizer=adamw", "model.dtype=bfloat16"]])
def test_bfloat16_weights_end_to_end(tmp_path: Path, options: list[str]) -> None:
    """The choice sets the weights' dtype; the state resumes bit for bit; the EMA is float32, of masters where there are."""
    whole = run(tmp_path / "whole", *options, "trainer.max_iter=4")
    run(tmp_path / "parts", *options, "trainer.max_iter=2")
    parts = run(tmp_path / "parts", *options, "trainer.max_iter=4")
    a, b = state_of(whole), state_of(parts)
    assert a.keys() == b.keys() and not [name for name in a if not torch.equal(a[name], b[name])]
    assert {t.dtype for n, t in a.items() if n.startswith("weights:net.")} == {torch.bfloat16}
    assert {t.dtype for n, t in a.items() if n.startswith("ema:")} == {torch.float32}
    has_masters = f"optimizer:master.net.{OUT}" in a
    assert has_masters == ("optimizer=adamw" in options)
    published = load_tensors(whole.folder.exports(4)["both"])
    assert torch.equal(published[f"net.{OUT}"], a[f"weights:net.{OUT}"])
    assert torch.equal(published[f"net_ema.{OUT}"], a[f"ema:net.{OUT}"])
    # The first update copies: the average of one is the weight as the optimizer keeps it.
    one = state_of(run(tmp_path / "one", *options, "trainer.max_iter=1"))
    kept = one[f"optimizer:master.net.{OUT}"] if has_masters else one[f"weights:net.{OUT}"].float()
    assert torch.equal(one[f"ema:net.{OUT}"], kept)


def test_masters_follow_weights_that_are_resumed_alone(tmp_path: Path) -> None:
    options = ["optimizer=adamw", "model.dtype=bfloat16"]
    first = run(tmp_path, *options, "trainer.max_iter=2")
    trainer = run(
        tmp_path, *options, "trainer.max_iter=3", "optimizer.lr=1e-12", "checkpoint.keys_not_to_resume=[optim]"
    )
    assert torch.equal(weights(trainer)[f"net.{OUT}"], weights(first)[f"net.{OUT}"])


def test_stochastic_rounding_without_bfloat16_weights_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set model.dtype=bfloat16"):
        run(tmp_path, "optimizer=adamw_bf16", "model.dtype=float32", "trainer.max_iter=1")


# ---- several processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_8bit_moments_move_between_numbers_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, one, two again: the batch stays, the losses follow, and the log says that nothing was quantised anew."""
    options = ["optimizer=adamw8bit", "trainer.global_batch_size=2", "model.config.fsdp_shard_size=-1"]

    def train(name: str, ranks: int, steps: int) -> tuple[RunFolder, str]:
        monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / name))
        done = run_ranks("train", "--", *BASE, *options, f"trainer.max_iter={steps}", ranks=ranks, timeout=400)
        check(done)
        return RunFolder(tmp_path / name / "cosmos_predict" / "tiny" / "tiny_video2world_debug"), done[0].stderr

    def losses(folder: RunFolder) -> list[float]:
        return [json.loads(line)["loss"] for line in (folder.root / "metrics.jsonl").read_text().splitlines()]

    whole, _ = train("whole", 2, 6)
    parts, log = train("parts", 2, 2)
    assert "8-bit moments" not in log
    for ranks, steps in ((1, 4), (2, 6)):
        parts, log = train("parts", ranks, steps)
        assert "8-bit moments: none quantised anew" in log and "were converted" not in log
    assert parts.read_index(6)["global_batch_size"] == 2
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-3)

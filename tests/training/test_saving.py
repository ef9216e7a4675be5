"""The save beside the training: in the background, failing, killed, and on several processes. Real runs of the tiny experiment."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

from cosmos_predict.checkpoint.run_folder import RunFolder, find_run_folder, published_file
from cosmos_predict.checkpoint.run_state import StateWriter
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.tensors import load_tensors
from cosmos_predict.training.trainer import Trainer
from tests.parallel.ranks import check, run_ranks
from tests.parallel.training_runs import launch, rank_process, wait_for
from tests.training.tiny_run import BASE, run


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.weights().items()}


# ---- the save beside the training ---------------------------------------------------------------------------------------


def test_saves_in_the_background_are_those_in_the_foreground(tmp_path: Path) -> None:
    options = ["trainer.max_iter=5", "checkpoint.save_iter=2", "checkpoint.keep_last_k=null"]
    one = run(tmp_path / "a", *options)
    other = run(tmp_path / "b", *options, "checkpoint.async_save=false")
    assert one.folder.iterations() == other.folder.iterations() == [2, 4, 5]
    for iteration in (2, 4, 5):
        ours, theirs = (t.folder.exports(iteration)["both"].read_bytes() for t in (one, other))
        assert ours == theirs
        files = [one.folder.read_index(iteration)["files"], other.folder.read_index(iteration)["files"]]
        assert files[0] == files[1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("save")] or one.saver.written


def test_training_goes_on_while_the_state_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write waits for two more updates: it must hold the weights of its own iteration, and end before the next save."""
    gone_on, order = threading.Event(), []
    write, step = StateWriter.write, Trainer.step

    def slow_write(writer: StateWriter) -> None:
        assert writer.iteration == 6 or gone_on.wait(60), "the training did not go on"
        write(writer)
        order.append(("written", writer.iteration))

    def counted_step(trainer: Trainer, batches):
        report = step(trainer, batches)
        order.append(("step", report.iteration))
        if report.iteration == 5:
            gone_on.set()
        return report

    monkeypatch.setattr(StateWriter, "write", slow_write)
    monkeypatch.setattr(Trainer, "step", counted_step)
    trainer = run(tmp_path / "a", "trainer.max_iter=6", "checkpoint.save_iter=3", "checkpoint.keep_last_k=null")
    assert order.index(("step", 5)) < order.index(("written", 3)) < order.index(("written", 6))
    monkeypatch.undo()
    alone = run(tmp_path / "b", "trainer.max_iter=3")
    saved = load_tensors(next(trainer.folder.part("trainer", 3).glob("weights*")))
    assert all(torch.equal(saved[name], tensor) for name, tensor in weights(alone).items())


def test_a_failed_write_is_raised_between_updates(tmp_path: Path) -> None:
    """A file lies where the folder of the schedules belongs: the write fails for real, and the run ends long before its end."""
    blocked = RunFolder(tmp_path / "cosmos_predict" / "tiny" / "tiny_video2world_debug").checkpoints / "scheduler"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("no folder")
    with pytest.raises(OSError, match=r"iteration 2 could not be saved under .* rank 0: .*No earlier one is there"):
        run(tmp_path, "trainer.max_iter=100000", "checkpoint.save_iter=2")
    blocked.unlink()
    assert run(tmp_path, "trainer.max_iter=2").folder.newest() == 2


def test_a_failed_export_is_raised_and_made_again(tmp_path: Path) -> None:
    blocked = RunFolder(tmp_path / "cosmos_predict" / "tiny" / "tiny_video2world_debug").checkpoints / "model"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("no folder")
    with pytest.raises(
        OSError, match=r"the published files of iteration 2 could not be written: .*Its state is complete"
    ):
        run(tmp_path, "trainer.max_iter=2")
    blocked.unlink()
    trainer = run(tmp_path, "trainer.max_iter=2")
    assert trainer.folder.exports(2)["both"].is_file()


@pytest.mark.parametrize("save_iter", [1, 20])
def test_a_failed_export_ends_the_run_with_the_present_state_saved(tmp_path: Path, save_iter: int) -> None:
    """After the update in which it is seen, not at the save after; and no update is lost."""
    blocked = RunFolder(tmp_path / "cosmos_predict" / "tiny" / "tiny_video2world_debug").checkpoints / "model"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("no folder")
    options = [f"checkpoint.save_iter={save_iter}", f"trainer.max_iter={2 * save_iter + 2}"]
    with pytest.raises(OSError, match="the published files of iteration .* could not be written") as caught:
        run(tmp_path, *options)
    assert caught.value.errno in (errno.EEXIST, errno.ENOTDIR)  # as that of a full disk, which the run looks at
    folder = find_run_folder(blocked.parents[1])
    newest = folder.newest() if folder else None
    assert folder is not None and newest is not None and save_iter < newest < 2 * save_iter + 1
    logged = [json.loads(line)["iteration"] for line in (folder.root / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1] == newest
    blocked.unlink()
    assert run(tmp_path, *options).folder.exports(2 * save_iter + 2)["both"].is_file()


def test_a_killed_export_is_made_again(tmp_path: Path) -> None:
    """The kill came after the file and before `latest_checkpoint.txt`, or in the removal of the iteration before."""
    folder = run(tmp_path, "trainer.max_iter=2", "checkpoint.save_iter=1", "checkpoint.keep_last_k=null").folder
    latest, files = folder.checkpoints / "latest_checkpoint.txt", [folder.exports(n)["both"] for n in (1, 2)]
    assert published_file(folder.root) == files[1]
    latest.write_text("iter_000000001.pt\n")
    files[1].unlink()
    assert published_file(folder.root) == files[0]
    files[0].unlink()
    with pytest.raises(CheckpointError, match=r"2 has no published file yet .iter_000000002.pt.: start that run again"):
        published_file(folder.root)
    run(tmp_path, "trainer.max_iter=2")
    content = files[1].read_bytes()
    latest.write_text("iter_000000001.pt\n")
    run(tmp_path, "trainer.max_iter=2")
    assert latest.read_text() == "iter_000000002.pt\n" and files[1].read_bytes() == content


def test_a_killed_removal_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    for iteration in (1, 2, 3):
        folder.index(iteration).parent.mkdir(parents=True)
        folder.index(iteration).write_text('{"files": {}}')
        folder.exports(iteration)["both"].parent.mkdir(exist_ok=True)
        folder.exports(iteration)["both"].touch()
    kept = shutil.rmtree
    for stop in (Path.unlink, kept):  # the first removal of a file, or of a folder, is the last thing that is done

        def killed(*args: object, stop=stop, **options: object) -> None:
            stop(*args, **options)  # type: ignore[operator]
            raise KeyboardInterrupt

        monkeypatch.setattr(*((Path, "unlink") if stop is Path.unlink else (shutil, "rmtree")), killed)
        with pytest.raises(KeyboardInterrupt):
            folder.keep_last(2)
        monkeypatch.undo()
    folder.keep_last(2)
    assert sorted(path.name for path in folder.checkpoints.rglob("iter_*")) == [
        f"iter_00000000{n}{end}" for n in (2, 3) for end in ("", ".pt")
    ]


def test_a_run_that_ends_while_its_thread_writes_keeps_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, write, step = threading.Event(), StateWriter.write, Trainer.step

    def slow_write(writer: StateWriter) -> None:
        assert go_on.wait(60)
        write(writer)

    def interrupted_step(trainer: Trainer, batches):
        if trainer.progress.iteration == 1:
            raise KeyboardInterrupt
        return step(trainer, batches)

    monkeypatch.setattr(StateWriter, "write", slow_write)
    monkeypatch.setattr(Trainer, "step", interrupted_step)
    folder = RunFolder(tmp_path / "cosmos_predict" / "tiny" / "tiny_video2world_debug")
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "trainer.max_iter=2", "checkpoint.save_iter=1")
        with pytest.raises(ConfigError, match="is held by a run that is still alive"):
            folder.acquire()
    finally:
        go_on.set()


# ---- several processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failed_export_ends_all_ranks_with_the_present_state_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path))
    folder = RunFolder(tmp_path / "cosmos_predict" / "tiny" / "tiny_video2world_debug")
    folder.checkpoints.mkdir(parents=True)
    (folder.checkpoints / "model").write_text("no folder")
    options = ["checkpoint.save_iter=20", "trainer.max_iter=1000", "model.config.fsdp_shard_size=2"]
    main, other = run_ranks("train", "--", *BASE, *options, ranks=2)
    assert main.returncode == 1 and other.returncode == 1
    assert "the published files of iteration 2" in main.stderr and "Traceback" not in main.stderr, main.stderr
    newest = folder.newest()
    assert newest is not None and 20 < newest < 40
    assert json.loads((folder.root / "metrics.jsonl").read_text().splitlines()[-1])["iteration"] == newest


@pytest.mark.slow
def test_ranks_outwait_a_long_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than a collective may: the other rank must not wait for it in one."""
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path))
    check(run_ranks("tests.training.slow_export_program", ranks=2))
    folder = RunFolder(tmp_path / "cosmos_predict" / "tiny" / "tiny_video2world_debug")
    assert folder.newest() == 1 and folder.exports(1)["both"].is_file()


@pytest.mark.slow
def test_ctrl_c_to_torchrun_saves_on_all_ranks(tmp_path: Path) -> None:
    """The launcher passes the signal on, so that each rank may see it twice."""
    process = launch(tmp_path, "trainer.max_iter=100000", "model.config.fsdp_shard_size=2")
    folder = RunFolder(tmp_path / "cosmos_predict" / "tiny" / "tiny_video2world_debug")
    try:
        wait_for((folder.root / "metrics.jsonl").exists, process)
        os.killpg(process.pid, signal.SIGINT)
        output = process.communicate(timeout=90)[0]
    finally:
        process.kill()
    newest = folder.newest()
    assert newest is not None and f"SIGINT: saved iteration {newest}" in output, output
    assert json.loads((folder.root / "metrics.jsonl").read_text().splitlines()[-1])["iteration"] == newest


@pytest.mark.slow
def test_one_rank_that_cannot_write_ends_all(tmp_path: Path) -> None:
    """Its files may no longer grow: all ranks say why and end, and the iteration before is whole."""
    shards = "model.config.fsdp_shard_size=2"
    process = launch(tmp_path, "trainer.max_iter=100000", "checkpoint.save_iter=20", shards)
    folder = RunFolder(tmp_path / "cosmos_predict" / "tiny" / "tiny_video2world_debug")
    try:
        wait_for(lambda: bool(folder.newest()), process)
        resource.prlimit(rank_process(process.pid, 1), resource.RLIMIT_FSIZE, (1000, 1000))
        output = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    newest = folder.newest()
    assert process.returncode == 1 and newest is not None
    failed = f"iteration {newest + 20} could not be saved under {folder.checkpoints}; rank 1: OSError: "
    said = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(said) == 2 and all(failed in line and "File too large" in line for line in said), output
    assert all(f"Iteration {newest} is complete: the same command resumes it" in line for line in said)
    assert not folder.part("trainer", newest + 20).exists()
    process = launch(tmp_path, f"trainer.max_iter={newest + 1}", shards)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and f"at iteration {newest}, saved by 2 rank(s)" in output, output

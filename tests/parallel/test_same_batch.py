"""Ranks that share samples must have read the same ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cosmos_predict.parallel.same_batch import KEPT_VALUES, fingerprint
from tests.parallel.ranks import REPOSITORY, run_ranks
from tests.parallel.training_runs import BASE, CONTEXT, FRAMES, SHARD, folder_of

DAMAGED = "lift_003.mp4"


@pytest.mark.slow
@pytest.mark.parametrize("divided", [CONTEXT, "model_parallel.tensor_model_parallel_size"])
def test_a_clip_that_one_rank_cannot_read_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, divided: str
) -> None:
    """Each rank has a copy of four clips, one of the second's is damaged: there alone another clip takes its place."""
    for rank in range(2):
        for part in ("videos", "metas"):
            (tmp_path / str(rank) / part).mkdir(parents=True)
            for path in sorted((REPOSITORY / "assets" / "robot_arm" / part).iterdir())[:4]:
                shutil.copy(path, tmp_path / str(rank) / part)
    damaged = tmp_path / "1" / "videos" / DAMAGED
    damaged.write_bytes(damaged.read_bytes()[:3500].ljust(damaged.stat().st_size, b"\0"))
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path))
    command = [option for option in BASE if option != "data=synthetic"]
    command += [*FRAMES, f"{divided}=2", f"{SHARD}=1", "text=tiny", "trainer.max_iter=4", "checkpoint.save_iter=1"]
    command += [f"dataloader_train.dataset.dataset_dir={tmp_path}/${{oc.env:RANK}}"]
    processes = run_ranks("train", "--", *command, ranks=2, timeout=200)
    for process in processes:
        assert process.returncode == 2, process.stdout + process.stderr
        assert "the 2 processes that share them (context and tensor parallel) read different data" in process.stderr
        assert "the same command then resumes the run" in process.stderr and "Traceback" not in process.stderr
    assert f"{DAMAGED}: replaced by another clip" in processes[1].stderr
    assert (folder_of(tmp_path).newest() or 0) < 4


def test_fingerprint_of_a_batch() -> None:
    batch = {
        "latent": torch.linspace(0, 1, 3 * KEPT_VALUES).to(torch.bfloat16).view(3, -1, 16),
        "fps": torch.tensor([16.0]),
        "sample_number": torch.tensor([3]),
        "video_name": {"video_path": ["here/a.mp4"]},
    }
    same = {**batch, "latent": batch["latent"].transpose(0, 1).contiguous().transpose(0, 1), "video_name": {}}
    assert fingerprint(same) == fingerprint(dict(reversed(batch.items()))) == fingerprint(batch)
    others = [{"latent": batch["latent"].flip(0)}, {"fps": torch.tensor([8.0])}, {"sample_number": torch.tensor([4])}]
    others.append({"latent": batch["latent"].view(1, 3, -1, 16)})
    assert len({fingerprint({**batch, **other}) for other in others} | {fingerprint(batch)}) == 5

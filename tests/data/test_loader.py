"""Global sample numbers: which item, which rank, which worker; nothing but the number decides what a sample is."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from cosmos_predict.data.loader import SampleNumbers, build_dataloader, collate, item_index
from cosmos_predict.errors import ConfigError


class Items(Dataset[dict[str, Any]]):
    """`size` items; sample n holds its number and its item."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, sample_number: int) -> dict[str, Any]:
        return {"sample_number": sample_number, "item": item_index(sample_number, self.size, seed=7)}


def numbers(loader: Any, batches: int) -> list[list[int]]:
    iterator = iter(loader)
    return [next(iterator)["sample_number"].tolist() for _ in range(batches)]


def test_every_epoch_visits_every_item_in_its_own_order() -> None:
    epochs = [[item_index(epoch * 50 + k, 50, seed=3) for k in range(50)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(50))
    assert [item_index(k, 50, seed=4) for k in range(50)] != epochs[0]
    assert [item_index(k, 5, seed=4, shuffle=False) for k in range(7)] == [0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_out_consecutive_numbers(world: int) -> None:
    loaders = [build_dataloader(Items(5), 2, rank, world, start_sample=12) for rank in range(world)]
    steps = zip(*(numbers(loader, 4) for loader in loaders), strict=True)
    flat = [number for step in steps for batch in step for number in batch]
    assert flat == list(range(12, 12 + 4 * 2 * world))


def test_resume_continues_exactly_and_workers_change_nothing() -> None:
    def batches(count: int, **options: Any) -> list[dict[str, torch.Tensor]]:
        iterator = iter(build_dataloader(Items(5), 3, rank=1, world=2, **options))
        return [next(iterator) for _ in range(count)]

    whole = batches(6)
    for other in (batches(3) + batches(3, start_sample=3 * 6), batches(6, num_workers=2)):
        assert all(torch.equal(a[key], b[key]) for a, b in zip(whole, other, strict=True) for key in a)


def test_fewer_items_than_a_batch() -> None:
    batch = next(iter(build_dataloader(Items(3), batch_size=8)))
    assert batch["sample_number"].tolist() == list(range(8))
    assert sorted(batch["item"].tolist()[:3]) == sorted(batch["item"].tolist()[3:6]) == [0, 1, 2]


def test_a_bounded_stream_ends() -> None:
    assert len(list(build_dataloader(Items(3), 2, num_batches=4))) == 4


class Slow(Items):
    def __getitem__(self, sample_number: int) -> dict[str, Any]:
        time.sleep(0.1)
        return super().__getitem__(sample_number)


def test_workers_leave_signals_to_their_run() -> None:
    """Not those that the run's whole group gets, but its own word, without which it would wait for them at its exit."""
    iterator = iter(build_dataloader(Slow(5), num_workers=2))
    first, workers = next(iterator), multiprocessing.active_children()
    for worker in workers:
        for number in ("INT", "USR1", "TERM"):  # from another process, as a launcher's
            subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
    following = [next(iterator)["sample_number"].item() for _ in range(8)]
    assert first["sample_number"].item() == 0 and following == list(range(1, 9))
    for worker in workers:
        worker.terminate()
        worker.join(5)
        assert worker.exitcode == 0


def test_bad_sizes() -> None:
    with pytest.raises(ConfigError, match="batch_size=0, rank=0"):
        SampleNumbers(0)
    with pytest.raises(ConfigError, match="rank=2, world=2"):
        SampleNumbers(1, rank=2, world=2)
    with pytest.raises(ConfigError, match="at least one item"):
        item_index(0, 0, seed=0)


def test_a_single_sample_is_a_batch_that_can_be_pinned() -> None:
    frames, mask = torch.zeros(3, 2, 4, 4, dtype=torch.uint8), torch.zeros(1, 1, 1).expand(1, 4, 4)
    batch = collate([{"video": frames, "padding_mask": mask, "fps": 8.0, "video_name": {"video_path": "a"}}])
    assert batch["video"].shape == (1, 3, 2, 4, 4) and batch["video"].data_ptr() == frames.data_ptr()
    assert all(value.is_contiguous() for value in batch.values() if isinstance(value, torch.Tensor))
    assert batch["fps"].tolist() == [8.0] and batch["video_name"] == {"video_path": ["a"]}

"""Batches by global sample number: the whole state of reading is one integer.

Datasets of this package take a GLOBAL SAMPLE NUMBER n = 0, 1, 2, ... in `dataset[n]`, without end; `len(dataset)` is
the number of items in an epoch. n decides the item (a permutation per epoch) and every random draw for the sample, so
that neither rank, worker, accumulation nor a restart changes what sample n is.

Where samples differ in shape, the B consecutive numbers of a micro-batch go to `dataset.__getitems__` together:
micro-batch n // B decides the bucket (`BatchPlan`) or the dataset (`cosmos_predict.data.mixed`). Then B is part of the
order: another batch size reads other items.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
import threading
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from cosmos_predict.config.lazy import configurable
from cosmos_predict.data.bad_items import BadItems
from cosmos_predict.errors import ConfigError, CosmosPredictError
from cosmos_predict.randomness import numpy_generator


def item_index(sample_number: int, num_items: int, seed: int, *, shuffle: bool = True) -> int:
    """Return which of `num_items` items global sample `sample_number` reads.

    Every epoch (num_items consecutive samples) visits every item once, in an order of its own when `shuffle`.
    """
    if num_items < 1 or sample_number < 0:
        raise ConfigError(f"need a sample number >= 0 and at least one item, got {sample_number} and {num_items} items")
    epoch, position = divmod(int(sample_number), num_items)
    return int(_epoch_order(num_items, seed, epoch)[position]) if shuffle else position


@functools.lru_cache(maxsize=256)  # as many as the datasets and buckets read in turn
def _epoch_order(num_items: int, seed: int, epoch: int) -> np.ndarray:
    return numpy_generator(seed, epoch, "epoch order").permutation(num_items).astype(np.int32)


class BatchPlan:
    """Which items the samples of a micro-batch take, all of one bucket.

    A bucket is an endless stream of its items, in a new order every epoch, cut into micro-batches of B. To epoch e belong
    those of a bucket of n items that end in it, number floor(e n / B) to floor((e + 1) n / B), all buckets' in an order of
    the epoch's own. So no item is lost or read more often than another: the at most B - 1 items of a bucket that fill no
    micro-batch open its first one of the next epoch. With one bucket this is `item_index`.

    Args:
        buckets: the bucket of every item, any hashable values.
        seed, shuffle: as in `item_index`; without `shuffle` an epoch goes through one bucket after the other.
    """

    def __init__(self, buckets: Sequence[Hashable], seed: int, shuffle: bool = True) -> None:
        members: dict[Hashable, list[int]] = {}
        for item, bucket in enumerate(buckets):
            members.setdefault(bucket, []).append(item)
        self.members, self.seed, self.shuffle = list(members.values()), seed, shuffle

    def items(self, numbers: Sequence[int]) -> list[int]:
        """Return the items of the micro-batch of consecutive sample `numbers`."""
        size = len(numbers)
        if len(self.members) < 2:
            return [item_index(n, sum(map(len, self.members)), self.seed, shuffle=self.shuffle) for n in numbers]
        bucket, batch = self._batch(int(numbers[0]) // size, size)
        members = self.members[bucket]
        stream = range(batch * size, (batch + 1) * size)
        return [members[item_index(n, len(members), self.seed, shuffle=self.shuffle)] for n in stream]

    def _batch(self, number: int, size: int) -> tuple[int, int]:
        """Return the bucket of micro-batch `number` and how many of that bucket come before it."""
        counts = [len(members) for members in self.members]
        # This epoch or a later one: at most e * items / B micro-batches come before epoch e.
        epoch = number * size // sum(counts)
        while sum((epoch + 1) * n // size for n in counts) <= number:
            epoch += 1
        starts = [epoch * n // size for n in counts]
        lengths = [(epoch + 1) * n // size - start for n, start in zip(counts, starts, strict=True)]
        order, position = _bucket_order(tuple(lengths), self.seed, epoch, self.shuffle), number - sum(starts)
        bucket = int(order[position])
        return bucket, starts[bucket] + int(np.count_nonzero(order[:position] == bucket))


@functools.lru_cache(maxsize=4)
def _bucket_order(lengths: tuple[int, ...], seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """Return the buckets of an epoch's micro-batches, `lengths[b]` of bucket b; those of one bucket keep their order."""
    order = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return numpy_generator(seed, epoch, "bucket order").permutation(order) if shuffle else order


class NumberedDataset(Dataset[dict[str, Any]]):
    """Items of a folder as samples by global number, with replacements for those that cannot be read.

    bad: what is known of the items, with their shapes and the seed of all draws. shuffle: an order of its own per epoch.
    """

    def __init__(self, bad: BadItems, shuffle: bool) -> None:
        self.bad, self.shapes, self.seed = bad, bad.shapes, bad.seed
        self.plan = BatchPlan(bad.shapes, bad.seed, shuffle)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, sample_number: int) -> dict[str, Any]:
        """Return global sample `sample_number`; raises DataError where an item fails and `strict`, or too many do."""
        return self.__getitems__([sample_number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return the samples of the micro-batch of consecutive `numbers`, all of one bucket; raises as `dataset[n]`."""
        return [self._sample(item, number) for item, number in zip(self.plan.items(numbers), numbers, strict=True)]

    def _sample(self, item: int, number: int) -> dict[str, Any]:
        read = functools.partial(self.load_item, sample_number=number, shape=self.shapes[item])
        return {**self.bad.read(item, number, read), "sample_number": torch.tensor(number, dtype=torch.int64)}

    def load_item(self, item: int, sample_number: int, shape: tuple[int, ...]) -> dict[str, Any]:
        """Return the sample, less its number, that an item gives at `shape`; raises DataError or OSError."""
        raise NotImplementedError


def read_batch(dataset: Dataset[Any], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Return the samples of the micro-batch of consecutive `numbers`, all of one shape."""
    together = getattr(dataset, "__getitems__", None)
    return together(list(numbers)) if together else [dataset[n] for n in numbers]


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return samples as a batch, with torch's rules; of a single one the tensors are not copied.

    All are contiguous: memory that is seen in several places at once cannot be pinned.
    """
    if len(samples) > 1:
        return default_collate(samples)
    return {
        name: value[None].contiguous() if isinstance(value, torch.Tensor) else default_collate([value])
        for name, value in samples[0].items()
    }


def batch_decides_order(dataset: Dataset[Any]) -> bool:
    """Tell whether another batch size reads other items: with several buckets or datasets (see the module)."""
    return hasattr(dataset, "turns") or len(set(getattr(dataset, "shapes", ()))) > 1


class SampleNumbers(Sampler[list[int]]):
    """The batches of one data-parallel rank: step s of rank r of w reads B samples from start + s * B * w + r * B.

    All ranks together read consecutive numbers, so the samples of a global batch do not depend on how it is split.

    Args:
        batch_size: B, samples per rank and step.
        rank, world: this rank's number and the number of ranks, in the data-parallel group only.
        start_sample: the first global sample number not yet consumed by any rank.
        num_batches: stop after so many; None = never.

    Raises:
        ConfigError: sizes that do not fit.
    """

    def __init__(
        self, batch_size: int, rank: int = 0, world: int = 1, start_sample: int = 0, num_batches: int | None = None
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world or start_sample < 0:
            raise ConfigError(
                "the loader needs batch_size >= 1, 0 <= rank < world, start_sample >= 0; got "
                f"batch_size={batch_size}, rank={rank}, world={world}, start_sample={start_sample}"
            )
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.start_sample, self.num_batches = start_sample, num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count() if self.num_batches is None else range(self.num_batches):
            first = self.start_sample + (step * self.world + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


@configurable
def build_dataloader(
    dataset: Dataset[Any],
    batch_size: int = 1,
    rank: int = 0,
    world: int = 1,
    start_sample: int = 0,
    num_batches: int | None = None,
    num_workers: int = 0,
    prefetch_factor: int = 2,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Return the endless stream of this rank's batches, from `start_sample` on.

    Args:
        dataset: takes global sample numbers (see the module).
        batch_size, rank, world, start_sample, num_batches: as in `SampleNumbers`.
        num_workers: processes that read; 0 reads in this one. Batches are the same for any number.
        prefetch_factor: batches that each worker reads ahead.
        pin_memory: page-locked batches, for copies to a GPU that overlap with its work.

    Raises:
        ConfigError: sizes that do not fit.
    """
    return _Loader(
        dataset,
        batch_sampler=SampleNumbers(batch_size, rank, world, start_sample, num_batches),
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        pin_memory=pin_memory,
        collate_fn=collate,
        worker_init_fn=_leave_signals_to_the_run,
        generator=torch.Generator(),  # its own: an iterator draws a seed, which must not move the run's generator
    )


def _leave_signals_to_the_run(_worker: int) -> None:
    """Let a worker outlive the signals that reach the run's whole group or job: the run ends its workers when it stops.

    That is said by SIGTERM too, from the run's process alone; a worker whose run was killed sees that and leaves.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere nobody tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for threads made from here on, too
        threading.Thread(target=_end_on_request, args=(os.getppid(),), daemon=True).start()


def _end_on_request(run: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)


class _Loader(DataLoader[Any]):
    """A loader that raises a worker's errors with their message alone, not with the worker's traceback in it."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except CosmosPredictError as error:
            name = f"{type(error).__module__}.{type(error).__qualname__}: "
            raise type(error)(str(error).rpartition(name)[2].strip()) from error

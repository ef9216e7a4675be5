"""Context parallel: the split, its bad sizes, and equality with the whole computation on real ranks."""

from __future__ import annotations

import pytest
import torch

from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.attention import sdpa
from cosmos_predict.parallel.context_parallel import (
    check_context_parallel,
    gather_sequence,
    split_sequence,
    ulysses_attention,
)
from tests.parallel.ranks import check, run_ranks


def test_split_takes_contiguous_frames_of_every_view() -> None:
    frames = torch.arange(12).view(1, 12)
    assert split_sequence(frames, 1, 2, dim=1).tolist() == [[6, 7, 8, 9, 10, 11]]
    assert split_sequence(frames, 1, 2, dim=-1, views=3).tolist() == [[2, 3, 6, 7, 10, 11]]
    latent = torch.randn(2, 4, 8, 3, 5)
    assert torch.equal(split_sequence(latent, 2, 4), latent[:, :, 4:6])


def test_one_rank_changes_nothing() -> None:
    x = torch.randn(1, 4, 2, 8)
    assert split_sequence(x, 0, 1, dim=1).equal(x) and gather_sequence(x, None, dim=1) is x
    assert ulysses_attention(x, x, x, None, sdpa).equal(sdpa(x, x, x))


def test_sizes_that_do_not_fit_are_named() -> None:
    check_context_parallel(8, 24, 16)
    with pytest.raises(
        ConfigError,
        match=r"context_parallel_size=3 must divide the 8 latent frames.*16 attention heads; .*fit: 1, 2, 4, 8$",
    ):
        check_context_parallel(3, 8, 16)
    with pytest.raises(ConfigError, match="sizes that fit: 1, 2, 4, 8$"):
        check_context_parallel(16, 16, 40)
    with pytest.raises(
        ConfigError,
        match=r"axis 2 of shape \(1, 3, 6, 2, 2\) does not divide into 1 view.* of 4 equal parts; .*fit: 1, 2, 3, 6",
    ):
        split_sequence(torch.zeros(1, 3, 6, 2, 2), 0, 4)
    with pytest.raises(ConfigError, match="fit: none"):
        split_sequence(torch.zeros(1, 3, 7, 2, 2), 0, 2, views=2)
    with pytest.raises(ConfigError, match="rank 2 is not one of 2"):
        split_sequence(torch.zeros(1, 3, 6, 2, 2), 2, 2)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_outputs_and_gradients_equal_the_whole_computation(ranks: int) -> None:
    processes = run_ranks("tests.parallel.cp_gradients", ranks=ranks)
    check(processes)
    assert all("equal" in process.stdout for process in processes)


def test_networks_compute_the_same_divided() -> None:
    processes = run_ranks("tests.parallel.cp_network", ranks=2)
    check(processes)
    assert all("equal" in process.stdout for process in processes)

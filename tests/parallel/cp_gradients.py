"""One rank that compares context parallel with the whole computation: `python -m tests.parallel.cp_gradients`."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.attention import sdpa
from cosmos_predict.parallel.context_parallel import (
    gather_sequence,
    heads_to_sequence,
    sequence_to_heads,
    split_sequence,
    ulysses_attention,
)
from cosmos_predict.parallel.distributed import Ranks, distributed_program


def attention_gradients(ranks: Ranks, upstream: str, batch: int, views: int) -> None:
    """Outputs and input gradients of a projection, attention and a head are those of one process with all tokens."""
    size, rank = ranks.world_size, ranks.rank
    tokens, heads, width = views * 2 * size * 3, 2 * size, 8
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(batch, tokens, heads * width, generator=generator)
    weight = torch.randn(3 * heads * width, heads * width, generator=generator) / 8
    head = torch.randn(heads * width, heads * width, generator=generator) / 8

    def loss(out: torch.Tensor) -> torch.Tensor:
        if upstream == "expanded":  # the gradient of a sum is one number with stride 0
            return out.sum()
        flat = out.flatten(2)
        if upstream == "transposed":
            return (flat.transpose(1, 2) * torch.arange(flat.shape[2]).view(1, -1, 1)).square().sum()
        return F.linear(flat, head).square().sum()

    def run(x: torch.Tensor, attention) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        q, k, v = F.linear(x, w).unflatten(-1, (3, heads, width)).unbind(2)
        out = attention(q, k, v)
        loss(out).backward()
        assert x.grad is not None and w.grad is not None
        return out.detach(), x.grad, w.grad

    out, x_grad, w_grad = run(x, sdpa)
    part = split_sequence(x, rank, size, dim=1, views=views)
    got, x_got, w_got = run(part, lambda q, k, v: ulysses_attention(q, k, v, dist.group.WORLD, sdpa))
    dist.all_reduce(w_got)
    where = f"{upstream}, batch {batch}, {views} views"
    for name, value, expected in (
        ("output", got, split_sequence(out, rank, size, dim=1, views=views)),
        ("input gradient", x_got, split_sequence(x_grad, rank, size, dim=1, views=views)),
        ("weight gradient", w_got, w_grad),
    ):
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            value, expected, rtol=1e-5, atol=2e-6 * scale, msg=lambda text, name=name: f"{where}: {name}: {text}"
        )


def split_and_gather(ranks: Ranks) -> None:
    size, rank, group = ranks.world_size, ranks.rank, dist.group.WORLD
    for views in (1, 3):
        whole = torch.arange(2 * 3 * views * 2 * size * 5 * 4, dtype=torch.float32).view(2, 3, views * 2 * size, 5, 4)
        part = split_sequence(whole, rank, size, views=views).requires_grad_()
        gathered = gather_sequence(part, group, views=views)
        assert torch.equal(gathered, whole)
        # Every rank weighs the whole differently: a part's gradient is the sum of all ranks' weights for it.
        weights = [(whole + 1).sqrt() * (r + 1) for r in range(size)]
        (gathered * weights[rank]).transpose(0, 4).sum().backward()
        torch.testing.assert_close(part.grad, split_sequence(torch.stack(weights).sum(0), rank, size, views=views))
    table = torch.arange(4 * size).view(4 * size, 1)
    assert torch.equal(gather_sequence(split_sequence(table, rank, size, dim=0), group, dim=0), table)


def exchange_is_invertible(ranks: Ranks) -> None:
    x = torch.randn(2, 6, 4 * ranks.world_size, 3).transpose(0, 1)
    there = sequence_to_heads(x, dist.group.WORLD)
    assert there.shape == (6, 2 * ranks.world_size, 4, 3)
    assert torch.equal(heads_to_sequence(there, dist.group.WORLD), x)


def heads_that_do_not_divide_are_named(ranks: Ranks) -> None:
    x = torch.zeros(1, 2, 2 * ranks.world_size + 1, 4)
    with pytest.raises(
        ConfigError, match=f"{x.shape[2]} attention heads do not divide over {ranks.world_size} .*fit: 1, "
    ):
        ulysses_attention(x, x, x, dist.group.WORLD, sdpa)


if __name__ == "__main__":
    with distributed_program("gloo") as ranks:
        torch.manual_seed(ranks.rank)
        for upstream in ("plain", "expanded", "transposed"):
            for batch, views in ((1, 1), (2, 3)):
                attention_gradients(ranks, upstream, batch, views)
        split_and_gather(ranks)
        exchange_is_invertible(ranks)
        heads_that_do_not_divide_are_named(ranks)
        print("equal")

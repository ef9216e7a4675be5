"""Sparse attention against dense attention under a mask that is written from neighborhood attention's definition."""

from __future__ import annotations

import itertools

import pytest
import torch

from cosmos_predict.checkpoint.metadata import diffusers_config
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.models.published import published_config
from cosmos_predict.networks import sparse_attention
from cosmos_predict.networks.attention import sdpa
from cosmos_predict.networks.dit import build_dit
from cosmos_predict.networks.sparse_attention import (
    KINDS,
    PUBLISHED,
    SparseAttention,
    axis_windows,
    fitted,
    keys_per_query,
)
from cosmos_predict.parallel.activation import apply_activation_checkpointing, compile_blocks
from tests.networks.variants import VARIANTS

BASE = VARIANTS["predict2_video2world"].config.replace(num_blocks=3, max_img_h=60, max_img_w=60)


def sees(query: int, key: int, extent: int, window: int, stride: int, dilation: int) -> bool:
    """Whether a query sees a key on one axis: the definition, for one pair of positions."""
    if query % dilation != key % dilation:
        return False
    length = len(
        range(query % dilation, extent, dilation)
    )  # of the dilation group, in which both are counted from here on
    query, key = query // dilation, key // dilation
    leader = min(query // stride * stride + stride // 2, length - 1)
    left, right = window // 2, window - window // 2 - 1
    centre = max(left, min(leader, length - 1 - right))  # shifted, so that the window stays inside
    return centre - left <= key <= centre + right


def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: tuple[int, int, int], sizes: tuple) -> torch.Tensor:
    """Dense attention of q, k, v (B, N, heads, d) under the mask of windows `sizes`, (window, stride, dilation) per axis."""
    positions = list(itertools.product(*map(range, grid)))
    axes = [
        torch.tensor([[sees(a, b, n, *size) for b in range(n)] for a in range(n)])
        for n, size in zip(grid[1:], sizes, strict=True)
    ]
    _, rows, columns = torch.tensor(positions).T
    mask = axes[0][rows[:, None], rows] & axes[1][columns[:, None], columns]
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) / q.shape[-1] ** 0.5
    return torch.einsum("bhnm,bmhd->bnhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v.double()).float()


def attend(kind: str, grid: tuple[int, int, int], *qkv: torch.Tensor) -> torch.Tensor:
    attention = SparseAttention(kind, sdpa)
    attention.grid = grid
    return attention(*qkv)


@pytest.mark.parametrize(
    ("grid", "sizes"),
    [
        ((2, 8, 10), ((4, 1, 2), (3, 1, 3))),  # dilated, groups of unequal length
        ((2, 11, 9), ((4, 2, 1), (6, 4, 1))),  # strides that do not divide, even windows
        ((3, 7, 13), ((5, 3, 1), (3, 3, 4))),  # odd windows, strides as long as they
        ((2, 6, 6), ((6, 2, 1), (2, 1, 1))),  # one axis whole
        ((2, 12, 16), ((3, 2, 3), (4, 3, 3))),  # stride and dilation together
        ((4, 1, 5), ((1, 1, 1), (2, 2, 2))),
    ],
)
def test_cells_compute_masked_attention(
    monkeypatch: pytest.MonkeyPatch, grid: tuple[int, int, int], sizes: tuple
) -> None:
    monkeypatch.setitem(KINDS, "T", sizes)
    monkeypatch.setattr(sparse_attention, "BASE", grid[1:])
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, grid[0] * grid[1] * grid[2], 2, 8, requires_grad=True) for _ in range(3))
    sparse_attention.cells.cache_clear()
    found, expected = attend("T", grid, q, k, v), masked(q, k, v, grid, sizes)
    sparse_attention.cells.cache_clear()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    weights = torch.randn_like(found)
    gradients = (torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (found, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(11, 20), (22, 40), (9, 16), (15, 27)])  # quarter, half, and other classes and shapes
def test_published_layers_on_smaller_grids(kind: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2 * size[0] * size[1], 1, 8)
    sizes = tuple(fitted(n, base, *each) for n, base, each in zip(size, (44, 80), KINDS[kind], strict=True))
    torch.testing.assert_close(attend(kind, (2, *size), q, k, v), masked(q, k, v, (2, *size), sizes), rtol=0, atol=2e-6)
    seen = [sum(sees(0, key, n, *each) for key in range(n)) for n, each in zip(size, sizes, strict=True)]
    assert keys_per_query(kind, (2, *size)) == 2 * seen[0] * seen[1]


def test_published_layers_at_720p() -> None:
    """On the grid that they were published for nothing is scaled, and stride groups fill their axes."""
    counts = {"D": (55, 64, 64), "M": (55, 64, 192), "S": (110, 32, 288), "L": (110, 32, 800), "X": (110, 32, 1568)}
    for kind, (number, queries, keys) in counts.items():
        assert [fitted(n, n, *sizes) for n, sizes in zip((44, 80), KINDS[kind], strict=True)] == list(KINDS[kind])
        at, near, places = sparse_attention.cells(kind, (1, 44, 80), torch.device("cpu"))
        assert (at.shape, near.shape) == ((number, queries), (number, keys))
        assert torch.equal(at.flatten()[places], torch.arange(44 * 80))
    assert [published_config(f"predict2_{size}_video2world").num_blocks for size in ("2b", "14b")] == list(PUBLISHED)
    small = {
        "D": [0, 1],
        "M": [2, 5, 10],
        "S": [3, 4, *range(6, 10), 27],
        "L": [*range(11, 23), *range(24, 27)],
        "X": [23],
    }
    large = {"D": [*range(11)], "M": [11, 12], "S": [*range(13, 23)], "L": [23, 25, 29, 30, 33, 35], "-": [27]}
    for blocks, expected in ((28, small), (36, large | {"X": [24, 26, 28, 31, 32, 34]})):
        letters = {index: kind for kind, places in expected.items() for index in places}
        assert "".join(letters[index] for index in range(blocks)) == PUBLISHED[blocks]


def test_rounding_is_half_to_even_and_windows_stay_on_the_axis() -> None:
    assert fitted(22, 44, 12, 5, 1) == (6, 2, 1)  # 2.5 rounds to 2
    assert fitted(66, 44, 5, 1, 11) == (8, 2, 8)  # 7.5 to 8, 1.5 to 2; 16.5 to 16, but 66 // 8 groups at most
    assert fitted(3, 44, 4, 1, 11) == (2, 1, 1) and fitted(1, 44, 4, 1, 11) == (1, 1, 1)
    assert [len(keys) for _, keys in axis_windows(7, 3, 2, 2)] == [3, 3, 3]


def test_a_whole_window_is_dense_attention_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "W", ((44, 1, 1), (80, 8, 1)))
    q, k, v = torch.randn(3, 2, 3 * 5 * 8, 2, 16)
    assert torch.equal(attend("W", (3, 5, 8), q, k, v), sdpa(q, k, v))
    assert torch.equal(attend("S", (1, 40, 3), q, k, v), sdpa(q, k, v))  # an image
    assert not torch.equal(attend("S", (3, 5, 8), q, k, v), sdpa(q, k, v))


@torch.no_grad()
def test_a_network_of_sparse_and_dense_blocks() -> None:
    torch.manual_seed(0)
    net = build_dit(BASE.replace(sparse_attention="S-D"))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    dense = build_dit(BASE)
    dense.load_state_dict(net.state_dict())  # the same keys
    x, text = torch.randn(1, 16, 2, 24, 40), torch.randn(1, 4, BASE.crossattn_emb_channels)
    inputs = (x, torch.tensor([0.3]), text)
    sparse = net(*inputs)
    assert not torch.allclose(sparse, dense(*inputs), atol=1e-3)
    image = (x[:, :, :1], *inputs[1:])
    assert torch.equal(net(*image), dense(*image))
    # Both kinds by hand: the dense network with masks in the place of its attention.
    for block, kind in zip(dense.blocks, "S-D", strict=True):
        if kind != "-":
            sizes = tuple(fitted(n, base, *each) for n, base, each in zip((12, 20), (44, 80), KINDS[kind], strict=True))
            attention = block.get_submodule("self_attn")
            attention.attention = lambda q, k, v, sizes=sizes: masked(q, k, v, (2, 12, 20), sizes)  # type: ignore[assignment]
    torch.testing.assert_close(sparse, dense(*inputs), rtol=0, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_blocks_compute_the_same() -> None:
    net = build_dit(BASE.replace(sparse_attention="S-D"))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    clips = [torch.randn(1, 16, 2, 24, 40), torch.randn(1, 16, 3, 8, 12)]  # two grids
    rest = torch.tensor([0.3]), torch.randn(1, 4, BASE.crossattn_emb_channels)
    expected = [net(clip, *rest) for clip in clips]
    compile_blocks(net, backend="eager")
    for clip, each in zip(clips, expected, strict=True):
        torch.testing.assert_close(net(clip, *rest), each, rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_checkpointed_gradients(policy: str) -> None:
    gradients = []
    for kept in ("none", policy):
        torch.manual_seed(0)
        net = build_dit(BASE.replace(sparse_attention="SDL"))
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
        apply_activation_checkpointing(net, kept)
        out = net(torch.randn(1, 16, 2, 16, 24), torch.tensor([0.3]), torch.randn(1, 4, BASE.crossattn_emb_channels))
        out.square().mean().backward()
        gradients.append(net.blocks[0].get_parameter("self_attn.k_proj.weight").grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_what_cannot_be_sparse_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="sparse_attention='SZ-' must be one of the letters D, M, S, L, X, - for each of 3"
    ):
        build_dit(BASE.replace(sparse_attention="SZ-"), device="meta")
    with pytest.raises(ConfigError, match="sparse_attention='S' must be"):
        build_dit(BASE.replace(sparse_attention="S"), device="meta")
    net = build_dit(BASE.replace(sparse_attention="S--"))
    with pytest.raises(
        ConfigError, match="sparse attention is for one view, this forward has 2: set sparse_attention=''"
    ):
        net(torch.randn(1, 16, 4, 8, 8), torch.tensor([0.3]), torch.randn(1, 8, 16), views=2)
    with pytest.raises(CheckpointError, match="has no sparse attention; save in dialect 'predict2'"):
        diffusers_config(net.config)
    with pytest.raises(ConfigError, match=r"\(natten\) was published for .* of 28 and 36 blocks, this one has 20"):
        sparse_attention.published_layers(20)

"""Parameter and operation counts, against networks that are really built and operations that are really counted."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cosmos_predict.models.published import PUBLISHED, published_config
from cosmos_predict.networks.dit import DiT, build_dit
from cosmos_predict.networks.flops import count_tokens, forward_flops, training_flops
from cosmos_predict.networks.sparse_attention import SparseAttention, keys_per_query, published_layers
from tests.networks.variants import TEXT, VARIANTS, build_variant

# Billions, from the published model tables.
SIZES = {
    "predict1_7b_text2world": 7.236,
    "predict1_7b_video2world": 7.236,
    "predict1_7b_text2world_multiview": 7.235,
    "predict1_7b_video2world_multiview": 7.235,
    "predict1_7b_video2world_action": 7.503,
    "predict1_14b_text2world": 14.267,
    "predict1_14b_video2world": 14.267,
    "predict2_0.6b_text2image": 0.598,
    "predict2_2b_text2image": 1.956,
    "predict2_2b_video2world": 1.956,
    "predict2_2b_multiview": 1.956,
    "predict2_2b_action": 2.025,
    "predict2_14b_text2image": 14.265,
    "predict2_14b_video2world": 14.265,
    # No table gives these two: Predict2's 2B and 14B plus the text projection of 100352 x 1024 + 1024.
    "predict2.5_2b_base": 1.95641344 + 0.102761472,
    "predict2.5_14b_base": 14.265285632 + 0.102761472,
}


def test_every_published_model_has_its_size_here() -> None:
    assert set(SIZES) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    config = published_config(name)
    net = build_dit(config, device="meta")
    assert {p.device.type for p in net.parameters()} == {"meta"}
    count = sum(p.numel() for p in net.parameters())
    assert abs(count / 1e9 - SIZES[name]) < 6e-4


def test_the_14b_network_allocates_no_weights() -> None:
    """In a process of its own: its address space, touched or not, grows by far less than the 27 GiB of weights."""
    program = (
        "import torch\n"
        "from cosmos_predict.models.published import published_config\n"
        "from cosmos_predict.networks.dit import build_dit\n"
        "peak = lambda: int(open('/proc/self/status').read().split('VmPeak:')[1].split()[0]) // 1024\n"
        "build_dit(published_config('predict2_2b_video2world').replace(num_blocks=1), device='meta')\n"
        "before = peak()\n"
        "net = build_dit(published_config('predict2_14b_video2world'), device='meta', dtype=torch.bfloat16)\n"
        "assert {p.dtype for p in net.parameters()} == {torch.bfloat16}\n"
        "print(peak() - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 150, f"grew by {run.stdout.strip()} MiB"


def visible_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as two matrix products, which the operation counter sees on every device."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return (((q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2)


def counted(net: DiT, backward: bool = False, **inputs) -> int:
    for block in net.blocks:
        block.self_attn.attention = block.cross_attn.attention = visible_attention  # type: ignore[union-attr, assignment]
    with FlopCounterMode(display=False) as counter:
        out = net(**inputs)
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


# Networks whose controls compute per token or not at all; those of the others are left out of the formula, as it says.
@pytest.mark.parametrize(
    "name",
    [
        "predict1_text2world",
        "predict1_video2world",
        "predict1_pose",
        "predict2_text2image",
        "predict2_video2world",
        "predict2_multiview",
        "predict2.5_base",
        "predict2.5_camera",
    ],
)
def test_forward_operations(name: str) -> None:
    variant = VARIANTS[name]
    inputs = variant.inputs(batch=1)
    frames, height, width = inputs["x"].shape[2:]
    inputs["timesteps"] = torch.rand(1, frames)
    assert count_tokens(variant.config, (frames, height, width)) == frames * height * width // 4
    formula = forward_flops(variant.config, (frames, height, width), text_tokens=TEXT, views=variant.views)
    assert counted(build_variant(variant), **inputs) == formula


def test_a_batch_and_one_timestep() -> None:
    """Operations grow with the batch; one timestep per sample saves only the time MLP of the other frames."""
    variant = VARIANTS["predict2_video2world"]
    config = variant.config
    inputs = variant.inputs(batch=3)
    frames, height, width = inputs["x"].shape[2:]
    formula = forward_flops(config, (frames, height, width), text_tokens=TEXT)
    assert counted(build_variant(variant), **inputs) == 3 * formula
    inputs["timesteps"] = torch.rand(3)
    saved = (frames - 1) * 2 * 4 * config.model_channels**2
    assert counted(build_variant(variant), **inputs) == 3 * (formula - saved)


def test_training_operations() -> None:
    """Forward and backward are three forwards, less what needs no gradient: input latents, text and time."""
    variant = VARIANTS["predict2_video2world"]
    config = variant.config
    inputs = variant.inputs(batch=1)
    frames, height, width = inputs["x"].shape[2:]
    tokens = count_tokens(config, (frames, height, width))
    formula = training_flops(config, (frames, height, width), text_tokens=TEXT)
    width = config.model_channels
    no_gradient = 2 * tokens * width * config.patch_volume * config.in_channels  # patch embedding's input
    no_gradient += config.num_blocks * 4 * TEXT * config.crossattn_emb_channels * width  # keys' and values' input
    no_gradient += 2 * frames * width**2  # the sinusoid
    assert counted(build_variant(variant), backward=True, **inputs) == formula - no_gradient


@pytest.mark.parametrize("layers", ["--", "S-", "LX", "MM"])
@pytest.mark.parametrize("shape", [(2, 44, 80), (1, 8, 12)])  # grids that stride groups fill, so no query is repeated
def test_sparse_layers_count_the_keys_that_they_see(layers: str, shape: tuple[int, int, int]) -> None:
    """A network's operations, counted; and as many fewer as pairs of tokens that do not see each other."""
    variant = VARIANTS["predict2_video2world"]
    config = variant.config.replace(num_blocks=2, max_img_h=44, max_img_w=80, sparse_attention=layers)
    net = build_dit(config)
    for block in net.blocks:
        block.cross_attn.attention = visible_attention  # type: ignore[union-attr, assignment]
        if isinstance(block.self_attn.attention, SparseAttention):  # type: ignore[union-attr]
            block.self_attn.attention.dense = visible_attention  # type: ignore[union-attr]
        else:
            block.self_attn.attention = visible_attention  # type: ignore[union-attr, assignment]
    inputs = {name: value for name, value in variant.inputs(batch=1).items() if name != "x"}
    x, inputs["timesteps"] = torch.randn(1, 16, *shape), torch.rand(1, shape[0])
    inputs["condition_mask"] = torch.zeros(1, 1, shape[0], 1, 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x, **inputs)
    formula = forward_flops(config, shape, text_tokens=TEXT)
    assert counter.get_total_flops() == formula
    grid, tokens = config.token_grid(*shape), count_tokens(config, shape)
    unseen = tokens * sum(tokens - keys_per_query(kind, grid) for kind in layers)
    dense = forward_flops(config.replace(sparse_attention=""), shape, text_tokens=TEXT)
    assert dense - formula == 4 * config.model_channels * unseen
    assert (unseen == 0) == (shape[0] == 1 or layers == "--")


def test_published_costs_grow_as_stated() -> None:
    """720p 16:9 at 24 latent frames: 84480 tokens; attention is quadratic in them, everything else linear."""
    config = published_config("predict2_2b_video2world")
    tokens = count_tokens(config, (24, 88, 160))
    assert tokens == 84480
    once, twice = forward_flops(config, (24, 88, 160)), forward_flops(config, (24, 88, 320))
    quadratic = config.num_blocks * 4 * config.model_channels * tokens**2
    assert 2 * once < twice < 4 * once
    assert 0 < (twice - 2 * once) - 2 * quadratic + once * 0.01 < 0.02 * once
    assert training_flops(config, (24, 88, 160)) == 3 * once
    # The published -natten network: 64 to 1568 of 3520 keys of a frame in its layers.
    sparse = config.replace(sparse_attention=published_layers(config.num_blocks))
    seen = {"D": 64, "M": 192, "S": 288, "L": 800, "X": 1568}
    pairs = tokens * 24 * sum(seen[kind] for kind in sparse.sparse_attention)
    saved = 4 * config.model_channels * (config.num_blocks * tokens**2 - pairs)
    assert forward_flops(sparse, (24, 88, 160)) == once - saved

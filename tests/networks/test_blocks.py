"""Norms, rotation, modulation and MLP against their plain formulas: values, gradients, dtypes, memory, compile."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from cosmos_predict.networks.blocks import MLP, Block, gated_add
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.norms import RMSNorm, modulate
from cosmos_predict.networks.rope import apply_rope, rope_angles, rope_table

CONFIG = DiTConfig(model_channels=24, num_blocks=1, num_heads=2, crossattn_emb_channels=10, adaln_lora_dim=4)
GRID = (2, 2, 3)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def table(dtype=torch.float32):
    cos, sin = rope_table(rope_angles(CONFIG.head_dim, GRID, (1.0, 1.0, 1.0)))
    return cos.to(dtype), sin.to(dtype)


def plain_rope(x, rope):
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def plain_rms_norm(x, weight, rope):
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight
    return x if rope is None else plain_rope(x, rope)


def plain_modulate(x, shift, scale):
    tokens = x.shape[1] // scale.shape[1]
    normed = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True, correction=0) + 1e-6)
    return normed * (1 + scale.repeat_interleave(tokens, 1)) + shift.repeat_interleave(tokens, 1)


def norm_with_weight(weight):
    norm = RMSNorm(weight.shape[0])
    norm.weight = torch.nn.Parameter(weight)
    return norm


@pytest.mark.parametrize("rotated", [False, True])
def test_rms_norm_and_rotation(rotated):
    rope = table(torch.float64) if rotated else None
    x, weight = draw(2, 12, 2, 12), draw(12, seed=1)
    torch.testing.assert_close(norm_with_weight(weight)(x, rope), plain_rms_norm(x, weight, rope))

    def run(x, weight):
        norm = RMSNorm(12)
        return torch.func.functional_call(norm, {"weight": weight}, (x, rope))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), weight.requires_grad_()))


def test_rms_norm_of_any_shape_and_where_nothing_is_to_learn():
    x, weight = draw(3, 12).requires_grad_(), draw(12, seed=1)
    norm = norm_with_weight(weight).requires_grad_(False)
    grad = draw(3, 12, seed=2)
    (ours,) = torch.autograd.grad(norm(x), x, grad)
    (plain,) = torch.autograd.grad(plain_rms_norm(x, weight, None), x, grad)
    torch.testing.assert_close(ours, plain)
    assert norm.weight.grad is None


@pytest.mark.parametrize("frames", [1, 3])
def test_modulated_layer_norm(frames):
    x, shift, scale = draw(2, 6, 5), draw(2, frames, 5, seed=1), draw(2, frames, 5, seed=2)
    torch.testing.assert_close(modulate(x, shift, scale), plain_modulate(x, shift, scale))
    assert torch.autograd.gradcheck(modulate, (x.requires_grad_(), shift.requires_grad_(), scale.requires_grad_()))


def test_gradients_that_arrive_transposed_or_expanded():
    x, shift, scale = (draw(2, 6, 5, seed=i).requires_grad_() for i in range(3))
    for grad in (draw(6, 2, 5).transpose(0, 1), torch.ones((), dtype=torch.float64).expand(2, 6, 5)):
        ours = torch.autograd.grad(modulate(x, shift, scale), (x, shift, scale), grad)
        plain = torch.autograd.grad(plain_modulate(x, shift, scale), (x, shift, scale), grad)
        torch.testing.assert_close(ours, plain)


def test_rotation_alone_and_its_gradient():
    x = draw(2, 12, 2, 12).requires_grad_()
    rope = table(torch.float64)
    torch.testing.assert_close(apply_rope(x, rope), plain_rope(x, rope))
    assert torch.autograd.gradcheck(lambda x: apply_rope(x, rope), (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    x, weight = draw(2, 12, 2, 12, dtype=dtype), draw(12, dtype=dtype, seed=1)
    out = norm_with_weight(weight)(x, table())
    exact = plain_rms_norm(x.double(), weight.double(), table(torch.float64))
    assert out.dtype == dtype
    # One rounding of the right value moves it by half a unit in the last place at most.
    assert ((out.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps * 0.501 + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_stay_close_and_keep_their_dtype(dtype):
    inputs = [draw(2, 6, 16, dtype=dtype, seed=i).requires_grad_() for i in range(3)]
    exact = [value.detach().double().requires_grad_() for value in inputs]
    grad = draw(2, 6, 16, dtype=dtype, seed=3)
    ours = torch.autograd.grad(modulate(*inputs), inputs, grad)
    plain = torch.autograd.grad(plain_modulate(*exact), exact, grad.double())
    for value, wanted in zip(ours, plain, strict=True):
        assert value.dtype == dtype
        assert (value.double() - wanted).norm() <= torch.finfo(dtype).eps * wanted.norm()


def test_norms_keep_nothing_but_their_input():
    x = draw(1, 12, 2, 12, dtype=torch.float32).requires_grad_()
    tokens = draw(1, 12, 24, dtype=torch.float32).requires_grad_()
    row = draw(1, 2, 24, dtype=torch.float32).requires_grad_()
    kept = []
    norm = RMSNorm(12)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm(x, table())
        modulate(tokens, row, row)
    big = {tensor.data_ptr() for tensor in kept if tensor.numel() >= x.numel()}
    assert big == {x.data_ptr(), tokens.data_ptr()}


@pytest.mark.parametrize("tokens", [1, 1024, 2051])
def test_mlp_in_parts_is_the_mlp(tokens):
    mlp = MLP(CONFIG)
    x = draw(2, tokens, 24, dtype=torch.float32)
    whole = mlp(x)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), F.linear(F.gelu(F.linear(x, mlp.layer1.weight)), mlp.layer2.weight))
    assert whole.requires_grad
    torch.testing.assert_close(mlp(x).detach(), whole.detach())


def test_gated_add():
    x, y, gate = draw(2, 6, 5), draw(2, 6, 5, seed=1), draw(2, 3, 5, seed=2)
    torch.testing.assert_close(gated_add(x, gate, y), x + gate.repeat_interleave(2, 1) * y)


def block_and_inputs(dtype=torch.float32):
    torch.manual_seed(0)
    block = Block(CONFIG).to(dtype)
    x, text = draw(2, 12, 24, dtype=dtype).requires_grad_(), draw(2, 4, 10, dtype=dtype)
    return block, (x, text, draw(2, 2, 24, dtype=dtype), draw(2, 2, 72, dtype=dtype), table(dtype))


def gradients(run, block, inputs):
    out = run(*inputs)
    return out, torch.autograd.grad(out.square().sum(), [inputs[0], *block.parameters()])


def test_block_gradients_through_checkpointing():
    block, inputs = block_and_inputs()
    plain = gradients(block, block, inputs)
    again = gradients(lambda *args: checkpoint(block, *args, use_reentrant=False), block, inputs)
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


def test_block_gradients_are_those_of_finite_differences():
    block, (x, *rest) = block_and_inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda x: block(x, *rest), (x,), fast_mode=True)


def test_second_derivatives_are_refused_rather_than_wrong():
    x = draw(3, 12).requires_grad_()
    (first,) = torch.autograd.grad(RMSNorm(12).double()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_block_is_one_graph_for_the_compiler():
    block, inputs = block_and_inputs()
    plain = gradients(block, block, inputs)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, block, inputs), plain)

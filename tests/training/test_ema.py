"""Power EMA: float32 averages of plain, low-precision and sharded weights, and computing with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.training.ema import PowerEMA, power_ema_beta, power_ema_exponent


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters())


@pytest.fixture(scope="module")
def single_rank_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_first_update_copies_and_small_changes_accumulate() -> None:
    net = model()
    ema = PowerEMA(weights(net))
    with torch.no_grad():
        net[0].weight.add_(1.0)
    assert ema.update(weights(net), 0) == 0.0
    assert torch.equal(ema.shadow["0.weight"], net[0].weight)
    with torch.no_grad():
        net[0].weight.add_(1e-4)  # below bfloat16's resolution of weights around 1
    before = ema.shadow["0.weight"].clone()
    beta = ema.update(weights(net), 9)
    assert beta == pytest.approx(0.9 ** (power_ema_exponent(0.1) + 1))
    torch.testing.assert_close(ema.shadow["0.weight"], before * beta + net[0].weight.detach() * (1 - beta))


def test_shift_and_width() -> None:
    assert power_ema_beta(0, 7.0, iteration_shift=9) == 0.9**8
    assert power_ema_beta(0, 7.0) == 0.0
    with pytest.raises(ConfigError, match=r"relative width of the power EMA is 0.5; it must lie in \(0, 0.28\)"):
        PowerEMA({}, s=0.5)


def test_low_precision_weights_have_a_float32_shadow() -> None:
    net = model(torch.bfloat16)
    ema = PowerEMA(weights(net))
    ema.update(weights(net), 5)
    assert all(tensor.dtype == torch.float32 for tensor in ema.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scope_swaps_in_and_out_bit_for_bit_also_on_error(dtype: torch.dtype) -> None:
    net = model(dtype)
    ema = PowerEMA(weights(net))
    for tensor in ema.shadow.values():
        tensor.add_(torch.randn_like(tensor))
    own = {name: tensor.detach().clone() for name, tensor in weights(net).items()}
    average = {name: tensor.clone() for name, tensor in ema.shadow.items()}
    with pytest.raises(RuntimeError, match="inside"), ema.scope(net):
        assert all(torch.equal(tensor, average[name].to(dtype)) for name, tensor in weights(net).items())
        raise RuntimeError("inside")
    assert all(torch.equal(tensor, own[name]) for name, tensor in weights(net).items())
    assert all(torch.equal(tensor, average[name]) for name, tensor in ema.shadow.items())


def test_state_round_trip_and_what_does_not_fit() -> None:
    net = model()
    ema, other = PowerEMA(weights(net)), PowerEMA({name: tensor + 1 for name, tensor in weights(net).items()})
    other.load_state_dict({name: tensor.clone() for name, tensor in ema.state_dict().items()})
    assert all(torch.equal(tensor, ema.shadow[name]) for name, tensor in other.shadow.items())
    state = ema.state_dict()
    with pytest.raises(CheckpointError, match=r"EMA state does not fit: 1 missing \['2.bias'\], 1 unexpected \['x'\]"):
        other.load_state_dict({"x" if name == "2.bias" else name: tensor for name, tensor in state.items()})
    with pytest.raises(CheckpointError, match=r"EMA 0.bias has shape \(3,\), expected \(8,\)"):
        other.load_state_dict({**state, "0.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"weights to average changed: 0 missing \[\], 1 unexpected"):
        ema.update({**weights(net), "extra": torch.zeros(1)}, 1)
    with pytest.raises(CheckpointError, match="module has no parameter 2.weight"), ema.scope(net[:1]):
        pass


def test_sharded_weights(single_rank_group: None) -> None:
    """The scope also reaches weights that FSDP has gathered: the forward inside uses the averages."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    plain, net = model(), model()
    fully_shard(net[0], mesh=mesh)
    fully_shard(net, mesh=mesh)
    x = torch.randn(3, 4)
    ema, reference = PowerEMA(weights(net)), PowerEMA(weights(plain))
    assert all(isinstance(tensor, DTensor) for tensor in ema.state_dict().values())
    for average in (ema, reference):
        for tensor in average.shadow.values():
            tensor.mul_(1.5)
    expected = plain(x)
    torch.testing.assert_close(net(x), expected)
    with ema.scope(net), reference.scope(plain):
        torch.testing.assert_close(net(x), plain(x))
        assert not torch.allclose(plain(x), expected)
    torch.testing.assert_close(net(x), expected)
    ema.update(weights(net), 0)
    assert all(torch.equal(t.full_tensor(), plain.get_parameter(n)) for n, t in ema.state_dict().items())

"""AdamW with stochastic rounding and 8-bit moments: training, memory, resume, shards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.checkpoint.run_state import SavedState, load_optimizer_state, optimizer_state, save_run_state
from cosmos_predict.config.compose import compose
from cosmos_predict.config.lazy import instantiate
from cosmos_predict.errors import CheckpointError, ConfigError
from cosmos_predict.io.tensors import load_tensors
from cosmos_predict.training.low_memory import (
    CHUNK,
    MOMENTS,
    LowMemoryAdamW,
    adamw8bit,
    adamw_bf16,
)
from tests.parallel.ranks import check, run_ranks
from tests.training.tiny_run import BASE, run

REPOSITORY = Path(__file__).parents[2]
DTYPES = (torch.float32, torch.bfloat16)


def network(dtype: torch.dtype) -> nn.Sequential:
    """Rows of several blocks, of part of a block, too short for 8 bits, and vectors; norms in float32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(300), nn.Linear(300, 70), nn.Linear(70, 20), nn.Linear(20, 3)).to(dtype)
    net[0].float()
    return net


def second(net: nn.Sequential) -> nn.Linear:
    layer = net[1]
    assert isinstance(layer, nn.Linear)
    return layer


def train(net: nn.Sequential, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(8, 300, generator=torch.Generator().manual_seed(step))
        net[1:](net[0](x).to(net[1].weight.dtype)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def load_through_files(
    root: Path,
    source: torch.optim.Optimizer,
    net: nn.Module,
    target: torch.optim.Optimizer,
    target_net: nn.Module,
    instead: dict[str, Tensor | None] | None = None,
) -> None:
    """Save the state of `source` as a run does and load it into `target`; `instead` changes or removes tensors."""
    tensors, groups = optimizer_state(source, net)
    kept = {name: value for name, value in {**tensors, **(instead or {})}.items() if value is not None}
    folder, numbers = RunFolder(root), {"optimizer_groups": groups}
    save_run_state(folder, 1, weights={}, ema=None, optimizer=kept, numbers=numbers, scheduler={})
    with SavedState(folder, 1) as saved:
        load_optimizer_state(target, target_net, saved)


# ---- the optimizer ---------------------------------------------------------------------------------------------------


def test_float32_moments_and_weights_are_torch_adamw() -> None:
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    ours, theirs = network(torch.float32), network(torch.float32)
    train(ours, LowMemoryAdamW(ours.parameters(), moments="fp32", **options), 0, 5)
    train(theirs, torch.optim.AdamW(theirs.parameters(), **options), 0, 5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def regression(make: Callable[[nn.Module], torch.optim.Optimizer], dtype: torch.dtype, steps: int = 120) -> float:
    """Return the squared error of the weights of a linear regression, relative to where it starts."""
    torch.manual_seed(1)
    truth = torch.randn(32, 128)
    net = nn.Linear(128, 32, bias=False).to(dtype)
    start = float((net.weight.detach().float() - truth).square().mean())
    optimizer = make(net)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 8e-2 * (1 - step / steps)
        x = torch.randn(32, 128, generator=torch.Generator().manual_seed(step)) * torch.logspace(0, -0.3, 128)
        # The loss in float32, so that rounding of the weights is all that differs.
        loss = (x @ net.weight.float().T - x @ truth.T + 0.1 * torch.randn(32, 32)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float((net.weight.detach().float() - truth).square().mean()) / start


def test_training_is_as_good_as_with_float32_adamw() -> None:
    reference = regression(
        lambda net: torch.optim.AdamW(net.parameters(), weight_decay=0, betas=(0.9, 0.99)), DTYPES[0]
    )
    found = {
        (moments, dtype): regression(
            lambda net, moments=moments: LowMemoryAdamW(net.parameters(), weight_decay=0, moments=moments), dtype
        )
        for moments, dtype in (("8bit", DTYPES[0]), ("8bit", DTYPES[1]), ("bf16", DTYPES[1]), ("fp32", DTYPES[1]))
    }
    assert reference < 2e-2
    assert all(error < 1.1 * reference for error in found.values()), (reference, found)


def test_changes_below_the_resolution_of_bfloat16_add_up() -> None:
    net = nn.Linear(128, 64, bias=False, dtype=torch.bfloat16)
    nn.init.constant_(net.weight, 1.0)
    optimizer = adamw_bf16(net, lr=1e-4, weight_decay=0.0, moments="8bit")
    for _ in range(100):
        net.weight.grad = torch.ones_like(net.weight)
        optimizer.step()
    assert abs(float(net.weight.detach().float().mean()) - 0.99) < 5e-4


def test_parameters_without_gradient_stay() -> None:
    net = network(torch.bfloat16)
    optimizer = adamw_bf16(net, lr=1.0, weight_decay=0.5, moments="8bit")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    second(net).weight.grad = torch.ones_like(second(net).weight)
    optimizer.step()
    assert [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])] == ["1.weight"]
    assert list(optimizer.state) == [second(net).weight]


@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_decay_is_decoupled_and_can_spare_vectors(dtype: torch.dtype) -> None:
    net = network(dtype)
    optimizer = adamw8bit(net, lr=0.1, weight_decay=0.5, decay_vectors=False)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    layer = second(net)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer.step()
    assert torch.equal(layer.bias, bias)
    expected = weight.float() * 0.95
    torch.testing.assert_close(
        layer.weight.detach().float(), expected, rtol=1e-6 if dtype == torch.float32 else 2**-7, atol=0
    )
    assert abs(float((layer.weight.detach().float() - expected).mean())) < 1e-5


def test_pieces_and_memory_formats_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for pieces, memory_format in ((1 << 17, torch.contiguous_format), (1000, torch.channels_last)):
        monkeypatch.setitem(CHUNK, "cpu", pieces)
        torch.manual_seed(0)
        weight = torch.randn(7, 19, 5, 5).bfloat16().to(memory_format=memory_format)
        parameter = nn.Parameter(weight)
        optimizer = LowMemoryAdamW([parameter], moments="8bit", lr=1e-2)
        for step in range(3):
            parameter.grad = torch.randn(7, 19, 5, 5, generator=torch.Generator().manual_seed(step)).bfloat16()
            optimizer.step()
        results.append(parameter.detach().contiguous())
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("dtype", "moments", "limit"),
    [(0, "8bit", 6.04), (1, "8bit", 4.04), (1, "bf16", 6.01), (1, "fp32", 10.01)],
)
def test_bytes_per_parameter(dtype: int, moments: str, limit: float) -> None:
    net = nn.Linear(1024, 512, bias=False, dtype=DTYPES[dtype])
    optimizer = LowMemoryAdamW(net.parameters(), moments=moments)
    net.weight.grad = torch.randn_like(net.weight)
    optimizer.step()
    tensors = [net.weight, *optimizer.state[net.weight].values()]
    assert sum(t.numel() * t.element_size() for t in tensors) / net.weight.numel() < limit


# ---- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", MOMENTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_resume_is_bit_identical(dtype: torch.dtype, moments: str, tmp_path: Path) -> None:
    net = network(dtype)
    optimizer = LowMemoryAdamW(net.parameters(), lr=1e-2, moments=moments, seed=3)
    train(net, optimizer, 0, 3)
    kept = optimizer_state(optimizer, net)[0]
    assert all(type(value) is Tensor for value in kept.values())
    if moments == "8bit":
        assert kept["exp_avg_sq_codes.1.weight"].dtype == torch.uint8
        assert kept["exp_avg_scales.1.weight"].shape == (70, 2) and kept["exp_avg.3.weight"].dtype == torch.float32
    again = network(dtype)
    again.load_state_dict({name: value.clone() for name, value in net.state_dict().items()})
    resumed = LowMemoryAdamW(again.parameters(), lr=1e-2, moments=moments, seed=3)
    load_through_files(tmp_path, optimizer, net, resumed, again)
    train(net, optimizer, 3, 6)
    train(again, resumed, 3, 6)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    ends = optimizer_state(resumed, again)[0]
    assert all(torch.equal(value, ends[name]) for name, value in optimizer_state(optimizer, net)[0].items())
    if dtype == torch.bfloat16 or moments != "fp32":
        other = network(dtype)
        train(other, LowMemoryAdamW(other.parameters(), lr=1e-2, moments=moments, seed=4), 0, 6)
        assert not torch.equal(second(other).weight, second(net).weight), "the seed decides how numbers are rounded"


def test_moments_of_another_form_are_converted(tmp_path: Path) -> None:
    net = network(torch.float32)
    source = torch.optim.AdamW(net.parameters(), lr=1e-2)
    train(net, source, 0, 3)
    exact = source.state[second(net).weight]
    previous: torch.optim.Optimizer = source
    for moments in ("8bit", "bf16", "8bit", "fp32"):
        optimizer = LowMemoryAdamW(net.parameters(), lr=1e-2, moments=moments)
        load_through_files(tmp_path / moments, previous, net, optimizer, net)
        assert optimizer.param_groups[0]["lr"] == 1e-2 and optimizer.state[second(net).weight]["step"] == 3
        previous = optimizer
    state = previous.state[second(net).weight]
    scale = float(exact["exp_avg"].abs().max())
    torch.testing.assert_close(state["exp_avg"], exact["exp_avg"], rtol=0.3, atol=scale * 1e-4)
    torch.testing.assert_close(state["exp_avg_sq"], exact["exp_avg_sq"], rtol=0.3, atol=1e-20)
    train(net, previous, 3, 4)


def test_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    net = network(torch.bfloat16)
    optimizer = adamw_bf16(net, moments="8bit")
    train(net, optimizer, 0, 1)
    cases: list[tuple[str, Tensor | None, str]] = [
        (
            "exp_avg_scales.1.weight",
            torch.zeros(70, 1),
            r"saved exp_avg_scales of parameter 0 has shape \(70, 1\), expected \(70, 2\)$",
        ),
        ("exp_avg_sq_codes.1.weight", None, "expected exp_avg_sq or exp_avg_sq_codes and exp_avg_sq_scales"),
    ]
    for name, value, message in cases:
        with pytest.raises(CheckpointError, match=message):
            load_through_files(tmp_path, optimizer, net, optimizer, net, {name: value})
        assert len(optimizer.state) == 8, "a load that fails changes nothing"


def test_bad_arguments_are_named() -> None:
    net = network(torch.float32)
    with pytest.raises(
        ConfigError, match="adamw_bf16 needs trainable weights in bfloat16, this model has torch.float32"
    ):
        adamw_bf16(net)
    with pytest.raises(ConfigError, match="moments='4bit' is not known; choose one of fp32, bf16, 8bit"):
        LowMemoryAdamW(net.parameters(), moments="4bit")
    with pytest.raises(ConfigError, match="betas=.* two numbers in"):
        LowMemoryAdamW(net.parameters(), betas=(0.9, 1.0))
    with pytest.raises(ConfigError, match="is torch.float16; these optimizers take float32 and bfloat16"):
        LowMemoryAdamW(nn.Linear(2, 2, dtype=torch.float16).parameters())


@pytest.mark.slow
def test_two_ranks_compute_what_one_does(tmp_path: Path) -> None:
    check(run_ranks("tests.training.low_memory_program", str(tmp_path), ranks=2))


# ---- configuration and trainer ---------------------------------------------------------------------------------------


def test_choices_keep_the_recipe() -> None:
    recipe = compose(BASE, report=[]).optimizer
    assert recipe is not None
    config = compose([*BASE, "optimizer=adamw8bit", "trainer.seed=7"], report=[])
    optimizer = instantiate(config.optimizer, model=network(torch.float32))
    assert isinstance(optimizer, LowMemoryAdamW) and (optimizer.moments, optimizer.seed) == ("8bit", 7)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (recipe.lr, recipe.weight_decay, tuple(recipe.betas))
    config = compose([*BASE, "optimizer=adamw_bf16", "optimizer.moments=bf16"], report=[])
    optimizer = instantiate(config.optimizer, model=network(torch.bfloat16))
    assert (optimizer.moments, optimizer.param_groups[0]["lr"]) == ("bf16", recipe.lr)
    assert config.model is not None and config.model.dtype == "bfloat16"
    assert type(
        instantiate(compose([*BASE, "optimizer=adamw"], report=[]).optimizer, model=network(torch.float32))
    ) is (torch.optim.AdamW)


def test_registering_imports_no_torch() -> None:
    code = "import sys, experiments.optimizers; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def run_tiny(root: Path, *overrides: str) -> dict[str, Tensor]:
    """Train and return what the newest run state holds."""
    trainer = run(root, "optimizer=adamw8bit", "checkpoint.save_iter=1", *overrides)
    iteration = trainer.folder.newest()
    assert iteration is not None
    files = [
        path for part in ("trainer", "optim") for path in trainer.folder.part(part, iteration).glob("*.safetensors")
    ]
    return {f"{path.name}:{key}": value for path in files for key, value in load_tensors(path).items()}


@pytest.mark.slow
def test_trainer_resumes_8bit_moments_bit_identically(tmp_path: Path) -> None:
    whole = run_tiny(tmp_path / "whole", "trainer.max_iter=2")
    run_tiny(tmp_path / "parts", "trainer.max_iter=1")
    parts = run_tiny(tmp_path / "parts", "trainer.max_iter=2")
    assert any(":exp_avg_codes.net.blocks.0." in name and value.any() for name, value in whole.items())
    assert whole.keys() == parts.keys()
    assert not [name for name in whole if not torch.equal(whole[name], parts[name])]

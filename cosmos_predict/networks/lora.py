"""LoRA: low-rank adapters beside frozen linear layers, y = W x + b + sum over adapters of weight * alpha/rank * B (A x).

An adapted network's state dict has the published in-file form (PEFT's in-place injection):
`blocks.0.self_attn.q_proj.base_layer.weight`, `...q_proj.lora_A.default.weight` (rank, in),
`...q_proj.lora_B.default.weight` (out, rank). Files of adapters: `cosmos_predict.checkpoint.lora_forms`.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_predict.errors import ConfigError
from cosmos_predict.randomness import torch_generator

DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "output_proj", "mlp.layer1", "mlp.layer2")


class LoRALinear(nn.Module):
    """A linear layer with named adapters, `active` ones with their weights. `inject_lora` and `load_adapters` make these."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.alpha: dict[str, float] = {}
        self.active: dict[str, float] = {}  # adapter -> weight; what is not here does nothing

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def scale(self, adapter: str) -> float:
        return self.active.get(adapter, 0.0) * self.alpha[adapter] / self.matrices(adapter)[0].shape[0]

    def add_adapter(self, name: str, rank: int, alpha: float, dtype: torch.dtype, trainable: bool = True) -> None:
        weight = self.base_layer.weight
        options: dict[str, Any] = {"bias": False, "device": weight.device, "dtype": dtype}
        # skip_init: the caller fills both, from a seed or a file.
        self.lora_A[name] = nn.utils.skip_init(nn.Linear, weight.shape[1], rank, **options).requires_grad_(trainable)
        self.lora_B[name] = nn.utils.skip_init(nn.Linear, rank, weight.shape[0], **options).requires_grad_(trainable)
        self.alpha[name], self.active[name] = float(alpha), 1.0

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        for name in self.active:
            a, b = self.lora_A[name], self.lora_B[name]  # called: tensor parallelism keeps parts of them
            delta = b(a(x.to(self.matrices(name)[0].dtype)))
            out = torch.add(out, delta.to(out.dtype), alpha=self.scale(name))
        return out

    def merged_weight(self) -> Tensor:
        """Return W + sum of scale * B A `(out, in)`, summed in float32 and rounded once to W's dtype."""
        total = self.base_layer.weight.detach().float()
        for name in self.active:
            a, b = self.matrices(name)
            total = total + self.scale(name) * (b.detach().float() @ a.detach().float())
        return total.to(self.base_layer.weight.dtype)

    def matrices(self, adapter: str) -> tuple[Tensor, Tensor]:
        return self.lora_A[adapter].weight, self.lora_B[adapter].weight  # type: ignore[return-value]


def lora_layers(network: nn.Module, adapter: str | None = None) -> Iterator[tuple[str, LoRALinear]]:
    """Yield (module name, layer) of every adapted layer, or of those that hold `adapter`."""
    for name, module in network.named_modules():
        if isinstance(module, LoRALinear) and (adapter is None or adapter in module.lora_A):
            yield name, module


def inject_lora(
    network: nn.Module,
    rank: int = 16,
    alpha: float | None = None,
    targets: str | Sequence[str] = DEFAULT_TARGETS,
    adapter: str = "default",
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Put a fresh adapter beside every target layer, in place; return the adapted module names.

    All parameters but the adapter's become untrainable, as published.

    A new adapter changes nothing: A is Kaiming-uniform (a = sqrt 5), B zero. Its numbers depend on (seed, module name)
    alone, not on device, rank or order.

    Args:
        network: any module, on the meta device too.
        rank, alpha: the adapter's scale is alpha / rank; alpha is the rank by default.
        targets: module names, whole or ends after a dot ("q_proj", "mlp.layer1"); a comma-separated string too.
        adapter: its name; a second name adds a second adapter to the same network.
        dtype: of A and B; the layer's own by default.

    Raises ConfigError for a rank below 1, a target that matches nothing or no linear layer, and an adapter name in use.
    """
    if rank < 1:
        raise ConfigError(f"lora_rank={rank} must be at least 1")
    names = [name.strip() for name in targets.split(",")] if isinstance(targets, str) else list(targets)
    modules = _target_layers(network, names)
    if any(isinstance(module, LoRALinear) and adapter in module.lora_A for module in modules.values()):
        raise ConfigError(f"the network already has an adapter named {adapter!r}; give the new one another name")
    own = re.compile(rf".*\.lora_[AB]\.{re.escape(adapter)}\.weight")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(own.fullmatch(name) is not None)
    for name, module in modules.items():
        layer = adapted_layer(network, name, module)
        layer.add_adapter(adapter, rank, rank if alpha is None else alpha, dtype or layer.weight.dtype)
    initialize_adapter(network, adapter, seed)
    return list(modules)


@torch.no_grad()
def initialize_adapter(network: nn.Module, adapter: str = "default", seed: int = 0) -> None:
    """Fill the adapter anew (see `inject_lora`), for networks that were on the meta device; DTensors get their part."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    for name, layer in lora_layers(network, adapter):
        a, b = layer.matrices(adapter)
        b.zero_()
        if not a.is_meta:
            full = torch.empty(a.shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(full, a=math.sqrt(5), generator=torch_generator(seed, 0, f"lora {name} {adapter}"))
            full = full.to(a.device, a.dtype)
            if isinstance(a, DTensor):  # every rank has drawn the same: no communication needed
                full = distribute_tensor(full, a.device_mesh, a.placements, src_data_rank=None)
            a.copy_(full)


@contextlib.contextmanager
def without_adapters(network: nn.Module) -> Iterator[None]:
    """Let `network` be its base alone, under the names from before injection, until the block ends."""
    layers = list(lora_layers(network))
    for name, layer in layers:
        network.set_submodule(name, layer.base_layer)
    try:
        yield
    finally:
        for name, layer in layers:
            network.set_submodule(name, layer)


@torch.no_grad()
def merge_lora(network: nn.Module) -> None:
    """Add the active adapters to the weights for good: adapted layers become plain ones, which cost nothing extra."""
    for name, layer in list(lora_layers(network)):
        layer.base_layer.weight.data = layer.merged_weight()
        network.set_submodule(name, layer.base_layer)


def linear_layers(network: nn.Module) -> Iterator[tuple[str, nn.Linear | LoRALinear]]:
    """Yield the linear layers by the names they had before any adapter."""
    inside: set[str] = set()
    for name, module in network.named_modules():
        if isinstance(module, LoRALinear):
            inside.update(f"{name}.{child}" for child, _ in module.named_modules() if child)
            yield name, module
        elif isinstance(module, nn.Linear) and name not in inside:
            yield name, module


def _target_layers(network: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear | LoRALinear]:
    linears = dict(linear_layers(network))
    matched: dict[str, nn.Linear | LoRALinear] = {}
    for target in targets:
        names = [name for name in linears if f".{name}".endswith(f".{target}")]
        if not names:
            others = [name for name, _ in network.named_modules() if target and f".{name}".endswith(f".{target}")]
            if others:
                kind = type(network.get_submodule(others[0])).__name__
                raise ConfigError(
                    f"LoRA target {target!r} names {others[0]}, a {kind}; only linear layers take adapters"
                )
            raise ConfigError(f"LoRA target {target!r} matches no layer here.{nearest_layers(target, linears)}")
        matched.update((name, linears[name]) for name in names)
    return {name: module for name, module in linears.items() if name in matched}


def adapted_layer(network: nn.Module, name: str, module: nn.Linear | LoRALinear) -> LoRALinear:
    """Return the layer at `name`, wrapped if it is not yet."""
    if not isinstance(module, LoRALinear):
        module = LoRALinear(module)
        network.set_submodule(name, module)
    return module


def nearest_layers(name: str, linears: Mapping[str, object]) -> str:
    """Return a sentence with the linear layers' names, and their ends, that look most like `name`."""
    dots = name.count(".") + 1
    ends = dict.fromkeys(".".join(linear.split(".")[-dots:]) for linear in linears)
    near = difflib.get_close_matches(name, ends, n=5, cutoff=0.3) or list(ends)[:5]
    return f" Nearest linear layers: {', '.join(near)}" if near else " It has no linear layers."

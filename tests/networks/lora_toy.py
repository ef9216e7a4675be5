"""A network small enough to train adapters beside it, with linear layers named as in the DiT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cosmos_predict.networks.lora import lora_layers


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "output_proj"):
            self.add_module(name, nn.Linear(width, width, bias=name == "v_proj"))
        self.q_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_proj(torch.tanh(self.q_norm(self.q_proj(x)) * self.k_proj(x)) + self.v_proj(x))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = Attention(width)
        self.mlp = nn.ModuleDict({"layer1": nn.Linear(width, 2 * width), "layer2": nn.Linear(2 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp["layer2"](self.mlp["layer1"](self.self_attn(x)).relu())


def toy(seed: int = 0, width: int = 12) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(Block(width), Block(width))


def randomize(network: nn.Module, adapter: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in lora_layers(network, adapter):
            for tensor in layer.matrices(adapter):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)

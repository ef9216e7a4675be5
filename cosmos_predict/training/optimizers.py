"""AdamW as the published runs use it.

Published: one group with every trainable parameter, norms and biases decayed too; float32 masters and moments; eps
outside the square root, after the bias correction; decoupled decay. `adamw` on float32 weights is that arithmetic;
`MasterAdamW` keeps the float32 masters of weights that are stored in a lower precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_predict.config.lazy import configurable
from cosmos_predict.errors import ConfigError

FUSED_DEVICES = ("cuda", "cpu")


def parameter_groups(
    parameters: Iterable[nn.Parameter], weight_decay: float, decay_vectors: bool = True
) -> list[dict[str, Any]]:
    """Return optimizer groups of the trainable parameters, matrices first.

    `decay_vectors=True` is the published single group; False puts tensors of fewer than two dimensions (norm gains,
    biases) in a second group without decay. Raises ConfigError when nothing is trainable.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainable if parameter.ndim < 2]
    if not trainable:
        raise ConfigError(
            "no parameter is trainable (requires_grad is False everywhere); check the `train` option and LoRA targets"
        )
    if decay_vectors or not vectors:
        return [{"params": matrices + vectors, "weight_decay": weight_decay}]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


@configurable
def adamw(
    model: nn.Module,
    lr: float = 1e-4,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    decay_vectors: bool = True,
    master_weights: bool = True,
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters of `model`; defaults are Predict2's.

    Parameters in float32 give torch's AdamW, fused where the device has it. Low-precision parameters give
    `MasterAdamW`, or torch's AdamW with moments in that precision when `master_weights` is False.
    """
    groups = parameter_groups(model.parameters(), weight_decay, decay_vectors)
    parameters = [parameter for group in groups for parameter in group["params"]]
    options = {"lr": float(lr), "betas": tuple(betas), "eps": float(eps)}
    options["fused"] = all(parameter.device.type in FUSED_DEVICES for parameter in parameters)
    if master_weights and any(parameter.dtype != torch.float32 for parameter in parameters):
        return MasterAdamW(groups, **options)
    return torch.optim.AdamW(groups, **options)


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 masters; after each step the parameters are the rounded masters.

    `param_groups` hold the masters, `parameters` the weights they belong to, in the same order. Gradients are read from
    the parameters and promoted to float32. The masters are part of the state dict: a resume must not start from rounded
    ones.

    Args:
        groups: dicts with "params" (any floating dtype, DTensors too) and group options, as for torch optimizers.
        options: keywords of torch.optim.AdamW.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **options: Any) -> None:
        groups = [{**group, "params": list(group["params"])} for group in groups]
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        for group in groups:
            group["params"] = [
                nn.Parameter(parameter.detach().clone().to(torch.float32)) for parameter in group["params"]
            ]
        self.masters: list[nn.Parameter] = [master for group in groups for master in group["params"]]
        super().__init__(groups, **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.to(torch.float32)
        super().step()
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.grad = None
            parameter.copy_(master)

    @torch.no_grad()
    def take_weights(self) -> None:
        """Make the masters what the parameters are, which something else has filled."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.copy_(parameter)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict plus `masters`, the float32 weights in the order of `parameters`."""
        return {**super().state_dict(), "masters": [master.detach() for master in self.masters]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Load what `state_dict` gave; parameters become the rounded masters. Raises ConfigError for another number of
        masters.
        """
        state = dict(state_dict)
        masters: list[Tensor] = state.pop("masters", [])
        if len(masters) != len(self.masters):
            raise ConfigError(
                f"the optimizer state holds {len(masters)} float32 masters, this run has {len(self.masters)} parameters"
            )
        super().load_state_dict(state)
        for parameter, master, saved in zip(self.parameters, self.masters, masters, strict=True):
            master.copy_(saved)
            parameter.copy_(master)

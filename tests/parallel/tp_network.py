"""One rank of tensor-parallel networks: outputs and gradients against the whole computation.

    python -m tests.parallel.tp_network [CONTEXT [compile]]

The ranks form context groups of CONTEXT (1) times tensor groups of the rest. Networks that between them use every input of
a block, with a whole and with a divided stream of tokens, with checkpointing and with adapters; or compiled ones.
"""

from __future__ import annotations

import copy
import sys

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from cosmos_predict.conditions.camera import CameraBlockControl
from cosmos_predict.errors import ConfigError
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import build_dit
from cosmos_predict.networks.lora import inject_lora
from cosmos_predict.parallel.activation import apply_activation_checkpointing, compile_blocks
from cosmos_predict.parallel.context_parallel import apply_context_parallel
from cosmos_predict.parallel.distributed import distributed_program
from cosmos_predict.parallel.shards import lies_over
from cosmos_predict.parallel.tensor_parallel import AXIS, apply_tensor_parallel, check_tensor_parallel
from tests.parallel.cp_network import SMALL, evaluate

NET = SMALL.replace(num_heads=4, crossattn_proj_in_channels=16, crossattn_emb_channels=24)


def compare(
    mesh: DeviceMesh, config: DiTConfig, frames: int, views: int = 1, lora: bool = False, checkpointing: str = "none",
    compiled: bool = False, **signals: Tensor,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    # In float64 what is left is no rounding; learnable positions are scaled in float32.
    exact = config.extra_pos_emb != "learnable"
    whole = build_dit(config, dtype=torch.float64 if exact else torch.float32)
    if lora:
        inject_lora(whole, rank=3)
    for parameter in whole.parameters():  # no zero weights, behind which an error would hide
        torch.nn.init.normal_(parameter, std=0.2)
    expected, gradients = evaluate(whole, frames, views, **signals)
    for sequence in (False, True):
        divided = copy.deepcopy(whole)
        tensor = apply_tensor_parallel(divided, mesh["tensor"], sequence)
        assert tensor is not None
        apply_context_parallel(divided, mesh.get_group("context"), mesh["tensor"].size())
        apply_activation_checkpointing(divided, checkpointing)
        if compiled:
            compile_blocks(divided, backend="aot_eager")
        lengths: list[int] = []
        if not compiled:
            mlp = divided.blocks[0].get_submodule("mlp")
            note = lengths.append
            mlp.register_forward_pre_hook(lambda _, args, note=note: note(args[0].shape[1]))  # type: ignore[misc]
        out, _ = evaluate(divided, frames, views, **signals)
        ranks = mesh["tensor"].size() ** sequence * (1 if frames == views else mesh["context"].size())
        assert compiled or lengths[0] == frames // config.patch_temporal * 2 * 3 // ranks, lengths
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        tensor.sum_gradients()
        for (name, parameter), b in zip(divided.named_parameters(), gradients, strict=True):
            if parameter.grad is None:
                assert not b.any()
                continue
            divides = name.startswith("blocks.") and ("_proj." in name or "mlp.layer" in name)
            if lora and ".lora_" in name:
                divides = (".lora_A." in name) == any(part in name for part in ("output_proj", "layer2"))
            assert lies_over(parameter, AXIS) == divides, name
            a = parameter.grad.full_tensor() if divides else parameter.grad  # type: ignore[operator]
            dist.all_reduce(a, group=mesh.get_group("context"))
            distance = (a / mesh["context"].size() - b).norm() / b.norm().clamp(min=1e-12)
            assert distance < (1e-9 if exact else 1e-5), (name, sequence, distance)


def main(context: str = "1", compiled: str = "") -> None:
    with distributed_program("gloo") as ranks:
        tensor = ranks.world_size // int(context)
        mesh = init_device_mesh("cpu", (int(context), tensor), mesh_dim_names=("context", "tensor"))
        if compiled:
            compare(mesh, NET.replace(extra_pos_emb="sincos"), 4, compiled=True)
            compare(mesh, NET, 4, checkpointing="selective", compiled=True)
            return
        compare(mesh, NET, 4)
        compare(mesh, NET, 1)  # an image
        compare(mesh, NET, 4, lora=True)
        compare(mesh, NET.replace(extra_pos_emb="learnable"), 4, checkpointing="full")
        compare(mesh, NET.replace(extra_pos_emb="sincos", patch_temporal=2), 8, checkpointing="selective")
        camera = NET.replace(controls=(CameraBlockControl(features=5, zero_init=False),))
        rays = torch.randn(2, 8, 2, 3, 5, generator=torch.Generator().manual_seed(2))
        compare(mesh, camera, 8, views=2, camera=rays)
        net = build_dit(SMALL.replace(num_heads=2))
        with pytest.raises(ConfigError, match=r"size=4 must divide the 2 attention heads .* sizes that fit: 1, 2$"):
            check_tensor_parallel(4, net.config)
        apply_tensor_parallel(net, mesh["tensor"], sequence=True)
        message = rf"the 3 tokens of a frame over tensor_model_parallel_size={tensor}: .* these sizes: 1, 3$"
        with pytest.raises(ConfigError, match=message):
            net(torch.zeros(1, 4, 2, 2, 6), torch.zeros(1), torch.zeros(1, 3, 16))
        print("equal")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""One rank of a context-parallel network: outputs and averaged gradients against the whole computation.

Networks that between them use every input that is divided: per-frame time levels, learnable positions, patches of two
frames, several views each with its own text, block features.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_predict.conditions.camera import CameraBlockControl
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import DiT, build_dit
from cosmos_predict.parallel.context_parallel import apply_context_parallel
from cosmos_predict.parallel.distributed import distributed_program

SMALL = DiTConfig(
    model_channels=64,
    num_blocks=2,
    num_heads=4,
    adaln_lora_dim=4,
    input_channels=(("latent", 4), ("cond_mask", 1), ("padding", 1)),
    out_channels=4,
    crossattn_emb_channels=16,
)


def evaluate(net: DiT, frames: int, views: int, **signals: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return output and parameter gradients for fixed inputs."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    net.zero_grad()
    out = net(
        draw(2, 4, frames, 4, 6),
        draw(2, frames) if net.config.patch_temporal == 1 else draw(2),
        draw(2, 3 * views, 16),
        condition_mask=(draw(2, 1, frames, 4, 6) > 0).float(),
        data_type="image" if frames == views else "video",
        views=views,
        **signals,
    )
    (out * draw(*out.shape)).mean().backward()
    return out.detach(), [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters()]


def compare(config: DiTConfig, frames: int, views: int = 1, **signals: Tensor) -> None:
    torch.manual_seed(0)
    whole = build_dit(config)
    for parameter in whole.parameters():  # no zero weights, behind which an error would hide
        torch.nn.init.normal_(parameter, std=0.2)
    divided = copy.deepcopy(whole)
    group = dist.group.WORLD
    apply_context_parallel(divided, group)
    lengths: list[int] = []
    divided.blocks[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    expected, gradients = evaluate(whole, frames, views, **signals)
    out, got = evaluate(divided, frames, views, **signals)
    tokens = frames // config.patch_temporal * 2 * 3
    assert lengths == [tokens if frames == views else tokens // dist.get_world_size()], lengths
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for (name, _), a, b in zip(whole.named_parameters(), got, gradients, strict=True):
        dist.all_reduce(a)
        a /= dist.get_world_size()
        distance = (a - b).norm() / b.norm().clamp(min=1e-12)
        assert distance < 1e-5, (name, distance)


def main() -> None:
    with distributed_program("gloo"):
        compare(SMALL, 4)
        compare(SMALL, 1)  # an image
        compare(SMALL.replace(extra_pos_emb="learnable"), 4)
        compare(SMALL.replace(patch_temporal=2), 8)
        compare(SMALL.replace(sparse_attention="SD"), 4)  # windows of two of the three columns
        camera = SMALL.replace(controls=(CameraBlockControl(features=5, zero_init=False),))
        rays = torch.randn(2, 8, 2, 3, 5, generator=torch.Generator().manual_seed(2))
        compare(camera, 8, views=2, camera=rays)
        print("equal")


if __name__ == "__main__":
    main()

"""One rank that clips sharded gradients and compares with the whole: `python -m tests.training.clip_program`."""

from __future__ import annotations

import math

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from cosmos_predict.parallel.distributed import distributed_program
from cosmos_predict.training.grad_clip import clip_gradients

if __name__ == "__main__":
    with distributed_program("gloo") as ranks:
        mesh = init_device_mesh("cpu", (ranks.world_size,))
        torch.manual_seed(0)  # the same whole tensors on every rank
        whole = [torch.randn(5, 3), torch.randn(1, 4), torch.randn(7), torch.randn(2, 2), torch.randn(3)]
        for norm_type in (2.0, 1.0, math.inf):
            local = torch.full((2, 2), 1.0 / ranks.world_size) * whole[3]
            gradients = [
                distribute_tensor(whole[0], mesh, [Shard(0)]),  # uneven
                distribute_tensor(whole[1], mesh, [Shard(0)]),  # empty on the last rank
                distribute_tensor(whole[2], mesh, [Replicate()]),
                DTensor.from_local(local, mesh, [Partial()]),
                whole[4].clone(),
            ]
            parameters = [torch.zeros_like(gradient).requires_grad_() for gradient in gradients]
            reference = [torch.zeros_like(tensor).requires_grad_() for tensor in whole]
            for parameter, gradient in zip((*parameters, *reference), (*gradients, *whole), strict=True):
                parameter.grad = gradient.clone() if not isinstance(gradient, DTensor) else gradient
            got = clip_gradients(parameters, 0.5, norm_type)
            expected = torch.nn.utils.clip_grad_norm_(reference, 0.5, norm_type)
            assert math.isclose(got.total_norm, float(expected), rel_tol=1e-6), (norm_type, got, expected)
            for parameter, other in zip(parameters, reference, strict=True):
                gradient = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
                torch.testing.assert_close(gradient, other.grad, rtol=1e-5, atol=1e-7)
        # One broken entry on one rank: every rank skips.
        gradient = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])
        if ranks.rank == 1:
            gradient.to_local()[0, 0] = math.nan
        parameter = torch.zeros_like(gradient).requires_grad_()
        parameter.grad = gradient
        assert clip_gradients([parameter]).skip_step
        print("equal")

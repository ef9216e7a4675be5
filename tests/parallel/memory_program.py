"""One rank that builds, averages, saves, exports and loads a sharded network, and prints what each stage adds to memory.

    python -m tests.parallel.memory_program FOLDER

Lines `STAGE PEAK`: the highest resident memory of the stage, less what the rank held before the network, in units of
the rank's shard of the float32 weights; and `tensor SIZE`, the largest tensor in that unit.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from cosmos_predict.checkpoint.export import export_checkpoint
from cosmos_predict.checkpoint.load import load_state
from cosmos_predict.checkpoint.run_folder import RunFolder
from cosmos_predict.checkpoint.run_state import SavedState, save_run_state
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.networks.config import DiTConfig
from cosmos_predict.networks.dit import build_dit
from cosmos_predict.parallel.distributed import distributed_program
from cosmos_predict.parallel.fsdp import initialise, shard_network
from cosmos_predict.parallel.mesh import make_mesh, mesh_sizes
from cosmos_predict.training.ema import PowerEMA

CONFIG = DiTConfig(
    model_channels=1024,
    num_blocks=3,
    num_heads=8,
    adaln_lora_dim=16,
    input_channels=(("latent", 16), ("cond_mask", 1), ("padding", 1)),
    out_channels=16,
    crossattn_emb_channels=1024,
)


def resident(name: str = "VmRSS") -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main(root: str) -> None:
    with distributed_program("gloo") as ranks:
        torch.manual_seed(0)
        mesh = make_mesh(ranks, mesh_sizes(ranks.world_size, -1), torch.device("cpu"))
        small = build_dit(CONFIG.replace(model_channels=128), device="meta")  # first uses of torch have their own cost
        shard_network(small, mesh)
        small.to_empty(device="cpu")
        initialise(small, small.init_weights)
        net = build_dit(CONFIG, device="meta")
        sizes = [parameter.numel() * 4 for parameter in net.parameters()]
        unit = sum(sizes) / ranks.world_size
        before = resident()
        folder = RunFolder(root)

        def report(stage: str) -> None:
            print(stage, (resident("VmHWM") - before) / unit, flush=True)
            mesh.gather(None)
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest

        shard_network(net, mesh)
        net.to_empty(device="cpu")
        initialise(net, net.init_weights)
        report("build")
        weights = {f"net.{name}": parameter.detach() for name, parameter in net.named_parameters()}
        ema = PowerEMA(weights).state_dict()
        report("ema")
        save_run_state(folder, 1, weights=weights, ema=ema, optimizer={}, numbers={}, scheduler={}, mesh=mesh)
        report("save")
        export_checkpoint(folder, 1, weights, ema, mesh)
        report("export")
        with SavedState(folder, 1, mesh) as saved:
            saved.copy_into("weights", weights, root)
        report("resume")
        with TensorFile(folder.exports(1)["both"]) as file:
            load_state(net, file)
        report("load")
        print("tensor", max(sizes) / unit)


if __name__ == "__main__":
    main(sys.argv[1])

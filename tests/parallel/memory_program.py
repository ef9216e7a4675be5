"""One rank that builds, saves, exports and loads a sharded model, and prints what it holds while it does.

    python -m tests.parallel.memory_program FOLDER MODEL BLOCKS [moments] [tensor]

MODEL is a published one at its full width with BLOCKS blocks, built, saved and loaded by the trainer. Lines `STAGE PEAK`:
the highest resident memory of the stage, less what the rank held before there was a model, in units of the rank's shard
of the float32 weights; `tensor SIZE`, the largest tensor in that unit; `unit BYTES`. `moments`: the optimizer has a state.
`tensor`: the ranks form a tensor group.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from cosmos_predict.checkpoint.load import load_state
from cosmos_predict.config.compose import compose
from cosmos_predict.config.lazy import lazy_dict
from cosmos_predict.io.tensors import TensorFile
from cosmos_predict.parallel.distributed import Ranks, distributed_program
from cosmos_predict.parallel.shards import own
from cosmos_predict.training.trainer import Trainer


def resident(name: str = "VmRSS") -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def trainer_of(ranks: Ranks, name: str, *overrides: str) -> Trainer:
    config = compose(
        [
            "experiment=tiny_video2world",
            "data=synthetic",
            "model.config.fsdp_shard_size=-1",
            "model.config.model_manager_config.dit_path=",
            f"job.name={name}",
            *overrides,
        ],
        report=[],
    )
    config.model.config.pipe_config.tokenizer.update(  # type: ignore[union-attr]
        {"name": "dct", "path": "", "options": {"channels": 16}, "dtype": None}
    )
    config.trainer.callbacks = lazy_dict({})
    config.validate()
    config.freeze()
    return Trainer(config, ranks, device="cpu")


def main(root: str, model: str, blocks: str, *parts: str) -> None:
    os.environ["OUTPUT_ROOT"] = root
    net = "model.config.pipe_config.net"
    with distributed_program("gloo") as ranks:
        chosen = [f"model={model}", f"{net}.num_blocks={blocks}"]
        if "tensor" in parts:
            chosen += [f"model_parallel.tensor_model_parallel_size={ranks.world_size}"]
        small = trainer_of(ranks, "small", *chosen, f"{net}.model_channels=256", f"{net}.num_heads=2")
        small.build()  # first uses of torch have their own cost
        small.saver.save(last=True)
        del small
        trainer = trainer_of(ranks, "large", *chosen)
        before = resident()
        peaks: list[tuple[str, int]] = []

        def report(stage: str) -> None:
            trainer.mesh.gather(None)
            peaks.append((stage, resident("VmHWM") - before))
            trainer.mesh.gather(None)
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest

        Path("/proc/self/clear_refs").write_text("5")
        trainer.build()
        report("build")
        if "moments" in parts:
            for parameter in trainer.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad(set_to_none=True)
            report("step")
        trainer.progress.iteration = 1
        trainer.saver.save(last=True)
        trainer.saver.settle()
        report("save")
        trainer.optimizer.state.clear()  # as in a process that starts
        trainer.saver.resume()
        trainer.saver.settle()
        report("resume")
        with TensorFile(trainer.folder.exports(1)["both"]) as file:
            load_state(trainer.model.net, file)
        report("load")
        sizes = [parameter.numel() * 4 for parameter in trainer.model.parameters()]
        unit = sum(own(parameter).numel() * 4 for parameter in trainer.model.parameters())
        for stage, peak in peaks:
            print(stage, peak / unit)
        print("tensor", max(sizes) / unit)
        print("unit", unit)


if __name__ == "__main__":
    main(*sys.argv[1:])

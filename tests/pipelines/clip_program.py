"""One of several processes on a clip: `torchrun -m tests.pipelines.clip_program RUN_FILE OUT_FOLDER`.

Saves the latents that it computes by context parallelism and by dividing the guidance branches, as rank 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from cosmos_predict.models.sampling import SamplerSettings, seeded_noise
from cosmos_predict.parallel.context_parallel import apply_context_parallel
from cosmos_predict.parallel.distributed import distributed_program
from cosmos_predict.pipelines.load import load_world_model
from cosmos_predict.pipelines.processes import Processes, join_processes
from cosmos_predict.pipelines.video2world import sample_clip

SHAPE = (1, 16, 4, 6, 8)


@torch.no_grad()
def latents(run_file: str, processes: Processes, frames: int = SHAPE[2]) -> torch.Tensor:
    """Return what one process, or several together, sample from the same noise, text and given frame."""
    model = load_world_model(run_file).model
    apply_context_parallel(model.net, processes.context)
    text, negative, given = (
        seeded_noise(shape, seed) for seed, shape in enumerate([(1, 8, 1024), (1, 8, 1024), (1, 16, 1, 6, 8)])
    )
    settings = SamplerSettings(num_steps=6, guidance=7.0, cfg_batch="off")
    noise = seeded_noise((*SHAPE[:2], frames, *SHAPE[3:]), 5)
    given = given if frames > 1 else None
    return sample_clip(model, noise, text, given, negative, settings=settings, spread=processes.spread)


def main(run_file: str, out: str) -> None:
    with distributed_program("gloo"):
        results = {}
        for name, cfg_parallel in (("context", False), ("branches", True)):
            processes = join_processes(None, cfg_parallel, "", "cpu")
            if processes.spread is not None and processes.ranks.world_size > 2:
                assert processes.context is not None and processes.context.size() == 2
            results[name] = latents(run_file, processes)
            results[f"{name}_image"] = latents(run_file, processes, frames=1)
        assert processes.share(processes.ranks.rank) == 0
        if processes.is_main:
            save_file(results, Path(out) / "latents.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])

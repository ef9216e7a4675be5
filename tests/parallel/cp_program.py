"""One rank of a context-parallel golden case: `python -m tests.parallel.cp_program CASE_FILE OUT_FOLDER`.

CASE_FILE: safetensors with latent, rope, q, k, v, whole on every rank. Writes OUT_FOLDER/RANK.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import load_file, save_file

from cosmos_predict.networks.attention import attention_backend
from cosmos_predict.parallel.context_parallel import sequence_to_heads, split_sequence, ulysses_attention
from cosmos_predict.parallel.distributed import distributed_program


def main(case: str, out: str) -> None:
    with distributed_program("gloo") as ranks:
        whole = load_file(case)
        part = {
            name: split_sequence(tensor, ranks.rank, ranks.world_size, dim={"latent": 2, "rope": 0}.get(name, 1))
            for name, tensor in whole.items()
        }
        group = dist.group.WORLD
        q, k, v = part["q"], part["k"], part["v"]
        results = {
            "latent": part["latent"],
            "rope": part["rope"],
            "q_heads": sequence_to_heads(q, group),
            "attn": ulysses_attention(q, k, v, group, attention_backend("sdpa")),
        }
        save_file(
            {name: value.contiguous() for name, value in results.items()}, Path(out) / f"{ranks.rank}.safetensors"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

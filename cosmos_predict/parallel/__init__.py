"""What makes one process one of many: ranks, the process group and its ending, the mesh,
FSDP2, context parallelism, activation checkpointing.

Acts on networks and models from outside; `checkpoint`, `training`, `pipelines` and command lines import it, never the reverse.
"""

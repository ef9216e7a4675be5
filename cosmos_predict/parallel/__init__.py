"""What makes one process one of many: ranks, the process group and its ending, context parallelism.

Acts on networks and models from outside; `training`, `pipelines` and command lines import it, never the reverse.
"""

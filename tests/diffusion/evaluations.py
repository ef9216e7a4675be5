"""How often a sampler calls the network."""

from __future__ import annotations

from cosmos_predict.diffusion.samplers import RES_SOLVERS, SOLVERS, solver_intervals


def num_evaluations(solver: str, num_steps: int) -> int:
    """Return how often a sampler calls `denoise` when the user asks for `num_steps` steps."""
    return solver_intervals(solver, num_steps) * SOLVERS[solver] + (solver in RES_SOLVERS)

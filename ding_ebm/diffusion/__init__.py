"""Tensor mathematics of diffusion: schedules, solvers, guidance and its oracles. Torch only, no parameters."""

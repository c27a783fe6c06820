"""Evaluation with fixed seeds: rollouts, intervals, checkpoints, pictures, and the demo."""

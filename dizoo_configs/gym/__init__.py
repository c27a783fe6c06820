"""Gymnasium's MuJoCo locomotion tasks on D4RL's data."""

"""Diffusion- and energy-based reinforcement learning for DI-engine. Importing it loads neither torch nor ding."""

__version__ = "0.1.0"

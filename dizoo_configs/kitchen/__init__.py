"""D4RL's mazes, for an ant and for a point."""

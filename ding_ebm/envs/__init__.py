"""Environments on Gymnasium, one file a benchmark, and the table of tasks."""

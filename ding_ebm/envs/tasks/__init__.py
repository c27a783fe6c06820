"""The rows of the task table, one file a benchmark; importing them needs no simulator."""

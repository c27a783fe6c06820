"""Offline data: files, their checks, reward tuning, normalization and the data set that training draws from."""

"""Affine normalization of observations and actions by statistics that are saved with the model.

Letters: B rows, D dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MODES = ("none", "mean_std", "min_max")

# A column that varies by less than this share of its largest value is constant up to float32 rounding.
_CONSTANT = 1e-6


def is_constant(low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether columns of these least and largest values, (D,), are constant up to rounding."""
    constant: NDArray[np.bool_] = high - low <= _CONSTANT * np.maximum(np.abs(low), np.abs(high))
    return constant


class Normalizer(nn.Module):
    """y = (x - shift) / scale, by dimension; the identity until it is fitted or its state is loaded.

    Args:
        dim: Number of dimensions D.

    Attributes:
        shift: What is mapped to zero, (D,).
        scale: What is mapped to one above it, (D,), > 0.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    @classmethod
    def fit(cls, array: NDArray[Any], mode: str) -> Normalizer:
        """Statistics of the rows of ``array``; a dimension that is constant there is only shifted, to zero.

        Args:
            array: Rows, (N, D).
            mode: ``none`` (identity), ``mean_std`` (to zero mean and unit variance) or ``min_max`` (to [-1, 1]).

        Raises:
            ValueError: If the mode is unknown, or ``array`` has no rows or a value that is not finite.
        """
        if mode not in MODES:
            raise ValueError(f"normalization must be one of {MODES}, got {mode!r}")
        if array.ndim != 2 or len(array) == 0:
            raise ValueError(f"normalization is fitted to rows of shape (N, D) with N >= 1, got shape {array.shape}")
        normalizer = cls(array.shape[1])
        if mode == "none":
            return normalizer
        low, high = array.min(axis=0).astype(np.float64), array.max(axis=0).astype(np.float64)
        if not np.isfinite(low + high).all():
            column = int(np.flatnonzero(~np.isfinite(low + high))[0])
            raise ValueError(
                f"normalization needs finite values, column {column} ranges from {low[column]} to {high[column]}"
            )
        shift, scale = 0.5 * (low + high), 0.5 * (high - low)
        if mode == "mean_std":
            shift, scale = array.mean(axis=0, dtype=np.float64), array.std(axis=0, dtype=np.float64)
        constant = is_constant(low, high)
        normalizer.shift.copy_(torch.from_numpy(shift))
        normalizer.scale.copy_(torch.from_numpy(np.where(constant, 1.0, scale)))
        return normalizer

    def forward(self, x: Tensor) -> Tensor:
        """Normalized values of raw ``x``, (D,) or (B, D), in its dtype."""
        return (x - self.shift.to(x.dtype)) / self.scale.to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        """Raw values of normalized ``y``, (D,) or (B, D), in its dtype."""
        return y * self.scale.to(y.dtype) + self.shift.to(y.dtype)

"""A linear layer that takes the faster of the CPU's two float32 matrix products.

PyTorch multiplies float32 matrices on a CPU by MKL, which on processors not of Intel's make leaves half of their
arithmetic unused; oneDNN, which PyTorch carries too, does not (AMD EPYC, 4096 x 512 x 512, one thread: 112 against 249
GFLOP/s). Both are float32 throughout; they round differently.

oneDNN lays a weight out anew for every product. With few rows that costs as much as the product, so a layer that is
used again unchanged without gradients, as in sampling, keeps its weight in that layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ding_ebm.model.kept import NotCopied, state_of

# Below this number of rows or outputs MKL is the faster one.
_SMALL = 8
# Above this number of rows a kept layout gains nothing.
_FEW = 256
# Below this number of multiplications oneDNN's fixed cost, some 10 microseconds, is more than MKL loses.
_LIGHT = 1 << 18
# The same with gradients, where the product and its gradients by oneDNN go through Python.
_LIGHT_WITH_GRADIENTS = 3 << 18
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_onednn_linear: Any = torch.ops.mkldnn._linear_pointwise.default if _HAS_ONEDNN else None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias by oneDNN."""
    result: Tensor = _onednn_linear(x, weight, bias, "none", [], "")
    return result


class _OneDNNLinear(torch.autograd.Function):
    """The same, with its gradients by oneDNN too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        # With create_graph these products are differentiated in turn; oneDNN's own has no gradient and would give none.
        product = _OneDNNLinear.apply if torch.is_grad_enabled() else _product
        grad_x = product(rows, weight.t(), None).view(x.shape) if ctx.needs_input_grad[0] else None
        grad_weight = product(rows.t(), x.reshape(-1, x.shape[-1]).t(), None) if ctx.needs_input_grad[1] else None
        grad_bias = rows.sum(dim=0) if ctx.has_bias else None
        return grad_x, grad_weight, grad_bias


def _is_faster_by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.shape[-1] > 0
        and x.numel() >= _SMALL * x.shape[-1]
        and weight.shape[0] >= _SMALL
        # Other strides, such as those of a slice of columns, take oneDNN's slow path.
        and x.is_contiguous()
        and (weight.is_contiguous() or weight.t().is_contiguous())
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, faster where oneDNN is.

    Args:
        x: (..., n_in).
        weight: (n_out, n_in).
        bias: (n_out,) or None.

    Returns:
        (..., n_out).
    """
    if torch.compiler.is_compiling() or not _is_faster_by_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        if x.numel() * weight.shape[0] < _LIGHT_WITH_GRADIENTS:
            return F.linear(x, weight, bias)
        result: Tensor = _OneDNNLinear.apply(x, weight, bias)
        return result
    return _product(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`: the same parameters, initialization and numbers.

    A weight that is changed through ``.data`` behind PyTorch's back, and by no optimizer, is not seen to change while
    its layout is kept; every other change is.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self._kept = _KeptLayouts()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out)."""
        return self._product(x, False)

    def transposed(self, x: Tensor) -> Tensor:
        """Map (..., n_out) to (..., n_in) by the transposed weight, without the bias."""
        return self._product(x, True)

    def bound(self, transpose: bool = False) -> Callable[[Tensor], Tensor]:
        """:meth:`forward`, or :meth:`transposed`, for one sampling run: how it multiplies is decided at its first call.

        While the function is in use the weight, the number of rows and the modes of PyTorch must stay as they are.
        """
        chosen: Callable[[Tensor], Tensor] | None = None

        def product(x: Tensor) -> Tensor:
            nonlocal chosen
            if chosen is None:
                chosen = self.bound_for(x, transpose)
            return chosen(x)

        return product

    def bound_for(self, x: Tensor, transpose: bool = False) -> Callable[[Tensor], Tensor]:
        """The same, decided now for inputs like ``x``: of its shape, dtype and device, and contiguous if it is."""
        weight, bias = (self.weight.t(), None) if transpose else (self.weight, self.bias)
        if torch.is_grad_enabled() or not _is_faster_by_onednn(x, weight):
            return lambda x: linear(x, weight, bias)
        if x.numel() * weight.shape[0] < _LIGHT:
            return lambda x: F.linear(x, weight, bias)
        if x.numel() <= _FEW * x.shape[-1]:
            weight = self._kept.get(self.weight, transpose, at_once=True)
        return lambda x: _onednn_linear(x, weight, bias, "none", [], "")

    def _product(self, x: Tensor, transpose: bool) -> Tensor:
        weight, bias = (self.weight.t(), None) if transpose else (self.weight, self.bias)
        if (
            not (torch.compiler.is_compiling() or torch.is_grad_enabled())
            and x.numel() <= _FEW * x.shape[-1]
            and _is_faster_by_onednn(x, weight)
        ):
            return _product(x, self._kept.get(self.weight, transpose), bias)
        return linear(x, weight, bias)


class _KeptLayouts(NotCopied):
    """A weight and its transpose in oneDNN's own layout, until the weight changes."""

    def __init__(self) -> None:
        self._state: tuple[Any, ...] | None = None
        self._layouts: dict[bool, Tensor] = {}

    def get(self, weight: Tensor, transpose: bool, at_once: bool = False) -> Tensor:
        """The weight, or its transpose, as the product takes it; laid out at its second use, or at once."""
        matrix = weight.t() if transpose else weight
        state = state_of(weight)
        if state != self._state:
            self._state, self._layouts = state, {}
            if not at_once:
                return matrix
        if transpose not in self._layouts:
            self._layouts[transpose] = torch.ops.mkldnn._reorder_linear_weight(matrix)
        return self._layouts[transpose]

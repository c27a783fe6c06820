"""What is computed from parameters alone, kept until they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")


def state_of(*tensors: Tensor) -> tuple[Any, ...]:
    """Another one after a change of a tensor, but for one through ``.data`` behind PyTorch's back by no optimizer."""
    return (_optimizer_steps, *[(x.data_ptr(), x._version) for x in tensors])


class NotCopied:
    """Its copies, and what is read back of it, are as new."""

    def __deepcopy__(self, memo: dict[int, Any]) -> NotCopied:
        return type(self)()

    def __reduce__(self) -> tuple[type[NotCopied], tuple[()]]:
        return type(self), ()


class Kept(NotCopied, Generic[T]):
    """A value, until the state that it was computed in changes."""

    def __init__(self) -> None:
        self._kept: tuple[Any, T] | None = None

    def get(self, state: Any, compute: Callable[[], T]) -> T:
        """The value, computed now where this is another state than at the last call."""
        if self._kept is None or self._kept[0] != state:
            self._kept = state, compute()
        return self._kept[1]


_optimizer_steps = 0


def _count_step(*_: Any) -> None:
    """PyTorch's fused optimizers change weights without a trace in their version: count the steps of them all."""
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)

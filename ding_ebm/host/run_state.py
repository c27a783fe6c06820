"""What a run's next iterations depend on beside its policy, as one state for its checkpoints.

The host hands its learner's hooks the learner only. Parts of this package make themselves known by the run's name; the
host's evaluator, which it makes by itself, is looked for among the living objects.
"""

from __future__ import annotations

import gc
import random
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
import torch
from ding.worker import InteractionSerialEvaluator


class RunPart(Protocol):
    """A part of a run that has a state: its data set or its collector."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


_parts: WeakValueDictionary[tuple[str, str], Any] = WeakValueDictionary()


def take_part(exp_name: str, role: str, part: RunPart) -> None:
    """Have a part's state in the checkpoints of the run of that name; the last one of a role is meant."""
    _parts[exp_name, role] = part


def sampling_state(exp_name: str) -> dict[str, Any]:
    """Where data set and collector stand, and the global generators."""
    roles = {role: part for (name, role), part in _parts.items() if name == exp_name}
    state = {role: part.state_dict() for role, part in roles.items()}
    return {**state, "generators": _generators()}


def load_sampling_state(exp_name: str, state: dict[str, Any]) -> None:
    """Go on from a state of :func:`sampling_state`.

    Raises:
        ValueError: If the run has a part that the state does not have.
    """
    for (name, role), part in _parts.items():
        if name != exp_name:
            continue
        if role not in state:
            raise ValueError(
                f"the checkpoint has no state of a {role}, as this run has: it is of another pipeline; it has "
                f"{', '.join(state)}"
            )
        part.load_state_dict(state[role])
    _load_generators(state["generators"])


def evaluator_state(learner: Any) -> dict[str, Any]:
    """When the host has evaluated last, and the best mean return."""
    evaluator = evaluator_of(learner)
    if evaluator is None:
        return {}
    best, last = evaluator._max_episode_return, evaluator._last_eval_iter
    return dict(max_episode_return=float(best), last_eval_iter=int(last))


def load_evaluator_state(learner: Any, state: dict[str, Any]) -> None:
    """Have the host evaluate as it would have, and keep its best checkpoint until a better one."""
    evaluator = evaluator_of(learner)
    if evaluator is not None and state:
        evaluator._max_episode_return = state["max_episode_return"]
        evaluator._last_eval_iter = state["last_eval_iter"]


def evaluator_of(learner: Any) -> Any:
    """The host's evaluator of the learner's policy; None where there is none, as in a run of nothing but learning."""
    policy = learner.policy.forward.__self__
    for thing in gc.get_objects():
        if type(thing) is InteractionSerialEvaluator and thing._policy.forward.__self__ is policy:
            return thing
    return None


def _generators() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (the host seeds it)
    version, numbers, next_gauss = random.getstate()
    state = dict(
        torch=torch.get_rng_state(),
        numpy=(kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        python=(version, torch.tensor(numbers), next_gauss),
    )
    return state | (dict(cuda=torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else {})


def _load_generators(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, next_gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), next_gauss))
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])

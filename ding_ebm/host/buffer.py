"""A buffer for on-policy learning under DI-engine's ``serial`` pipeline."""

from __future__ import annotations

import copy
from typing import Any

from ding.utils import BUFFER_REGISTRY
from ding.worker.replay_buffer import IBuffer
from easydict import EasyDict


@BUFFER_REGISTRY.register("ebm_on_policy")
class OnPolicyBuffer(IBuffer):
    """Hands the learner exactly the last collection, whole, in its order and once.

    The passes over it are the policy's (``learn.epoch_per_collect``), so ``learn.update_per_collect`` is 1.
    """

    config: dict[str, Any] = {}

    @classmethod
    def default_config(cls) -> EasyDict:
        """A copy of the declared keys and their defaults."""
        return EasyDict(copy.deepcopy(cls.config), cfg_type=f"{cls.__name__}Dict")

    def __init__(self, cfg: EasyDict, tb_logger: Any = None, exp_name: str = "", instance_name: str = "buffer") -> None:
        self._fresh: Any = None

    def push(self, data: Any, cur_collector_envstep: int) -> None:
        """Take a collection.

        Raises:
            RuntimeError: If the last one has not been learned from: it would be lost, or be learned from too late.
        """
        if self._fresh is not None:
            raise RuntimeError(
                f"a collection was pushed at environment step {cur_collector_envstep} before the last one was learned "
                "from; on-policy learning uses each collection once, at once"
            )
        self._fresh = data

    def sample(self, batch_size: int, cur_learner_iter: int) -> Any:
        """The collection just pushed; whatever ``batch_size`` says, for the policy makes the minibatches.

        Raises:
            RuntimeError: If it has been handed out: a second update on it would be off-policy.
        """
        if self._fresh is None:
            raise RuntimeError(
                f"the collection has been learned from already (learner iteration {cur_learner_iter}); set "
                "policy.learn.update_per_collect=1, and the number of passes by policy.learn.epoch_per_collect"
            )
        data, self._fresh = self._fresh, None
        return data

    def update(self, info: dict[str, list[Any]]) -> None:
        """There are no priorities."""

    def clear(self) -> None:
        """Forget what was not learned from."""
        self._fresh = None

    def count(self) -> int:
        """Number of collections that wait, 0 or 1."""
        return int(self._fresh is not None)

    def save_data(self, file_name: str) -> None:
        """Nothing outlives a collection."""
        raise NotImplementedError("an on-policy buffer holds nothing worth saving")

    def load_data(self, file_name: str) -> None:
        """Nothing outlives a collection."""
        raise NotImplementedError("an on-policy buffer holds nothing worth loading")

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a run resumes before a collection."""
        return {}

    def load_state_dict(self, _state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""

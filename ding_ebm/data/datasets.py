"""The data set that training draws from: tensors that live on the training device, a batch by indexing.

Letters: N rows, Ns states, B batch, Do and Da dimensions of an observation and of an action.
"""

from __future__ import annotations

import hashlib
from collections.abc import ItemsView, KeysView, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from ding_ebm.data.normalizer import Normalizer
from ding_ebm.data.rewards import tune_rewards
from ding_ebm.data.transitions import Transitions


class DeviceBatch:
    """A batch, tensors by name, that is already where it is needed.

    ``DataLoader(pin_memory=True)`` hands it on untouched; of a ``Mapping`` PyTorch 2.8 would
    pin the tensors one by one.
    """

    def __init__(self, **tensors: Tensor) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def keys(self) -> KeysView[str]:
        """Names of the tensors."""
        return self._tensors.keys()

    def items(self) -> ItemsView[str, Tensor]:
        """Names and tensors."""
        return self._tensors.items()

    def pin_memory(self) -> DeviceBatch:
        """The batch itself; a tensor on a GPU cannot be pinned."""
        return self


class ResidentDataset:
    """Rows on a device, drawn uniformly with replacement from an own generator, a batch by one indexing.

    Args:
        num_rows: Number of rows there are.
        device: Where the tensors live and batches are made.
        seed: Of the generator that draws rows.
        length: What ``len()`` says, that is rows that one epoch of a ``DataLoader`` draws; ``num_rows`` if None.

    Raises:
        ValueError: If ``length`` is not positive.
    """

    def __init__(self, num_rows: int, device: str | torch.device, seed: int, length: int | None) -> None:
        if length is not None and length < 1:
            raise ValueError(f"length must be at least 1 row an epoch, got {length}")
        self._num_rows = num_rows
        self._length = num_rows if length is None else length
        self._generator = torch.Generator(device=device).manual_seed(seed)

    def gather(self, rows: Tensor) -> DeviceBatch:
        """The batch of given rows, (B,), int64, on the device of the data set."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Row ``index`` of the data, for people; training takes whole batches."""
        if not 0 <= index < self._num_rows:
            raise IndexError(f"row must be in [0, {self._num_rows}), got {index}")
        batch = self.gather(torch.tensor([index], device=self._generator.device))
        return {name: values[0] for name, values in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> DeviceBatch:
        """Draw ``len(indices)`` rows; their values come from the data set's own generator, not from ``indices``.

        So a checkpoint can hold where the sampling stands, and no index travels between host and device.
        """
        if get_worker_info() is not None:
            raise ValueError("DataLoader workers would all draw the same rows: num_workers must be 0")
        rows = torch.randint(self._num_rows, (len(indices),), generator=self._generator, device=self._generator.device)
        return self.gather(rows)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the sampling stands."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on drawing from where :meth:`state_dict` was taken."""
        self._generator.set_state(state["generator"].cpu())


class OfflineDataset(ResidentDataset):
    """Transitions on a device, read-only, drawn uniformly with replacement from an own generator.

    A state is stored once: row i's observation is state i, and row i's next observation is state i + 1 wherever the
    two agree; only elsewhere (the end of an episode) an extra state is appended.

    Args:
        transitions: The rows, which :func:`~ding_ebm.data.checks.check_transitions` has passed.
        reward_tuning: See :func:`~ding_ebm.data.rewards.tune_rewards`.
        obs_normalization: Mode of :class:`~ding_ebm.data.normalizer.Normalizer`, fitted to ``transitions.obs``.
        action_normalization: The same for actions.
        device: Where the tensors live and batches are made.
        seed: Of the generator that draws rows.
        length: What ``len()`` says, that is rows that one epoch of a ``DataLoader`` draws; N if None.

    Attributes:
        states: Normalized observations, (Ns, Do), float32; the first N are the rows' own.
        next_state: Index into ``states`` of each row's next observation, (N,), int64.
        action: Normalized actions, (N, Da), float32.
        reward: Tuned rewards, (N,), float32.
        done: 1 where the task ended (not where it was cut), (N,), float32.
        obs_normalizer: From raw observations to ``states``.
        action_normalizer: From raw actions to ``action``.

    Raises:
        ValueError: If an option is out of its range.
    """

    def __init__(
        self,
        transitions: Transitions,
        *,
        reward_tuning: str = "none",
        obs_normalization: str = "none",
        action_normalization: str = "none",
        device: str | torch.device = "cpu",
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        super().__init__(len(transitions), device, seed, length)
        self.obs_normalizer = Normalizer.fit(transitions.obs, obs_normalization)
        self.action_normalizer = Normalizer.fit(transitions.action, action_normalization)
        states, next_state = _distinct_states(transitions)
        self.states = self.obs_normalizer(torch.from_numpy(states)).to(device)
        self.next_state = torch.from_numpy(next_state).to(device)
        self.action = self.action_normalizer(torch.from_numpy(transitions.action)).to(device)
        self.reward = torch.from_numpy(tune_rewards(transitions, reward_tuning)).to(device)
        self.done = torch.from_numpy(transitions.terminated.astype(np.float32)).to(device)

    def gather(self, rows: Tensor) -> DeviceBatch:
        """The batch of given rows.

        Args:
            rows: Row numbers, (B,), int64, on the device of the data set.

        Returns:
            obs (B, Do), action (B, Da), reward (B,), next_obs (B, Do), done (B,), and the positions index and
            next_index of obs and next_obs in ``states``, (B,).
        """
        # index_select is 2 to 3 times as fast as states[rows] on a CPU.
        next_rows = self.next_state.index_select(0, rows)
        return DeviceBatch(
            obs=self.states.index_select(0, rows),
            action=self.action.index_select(0, rows),
            reward=self.reward.index_select(0, rows),
            next_obs=self.states.index_select(0, next_rows),
            done=self.done.index_select(0, rows),
            index=rows,
            next_index=next_rows,
        )

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """What a policy needs to know of its data: dimensions, normalizers, the states, and a sum that names them."""
        return dict(
            obs_dim=self.states.shape[1],
            action_dim=self.action.shape[1],
            obs_normalizer=self.obs_normalizer.state_dict(),
            action_normalizer=self.action_normalizer.state_dict(),
            states=self.states,
            next_state=self.next_state,
            num_rows=self._num_rows,
            fingerprint=fingerprint(self.states, self.next_state, self.action, self.reward, self.done),
        )


def _distinct_states(transitions: Transitions) -> tuple[NDArray[Any], NDArray[Any]]:
    """All states, (Ns, Do), and the state after each row, (N,)."""
    rows = len(transitions)
    follows = np.zeros(rows, dtype=np.bool_)
    follows[:-1] = (transitions.next_obs[:-1] == transitions.obs[1:]).all(axis=1)
    extra = np.flatnonzero(~follows)
    next_state = np.arange(1, rows + 1, dtype=np.int64)
    next_state[extra] = np.arange(rows, rows + extra.size)
    return np.concatenate([transitions.obs, transitions.next_obs[extra]]), next_state


def fingerprint(*tensors: Tensor) -> str:
    """SHA-256 of the tensors' bytes, the same on every device."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.hexdigest()

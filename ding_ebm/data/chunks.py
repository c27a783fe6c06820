"""Demonstrations as action chunks: Tp actions in a row, and the To observations up to the first of them.

Letters: N rows, W windows, B batch, To observation history, Tp predicted actions, Do observation, Da action.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ding_ebm.data.datasets import DeviceBatch, ResidentDataset, fingerprint
from ding_ebm.data.normalizer import Normalizer
from ding_ebm.data.transitions import Transitions


class ChunkDataset(ResidentDataset):
    """Windows of demonstrations on a device, read-only, drawn uniformly with replacement from an own generator.

    A window lies within one episode and is never padded at its end; a history that would begin before the episode
    repeats the episode's first observation. Rows are stored once, a window is where it begins.

    Args:
        transitions: The rows, which :func:`~ding_ebm.data.checks.check_transitions` has passed.
        horizon_steps: Tp.
        cond_steps: To.
        obs_normalization: Mode of :class:`~ding_ebm.data.normalizer.Normalizer`, fitted to ``transitions.obs``.
        action_normalization: The same for actions.
        device: Where the tensors live and batches are made.
        seed: Of the generator that draws windows.
        length: What ``len()`` says, that is windows that one epoch of a ``DataLoader`` draws; W if None.

    Attributes:
        obs: Normalized observations, (N, Do), float32.
        action: Normalized actions, (N, Da), float32.
        start: First row of each window, (W,), int64, increasing.
        episode_start: First row of the episode of each window, (W,), int64.
        obs_normalizer: From raw observations to ``obs``.
        action_normalizer: From raw actions to ``action``.

    Raises:
        ValueError: If an option is out of its range, or no episode is Tp steps long.

    Source:
        Chi et al. 2023 (arXiv:2303.04137), receding-horizon control; windows as in the code of arXiv:2409.00588.
    """

    def __init__(
        self,
        transitions: Transitions,
        *,
        horizon_steps: int,
        cond_steps: int = 1,
        obs_normalization: str = "min_max",
        action_normalization: str = "min_max",
        device: str | torch.device = "cpu",
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        if horizon_steps < 1 or cond_steps < 1:
            raise ValueError(f"horizon_steps and cond_steps must be at least 1, got {horizon_steps} and {cond_steps}")
        start, episode_start = _windows(transitions, horizon_steps)
        super().__init__(len(start), device, seed, length)
        self.obs_normalizer = Normalizer.fit(transitions.obs, obs_normalization)
        self.action_normalizer = Normalizer.fit(transitions.action, action_normalization)
        self.obs = self.obs_normalizer(torch.from_numpy(transitions.obs)).to(device)
        self.action = self.action_normalizer(torch.from_numpy(transitions.action)).to(device)
        self.start = torch.from_numpy(start).to(device)
        self.episode_start = torch.from_numpy(episode_start).to(device)
        # The chunk that begins in each row, (N - Tp + 1, Tp, Da): a view of the actions.
        rows, dim = self.action.shape
        self._chunks = self.action.as_strided((rows - horizon_steps + 1, horizon_steps, dim), (dim, dim, 1))
        self._back = torch.arange(1 - cond_steps, 1, device=device)

    def gather(self, rows: Tensor) -> DeviceBatch:
        """The batch of given windows.

        Args:
            rows: Window numbers, (B,), int64, on the device of the data set.

        Returns:
            obs (B, To, Do), the latest last, and action (B, Tp, Da); index, the first row of each window, and episode,
            that of its episode, (B,).
        """
        index, episode = self.start.index_select(0, rows), self.episode_start.index_select(0, rows)
        if len(self._back) == 1:
            obs = self.obs.index_select(0, index).unsqueeze(1)
        else:
            history = torch.maximum(index.unsqueeze(1) + self._back, episode.unsqueeze(1))
            obs = self.obs.index_select(0, history.flatten()).view(*history.shape, -1)
        return DeviceBatch(obs=obs, action=self._chunks.index_select(0, index), index=index, episode=episode)

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """What a policy needs to know of its data: dimensions, normalizers, and a sum that names the windows."""
        return dict(
            obs_dim=self.obs.shape[1],
            action_dim=self.action.shape[1],
            obs_normalizer=self.obs_normalizer.state_dict(),
            action_normalizer=self.action_normalizer.state_dict(),
            num_rows=self._num_rows,
            fingerprint=fingerprint(self.obs, self.action, self.start, self.episode_start),
        )


def _windows(transitions: Transitions, horizon_steps: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """First row of every window, and that of its episode, (W,) each; an unfinished piece at the end counts too."""
    rows = len(transitions)
    ends = np.append(transitions.episode_ends, rows - 1)
    starts = np.concatenate([[0], ends[:-1] + 1])
    row = np.arange(rows)
    episode = np.searchsorted(ends, row)
    fits = row + horizon_steps - 1 <= ends[episode]
    if not fits.any():
        longest = int((ends - starts).max()) + 1
        raise ValueError(
            f"{transitions.source}: the longest episode has {longest} steps, so no window of horizon_steps = "
            f"{horizon_steps} fits; give longer episodes or a shorter horizon"
        )
    return row[fits], starts[episode[fits]]

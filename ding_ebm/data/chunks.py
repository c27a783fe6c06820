"""Data as action chunks: windows of demonstrations to clone, and transitions over several steps to learn values from.

Letters: N rows, W windows, B batch, To observation history, Tp predicted and Ta executed actions, n steps, Do and Da
dimensions of an observation and of an action.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ding_ebm.data.datasets import DeviceBatch, OfflineDataset, ResidentDataset, fingerprint
from ding_ebm.data.normalizer import Normalizer
from ding_ebm.data.sequences import episode_bounds, following_rows, history_rows, step_targets, window_rows
from ding_ebm.data.transitions import Transitions


class ChunkDataset(ResidentDataset):
    """Windows of demonstrations on a device, read-only, drawn uniformly with replacement from an own generator.

    A window lies within one episode; a history that would begin before the episode repeats the episode's first
    observation, and actions that would lie behind its end (of ``diffusion_policy`` only) repeat the last one. Rows are
    stored once, a window is where it begins.

    Args:
        transitions: The rows, which :func:`~ding_ebm.data.checks.check_transitions` has passed.
        horizon_steps: Tp.
        cond_steps: To.
        padding: Which windows there are, see :func:`~ding_ebm.data.sequences.window_rows`.
        act_steps: Ta, of the padding ``diffusion_policy``; others do not look at it.
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
        padding: str = "dppo",
        act_steps: int = 1,
        obs_normalization: str = "min_max",
        action_normalization: str = "min_max",
        device: str | torch.device = "cpu",
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        if horizon_steps < 1 or cond_steps < 1:
            raise ValueError(f"horizon_steps and cond_steps must be at least 1, got {horizon_steps} and {cond_steps}")
        start = window_rows(transitions, horizon_steps, padding, act_steps)
        first, last = episode_bounds(transitions)
        super().__init__(len(start), device, seed, length)
        self.obs_normalizer = Normalizer.fit(transitions.obs, obs_normalization)
        self.action_normalizer = Normalizer.fit(transitions.action, action_normalization)
        self.obs = self.obs_normalizer(torch.from_numpy(transitions.obs)).to(device)
        self.action = self.action_normalizer(torch.from_numpy(transitions.action)).to(device)
        self.start = torch.from_numpy(start).to(device)
        self.episode_start = torch.from_numpy(first[start]).to(device)
        self._steps = cond_steps, horizon_steps
        # Last row of each window's episode, where a window may reach beyond it.
        self._last = torch.from_numpy(last[start]).to(device) if padding == "diffusion_policy" else None
        if self._last is None:
            # The chunk that begins in each row, (N - Tp + 1, Tp, Da): a view of the actions.
            rows, dim = self.action.shape
            self._chunks = self.action.as_strided((rows - horizon_steps + 1, horizon_steps, dim), (dim, dim, 1))

    def gather(self, rows: Tensor) -> DeviceBatch:
        """The batch of given windows.

        Args:
            rows: Window numbers, (B,), int64, on the device of the data set.

        Returns:
            obs (B, To, Do), the latest last, and action (B, Tp, Da); index, the first row of each window, and episode,
            that of its episode, (B,).
        """
        index, episode = self.start.index_select(0, rows), self.episode_start.index_select(0, rows)
        cond_steps, horizon_steps = self._steps
        if cond_steps == 1:
            obs = self.obs.index_select(0, index).unsqueeze(1)
        else:
            obs = take_rows(self.obs, history_rows(index, episode, cond_steps))
        if self._last is None:
            action = self._chunks.index_select(0, index)
        else:
            action = take_rows(self.action, following_rows(index, self._last.index_select(0, rows), horizon_steps))
        return DeviceBatch(obs=obs, action=action, index=index, episode=episode)

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """What a policy needs to know of its data: dimensions, normalizers, and a sum that names the windows."""
        ends = () if self._last is None else (self._last,)
        return dict(
            obs_dim=self.obs.shape[1],
            action_dim=self.action.shape[1],
            obs_normalizer=self.obs_normalizer.state_dict(),
            action_normalizer=self.action_normalizer.state_dict(),
            num_rows=self._num_rows,
            fingerprint=fingerprint(self.obs, self.action, self.start, self.episode_start, *ends),
        )


class StepDataset(OfflineDataset):
    """Transitions over n steps, read-only, drawn uniformly with replacement from an own generator.

    One begins in every row. It takes n steps, or those up to the end of the episode; actions behind that end repeat the
    last one, and were not executed. With n = Ta it is what one decision of a policy over chunks comes to; of n-step
    targets for a policy over single actions only the first action is of use.

    Args:
        transitions: The rows, which :func:`~ding_ebm.data.checks.check_transitions` has passed.
        num_steps: n.
        cond_steps: To.
        discount_factor: Factor of a reward from one step to the next within the n; 1: the plain sum.
        options: Of :class:`~ding_ebm.data.datasets.OfflineDataset`.

    Attributes:
        first: First row of each row's episode, (N,), int64.
        last: Last row of each row's episode, (N,), int64.
        truncated: Where an episode was cut, (N,), bool.

    Raises:
        ValueError: If an option is out of its range.
    """

    def __init__(
        self,
        transitions: Transitions,
        *,
        num_steps: int,
        cond_steps: int = 1,
        discount_factor: float = 1.0,
        **options: Any,
    ) -> None:
        if num_steps < 1 or cond_steps < 1:
            raise ValueError(f"num_steps and cond_steps must be at least 1, got {num_steps} and {cond_steps}")
        if not 0.0 <= discount_factor <= 1.0:
            raise ValueError(f"discount_factor must be from 0 to 1, got {discount_factor}")
        super().__init__(transitions, **options)
        device = self.states.device
        self.first, self.last = (torch.from_numpy(bound).to(device) for bound in episode_bounds(transitions))
        self.truncated = torch.from_numpy(transitions.truncated).to(device)
        self._settings = num_steps, cond_steps, discount_factor

    def gather(self, rows: Tensor) -> DeviceBatch:
        """The batch of the steps from given rows.

        Args:
            rows: Row numbers, (B,), int64, on the device of the data set.

        Returns:
            obs and next_obs (B, To, Do), the latest last; action (B, n, Da); reward, the discounted sum over the
            executed steps, (B,); length, their number (what follows counts ``discount_factor ** length``), (B,), int64;
            done, 1 where the task ended with the last of them, and truncated, where the episode was cut there, (B,),
            float32; index, the given rows, (B,).
        """
        num_steps, cond_steps, discount_factor = self._settings
        first, last = self.first.index_select(0, rows), self.last.index_select(0, rows)
        targets = step_targets(rows, last, self.reward, num_steps, discount_factor)
        # The history after the steps: the latest To - 1 observations before their end, and the one that they led to.
        after = self.next_state.index_select(0, targets.last).unsqueeze(1)
        if cond_steps > 1:
            after = torch.cat([history_rows(targets.last, first, cond_steps - 1), after], dim=1)
        return DeviceBatch(
            obs=take_rows(self.states, history_rows(rows, first, cond_steps)),
            action=take_rows(self.action, following_rows(rows, last, num_steps)),
            reward=targets.reward,
            next_obs=take_rows(self.states, after),
            done=self.done.index_select(0, targets.last),
            truncated=self.truncated.index_select(0, targets.last).float(),
            length=targets.length,
            index=rows,
        )


def take_rows(array: Tensor, rows: Tensor) -> Tensor:
    """Rows of an array (N, D) by their numbers (B, n): (B, n, D)."""
    return array.index_select(0, rows.flatten()).view(*rows.shape, -1)

"""``avoid_m1``, ``avoid_m2``, ``avoid_m3``: the avoid task with the reward by which DPPO fine-tunes it.

Cylinders, start, observation and action are those of :mod:`ding_ebm.envs.avoid`; reward and end are of ``avoiding-m5``
(Ren et al. 2024, arXiv:2409.00588): of a step 1 once mode 5, the leftmost gate of the last row, has been passed, and 1
while y is above 0.40; instead of that ``FAILURE_REWARD`` at the touch of a cylinder, and wherever x is outside the
field. An episode is truncated after 100 steps, and a success if a step has paid 2.

One difference: a touch ends the episode. In ``avoiding-m5`` it goes on, every further step paying -0.1, but nothing in
the observation says that it has failed, so that a value cannot tell such states from those of a success; fine-tuning
then learns to be fast and to collide.

The three tasks are one environment: they differ in their demonstrations, half of which take the way that is rewarded
and half another one (:func:`ding_ebm.envs.avoid_demos.make_mode_demonstrations`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.avoid import FINISH_Y, AvoidBatch, AvoidEnv

MAX_EPISODE_STEPS = 100
FAILURE_REWARD = -0.1
SUCCESS_REWARD = 2.0
# Gate of the last row that is rewarded: mode 5 of D3IL's nine bits.
REWARDED_GATE = 0


class AvoidModesBatch(AvoidBatch):
    """E environments as a :class:`~ding_ebm.envs.batch.BatchEnv`, stepped as arrays.

    Args:
        num_envs: E.
        tracking: See :class:`~ding_ebm.envs.avoid.AvoidBatch`. The tasks use ``ideal`` if not told otherwise: the
            observation is then the whole state, and every scripted demonstration goes the way that it means to.
        stale_obs: See :class:`~ding_ebm.envs.avoid.AvoidBatch`.
        max_episode_steps: Steps after which an episode is truncated.

    Attributes:
        gates: As of :class:`~ding_ebm.envs.avoid.AvoidBatch`.
        success: Whether a step of the episode has paid 2, (E,), bool.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        tracking: str = "ideal",
        stale_obs: bool = False,
        max_episode_steps: int = MAX_EPISODE_STEPS,
    ) -> None:
        super().__init__(num_envs, tracking=tracking, stale_obs=stale_obs, max_episode_steps=max_episode_steps)

    def _judge(self, before: NDArray[np.float64], outside: NDArray[np.bool_]) -> NDArray[np.float64]:
        paid = (self.gates[:, 2] == REWARDED_GATE) + (self._actual[:, 1] > FINISH_Y).astype(np.float64)
        reward = np.where(self._collided | outside, FAILURE_REWARD, paid)
        self._terminated = self._collided
        self.success = self.success | (reward >= SUCCESS_REWARD)
        return reward


class AvoidModesEnv(AvoidEnv):
    """One environment of :class:`AvoidModesBatch` with Gymnasium's interface.

    Args:
        tracking: See :class:`AvoidModesBatch`.
        stale_obs: See :class:`AvoidModesBatch`.
        max_episode_steps: See :class:`AvoidModesBatch`.
    """

    batch_type = AvoidModesBatch

    def __init__(
        self, *, tracking: str = "ideal", stale_obs: bool = False, max_episode_steps: int = MAX_EPISODE_STEPS
    ) -> None:
        super().__init__(tracking=tracking, stale_obs=stale_obs, max_episode_steps=max_episode_steps)

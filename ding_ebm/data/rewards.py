"""Reward tuning: the affine changes of D4RL's rewards that published results are made with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ding_ebm.data.transitions import Transitions

KINDS = ("none", "locomotion", "antmaze")


def tune_rewards(transitions: Transitions, kind: str) -> NDArray[np.float32]:
    """Rewards to train on, (N,).

    Args:
        transitions: The rows; their rewards are not changed.
        kind: ``none``; ``locomotion``, r * 1000 / (largest - smallest return of a finished episode); or ``antmaze``,
            r - 1 (a cost per step until the goal is reached).

    Raises:
        ValueError: If the kind is unknown or the returns of finished episodes do not differ.

    Source:
        Kostrikov et al. 2021 (arXiv:2110.06169), as Lu et al. 2023 (arXiv:2304.12824) use it. Their code counts an
        episode as ended after 1000 steps whether or not it was cut there; here episodes end where the data says so,
        and an unfinished piece at the end does not count.
    """
    if kind not in KINDS:
        raise ValueError(f"reward tuning must be one of {KINDS}, got {kind!r}")
    reward = transitions.reward
    if kind == "antmaze":
        return reward - np.float32(1.0)
    if kind == "none":
        return reward.copy()
    returns = transitions.episode_returns()
    if returns.size == 0 or returns.max() == returns.min():
        raise ValueError(
            f"{transitions.source}: locomotion reward tuning divides by the range of episode returns, which takes two "
            f"finished episodes of different return; found {returns.size} finished, returns from "
            f"{returns.min(initial=np.inf):g} to {returns.max(initial=-np.inf):g}. Use 'none', or set terminals and "
            "timeouts where episodes end"
        )
    return (reward * (1000.0 / (returns.max() - returns.min()))).astype(np.float32)

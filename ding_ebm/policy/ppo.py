"""What PPO needs whatever the policy's model is: advantages, reward scaling, and the clipped losses.

Letters: T decisions of a collection, E environments, B rows of a minibatch, F fine-tuned denoising steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def generalized_advantages(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    discount_factor: float,
    gae_lambda: float,
) -> Tensor:
    """Generalized advantage estimates, (T, E).

    Two flags keep time limits and falls apart: nothing is bootstrapped after a termination, and nothing flows from one
    episode to the one before it, whichever way that ended.

    Args:
        reward: (T, E).
        value: V of the observation before each decision, (T, E).
        next_value: V of the observation after it, (T, E); at an episode's end that of its own last observation, not of
            the next episode's first.
        terminated: Whether the task ended the episode, (T, E), bool.
        done: Whether the episode ended at all, (T, E), bool.
        discount_factor: Discount per decision.
        gae_lambda: Weight of longer returns, 0 to 1.

    Source:
        Schulman et al. 2016 (arXiv:1506.02438), eq. 16.
    """
    delta = reward + discount_factor * next_value * (~terminated).to(reward.dtype) - value
    carry = discount_factor * gae_lambda * (~done).to(delta.dtype)
    advantage = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        following = delta[t] + carry[t] * following
        advantage[t] = following
    return advantage


class RunningReturnScaler:
    """Divides rewards by the running standard deviation of a discounted sum of past rewards, one sum an environment.

    Args:
        num_envs: E.
        discount_factor: Discount of the sums per decision; its own, whatever the learner's is.
        clip: Bound on the absolute value of a scaled reward.

    Source:
        Engstrom et al. 2020 (arXiv:2005.12729), reward scaling; constants as in the code of Ren et al. 2024
        (arXiv:2409.00588).
    """

    _EPSILON = 1e-8

    def __init__(self, num_envs: int, discount_factor: float = 0.99, clip: float = 10.0) -> None:
        self.discount_factor, self.clip = discount_factor, clip
        self._sums = torch.zeros(num_envs, dtype=torch.float64)
        # Moments start as those of 1e-4 samples of mean 0 and variance 1.
        self._count, self._mean, self._variance = 1e-4, 0.0, 1.0

    def __call__(self, reward: Tensor, first: Tensor) -> Tensor:
        """Take the rewards of a collection into account, and scale them.

        Args:
            reward: (T, E).
            first: Whether a decision is the first of its episode, (T, E), bool.

        Returns:
            (T, E), in the dtype of ``reward``.

        Raises:
            ValueError: If the number of environments is another one, or a reward is not finite.
        """
        if reward.shape[1:] != self._sums.shape:
            raise ValueError(f"rewards must be (T, {len(self._sums)}), got {tuple(reward.shape)}")
        if not bool(torch.isfinite(reward).all()):
            t, env = torch.nonzero(~torch.isfinite(reward))[0].tolist()
            raise ValueError(f"the reward of environment {env} at decision {t} is {float(reward[t, env])}")
        sums = []
        for r, begins in zip(reward.to("cpu", torch.float64), first.cpu()):
            self._sums = r + self.discount_factor * self._sums * (~begins)
            sums.append(self._sums)
        self._update(torch.stack(sums))
        return (reward * (1.0 / self.scale_of(self.state_dict()))).clamp(-self.clip, self.clip)

    @classmethod
    def scale_of(cls, state: Mapping[str, Any]) -> float:
        """What rewards are divided by in a state of :meth:`state_dict`: the unit of returns and values, in rewards."""
        return math.sqrt(state["variance"] + cls._EPSILON)

    def _update(self, values: Tensor) -> None:
        """Merge the moments of new values into the running ones."""
        count, total = values.numel(), self._count + values.numel()
        shift = float(values.mean()) - self._mean
        squares = self._variance * self._count + float(values.var(correction=0)) * count
        squares += shift**2 * self._count * count / total
        self._mean += shift * count / total
        self._variance, self._count = squares / (total - 1.0), total

    def state_dict(self) -> dict[str, Any]:
        """Everything that later scales depend on; plain numbers and one tensor."""
        return dict(sums=self._sums, count=self._count, mean=self._mean, variance=self._variance)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken; the number of environments may have changed, sums restart."""
        if state["sums"].shape == self._sums.shape:
            self._sums = state["sums"].clone()
        self._count, self._mean, self._variance = state["count"], state["mean"], state["variance"]


def clip_ratios(num_steps: int, base: float, coefficient: float, rate: float) -> tuple[float, ...]:
    """Clip range of the ratio for each fine-tuned step, the noisiest first: from ``base`` up to ``coefficient``.

    base + (coefficient - base) (e^(rate i / (F - 1)) - 1) / (e^rate - 1) for i = 0 .. F - 1; a single step gets
    ``coefficient``, and a rate of 0 the straight line.

    Args:
        num_steps: F, at least 1.
        base: Range at the noisiest step.
        coefficient: Range at the last step.
        rate: How steeply the range grows towards the end.

    Source:
        Ren et al. 2024 (arXiv:2409.00588), appendix, denoising-dependent clipping.
    """
    shares = [1.0] if num_steps == 1 else [i / (num_steps - 1) for i in range(num_steps)]
    grown = shares if rate == 0.0 else [math.expm1(rate * share) / math.expm1(rate) for share in shares]
    return tuple(base + (coefficient - base) * share for share in grown)


def clipped_policy_loss(ratio: Tensor, advantage: Tensor, clip_ratio: Tensor | float) -> Tensor:
    """PPO's pessimistic surrogate, a scalar to minimize.

    Args:
        ratio: Probability of each action under the new policy over that under the old one, (B,).
        advantage: (B,).
        clip_ratio: Range in which the ratio counts, (B,) or one number.

    Source:
        Schulman et al. 2017 (arXiv:1707.06347), eq. 7.
    """
    low, high = 1.0 - clip_ratio, 1.0 + clip_ratio
    clipped = torch.maximum(torch.minimum(ratio, torch.as_tensor(high)), torch.as_tensor(low))
    return -torch.minimum(ratio * advantage, clipped * advantage).mean()


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float | None = None) -> Tensor:
    """Half the mean squared error of values; with ``clip``, of the worse of a value and its step cut to that length.

    Args:
        value: New values, (B,).
        old_value: Values at collection, (B,).
        target: Returns, (B,).
        clip: Largest change of a value that is not penalized, or None.
    """
    error = (value - target).square()
    if clip is not None:
        limited = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (limited - target).square())
    return 0.5 * error.mean()


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Estimate of KL(old || new) from log-ratios new minus old under the old policy, a scalar, never negative.

    Source:
        The estimator r - 1 - log r, unbiased, of low variance (Schulman, "Approximating KL divergence", 2020).
    """
    return (log_ratio.exp() - 1.0 - log_ratio).mean()

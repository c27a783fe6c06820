"""Guidance: how the score of a diffusion model is tilted so that its samples follow q(x_0) exp(-beta E(x_0)).

With ``f(x_t, t) = log E[exp(-beta E(x_0)) | x_t]``, the expectation under the behavior model's posterior of the clean
sample, the score of the tilted process is the behavior score plus the gradient of f. A trained network, the closed
form of a Gaussian mixture and the sum over a finite data set all stand behind the one protocol below.

Letters: B batch, Da dimension of x, Do dimension of the observation.

Source:
    Lu et al. 2023, contrastive energy prediction (arXiv:2304.12824), section 3; f is minus its intermediate energy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from ding_ebm.diffusion.solvers import SolverPlan


class Guidance(Protocol):
    """Anything that knows the tilting function f and its gradient."""

    def value_and_grad(
        self, x_t: Tensor, t: float | Tensor, obs: Tensor | None, inverse_temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Evaluate f and its gradient in ``x_t``, both for ``inverse_temperature`` times the energy.

        Args:
            x_t: Noised samples, (B, Da).
            t: Time, one number for all rows or (B,).
            obs: Observations, (B, Do), or None where the guidance is unconditional.
            inverse_temperature: beta in q exp(-beta E), >= 0.

        Returns:
            f up to a constant in ``x_t``, (B,), and its gradient, (B, Da).
        """
        ...

    def bind(
        self, times: Sequence[float], obs: Tensor | None, inverse_temperature: float
    ) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        """:meth:`value_and_grad` as a function of (x_t, i), i the index of the time, for one sampling run.

        A network does here, once, what depends on times and observations alone.
        """
        return lambda x_t, i: self.value_and_grad(x_t, times[i], obs, inverse_temperature)


def guide(
    plan: SolverPlan,
    predict_noise: Callable[[Tensor, int], Tensor],
    guidance: Guidance,
    *,
    inverse_temperature: float,
    guidance_scale: float = 1.0,
    obs: Tensor | None = None,
) -> Callable[[Tensor, int], Tensor]:
    """Noise prediction of the tilted process, ``eps - sigma * guidance_scale * grad f``, for ``solve``.

    Args:
        plan: The plan that :func:`~ding_ebm.diffusion.solvers.solve` will run; gives time and sigma of an evaluation.
        predict_noise: Noise prediction of the behavior model, as ``solve`` takes it.
        guidance: The tilting function.
        inverse_temperature: beta in q exp(-beta E), >= 0.
        guidance_scale: Factor of the gradient. Only 1 (and 0, the behavior) is exact: scaling the gradient is not the
            same as scaling beta.
        obs: Observations, (B, Do), or None.

    Returns:
        The guided prediction; at scale 0 ``predict_noise`` itself, so that the guidance costs nothing.
    """
    if guidance_scale == 0.0:
        return predict_noise

    value_and_grad = guidance.bind(plan.times, obs, inverse_temperature)

    def predict_guided_noise(x_t: Tensor, i: int) -> Tensor:
        _, grad = value_and_grad(x_t, i)
        return predict_noise(x_t, i) - (plan.sigma[i] * guidance_scale) * grad

    return predict_guided_noise

"""Noise schedules: how much signal and how much noise x_t = alpha(t) x_0 + sigma(t) eps holds at time t.

Time ``t`` lies in [0, 1], 1 is pure noise. Every function takes a tensor of any shape and dtype and returns the same
shape and dtype, elementwise; take float64 where tables are made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VPLinearSchedule:
    """Variance-preserving diffusion whose noise rate grows linearly, ``rate(t) = rate_min + (rate_max - rate_min) t``.

    Args:
        rate_min: Noise rate at t = 0 (beta_0 of the papers), per unit time, > 0.
        rate_max: Noise rate at t = 1 (beta_1), per unit time, > rate_min.
        t_min: Smallest time that training and sampling use; sigma is zero at 0, where the score is singular.

    Raises:
        ValueError: If the rates or ``t_min`` are out of range.

    Source:
        Song et al. 2021 (arXiv:2011.13456), the VP SDE; Lu et al. 2022 (arXiv:2206.00927) for the inverse.
    """

    rate_min: float = 0.1
    rate_max: float = 20.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        if not 0.0 < self.rate_min < self.rate_max:
            raise ValueError(f"rates must satisfy 0 < rate_min < rate_max, got {self.rate_min} and {self.rate_max}")
        if not 0.0 < self.t_min < 1.0:
            raise ValueError(f"t_min must be in (0, 1), got {self.t_min}")

    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the signal coefficient, -1/2 of the integral of the noise rate from 0 to ``t``."""
        return -0.25 * (self.rate_max - self.rate_min) * t * t - 0.5 * self.rate_min * t

    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient alpha(t), in (0, 1]."""
        return torch.exp(self.log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Noise standard deviation sigma(t) = sqrt(1 - alpha(t)^2), without cancellation at small ``t``."""
        return torch.sqrt(-torch.expm1(2.0 * self.log_alpha(t)))

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha / sigma), half of the log signal-to-noise ratio: lambda(t) of the DPM-Solver papers, decreasing."""
        log_alpha = self.log_alpha(t)
        return log_alpha - 0.5 * torch.log(-torch.expm1(2.0 * log_alpha))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Inverse of :meth:`log_snr`."""
        # log alpha = -softplus(-2 lambda) / 2 solves a quadratic in t; this form of its root does not cancel.
        integral = torch.nn.functional.softplus(-2.0 * log_snr)
        slope = self.rate_max - self.rate_min
        return 2.0 * integral / (self.rate_min + torch.sqrt(self.rate_min**2 + 2.0 * slope * integral))

    def rate(self, t: Tensor) -> Tensor:
        """Noise rate beta(t) = -2 d log alpha / dt, per unit time."""
        return self.rate_min + (self.rate_max - self.rate_min) * t

    def diffuse(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) noise.

        Args:
            x_0: Clean samples, (..., D).
            t: Times, of the leading shape of ``x_0`` or broadcastable to it.
            noise: Standard normal, (..., D).
        """
        return self.alpha(t).unsqueeze(-1) * x_0 + self.sigma(t).unsqueeze(-1) * noise

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """log(alpha / sigma) at t = 1 and at ``t_min``."""
        ends = self.log_snr(torch.tensor([1.0, self.t_min], dtype=torch.float64))
        low, high = ends.tolist()
        assert math.isfinite(low) and math.isfinite(high)
        return low, high


class CosineSchedule:
    """The cosine schedule in K steps, k = 0 the clean sample and k = K almost pure noise.

    q(x_k | x_0) = N(sqrt(alpha_bar_k) x_0, (1 - alpha_bar_k) I), where alpha_bar is the product of 1 - beta_k over the
    steps and beta_k = min(1 - g(k) / g(k - 1), 0.999) with g(k) = cos^2(((k / K + s) / (1 + s)) pi / 2).

    Args:
        num_steps: K.
        offset: s, which keeps the noise of the first step from vanishing.

    Attributes:
        beta: Variance that step k adds, (K + 1,), float64; entry 0 is 0.
        alpha_bar: Share of the signal's variance left at k, (K + 1,), float64; entry 0 is 1.

    Source:
        Nichol and Dhariwal 2021 (arXiv:2102.09672), eq. 17.
    """

    def __init__(self, num_steps: int, offset: float = 0.008) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        self.num_steps = num_steps
        fraction = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        signal = torch.cos((fraction + offset) / (1.0 + offset) * (math.pi / 2.0)).square()
        self.beta = torch.zeros(num_steps + 1, dtype=torch.float64)
        self.beta[1:] = (1.0 - signal[1:] / signal[:-1]).clamp(0.0, 0.999)
        self.alpha_bar = (1.0 - self.beta).cumprod(0)
        self._signal, self._spread = self.alpha_bar.sqrt(), (1.0 - self.alpha_bar).sqrt()

    def diffuse(self, x_0: Tensor, k: Tensor, noise: Tensor) -> Tensor:
        """x_k, (B, ...).

        Args:
            x_0: Clean samples, (B, ...).
            k: Steps, (B,), int64, from 0 to K.
            noise: Standard normal, (B, ...).
        """
        signal, spread = (
            table.to(x_0).index_select(0, k).view(-1, *(1,) * (x_0.ndim - 1)) for table in (self._signal, self._spread)
        )
        return signal * x_0 + spread * noise

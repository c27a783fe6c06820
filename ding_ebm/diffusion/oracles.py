"""Distributions whose diffused densities, scores and guidance are known exactly: the truth that tests measure against.

A Gaussian mixture stays one when it is diffused and when it is tilted by exp(-beta E) with a quadratic energy (or one
energy a component), so all of guided diffusion has a closed form; a finite data set is a mixture of points, exact for
any energy. Oracles compute in float64 whatever they are given, and answer in the dtype of ``x``.

Guidance is a difference of log-densities: with p_0 = q_0 exp(-beta E) / Z and the same noising kernel,
p_t(x) = q_t(x) E_q[exp(-beta E(x_0)) | x_t = x] / Z, hence f = log p_t - log q_t + log Z.

Letters: B batch, D dimension, J components, n points.

Source:
    Lu et al. 2023 (arXiv:2304.12824), section 3, for the identity; the closed forms are Gaussian algebra, checked in
    the tests against quadrature and against the posterior of x_0 written out independently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ding_ebm.diffusion.guidance import Guidance
from ding_ebm.diffusion.schedules import VPLinearSchedule

_TABLE_ENTRIES = 200_000  # of one (rows, points) table of EmpiricalGuidance; larger ones leave the cache


@dataclass(frozen=True)
class GaussianMixture:
    """Mixture of J Gaussians in D dimensions; its tensors are kept in float64.

    Args:
        log_weights: Logarithms of the weights, (J,); the weights must sum to one.
        means: (J, D).
        covariances: Symmetric positive definite, (J, D, D).

    Raises:
        ValueError: If an argument is not as said above.
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        _to_float64(self, "log_weights", "means", "covariances")
        if self.means.ndim != 2 or min(self.means.shape) < 1:
            raise ValueError(f"means must be (J, D) with J, D >= 1, got {tuple(self.means.shape)}")
        count, dim = self.means.shape
        _check_shape("log_weights", self.log_weights, (count,))
        _check_shape("covariances", self.covariances, (count, dim, dim))
        total = float(self.log_weights.exp().sum())
        if not abs(total - 1.0) < 1e-6:
            raise ValueError(f"the weights must sum to one, got {total:.6g}")
        variances, _, _ = self._spectrum
        asymmetry = (self.covariances - self.covariances.mT).abs().amax((1, 2))
        bad = (variances[:, 0] <= 0.0) | (asymmetry > 1e-8 * variances[:, -1])
        if bool(bad.any()):
            j = int(bad.nonzero()[0])
            raise ValueError(
                f"covariance of component {j} must be symmetric positive definite: smallest eigenvalue "
                f"{float(variances[j, 0]):.3g}, asymmetry {float(asymmetry[j]):.3g}"
            )

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """Variances along the principal axes, ascending, (J, D); axes in columns, (J, D, D); means along them."""
        # Diffusing keeps the axes: one decomposition serves all times, even one time a row.
        variances, axes = torch.linalg.eigh(self.covariances)
        return variances, axes, torch.einsum("jd,jdk->jk", self.means, axes)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` independent draws, (n, D), float64."""
        component = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], dtype=torch.float64, device=self.means.device, generator=generator)
        return self.means[component] + torch.einsum("nij,nj->ni", _square_roots(self)[component], noise)

    def diffused(self, schedule: VPLinearSchedule, t: float) -> GaussianMixture:
        """The law of x_t when x_0 has this one: means alpha m, covariances alpha^2 S + sigma^2 I."""
        alpha, sigma = _signal_and_noise(schedule, t, self.means)
        identity = torch.eye(self.means.shape[1], dtype=torch.float64, device=self.means.device)
        return GaussianMixture(self.log_weights, alpha * self.means, alpha**2 * self.covariances + sigma**2 * identity)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats at ``x`` (B, D), (B,)."""
        return _log_prob_and_score(self, x)[0].to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        """Gradient of the log-density at ``x`` (B, D), (B, D)."""
        return _log_prob_and_score(self, x)[1].to(x.dtype)

    def noise(self, schedule: VPLinearSchedule, x_t: Tensor, t: float | Tensor) -> Tensor:
        """What a perfect network predicts at ``x_t`` (B, D) and ``t`` () or (B,): -sigma * score of x_t, (B, D)."""
        alpha, sigma = _signal_and_noise(schedule, t, self.means)
        return (-sigma.unsqueeze(-1) * _log_prob_and_score(self, x_t, (alpha, sigma))[1]).to(x_t.dtype)


def tilt_quadratic(
    mixture: GaussianMixture, A: Tensor, b: Tensor, c: float, beta: float
) -> tuple[GaussianMixture, Tensor]:
    """The mixture times exp(-beta E) with E(x) = x'Ax/2 + b'x + c, normalized.

    With S = R R' and g = A m + b (the energy's gradient at the mean), one component becomes

        S' = R (I + beta R'AR)^-1 R',   m' = m - beta S' g,
        log w' = log w - beta E(m) + beta^2 g'S'g / 2 - log|I + beta R'AR| / 2,

    which never inverts S, so it holds for nearly singular covariances.

    Args:
        mixture: q_0.
        A: Symmetric, (D, D); zero for a linear energy.
        b: (D,).
        c: Constant.
        beta: Inverse temperature.

    Returns:
        The tilted mixture and log Z, the logarithm of E_q[exp(-beta E)], ().

    Raises:
        ValueError: If A is not symmetric, or S^-1 + beta A of a component is not positive definite, so that the
            tilted density has no finite integral.
    """
    dim = mixture.means.shape[1]
    _check_shape("A", A, (dim, dim))
    _check_shape("b", b, (dim,))
    A, b = A.to(mixture.means), b.to(mixture.means)
    if bool((A - A.mT).abs().max() > 1e-10 * A.abs().max()):
        raise ValueError("A must be symmetric")
    roots = _square_roots(mixture)
    identity = torch.eye(dim, dtype=torch.float64, device=A.device)
    cholesky, failed = torch.linalg.cholesky_ex(identity + beta * roots.mT @ A @ roots)
    if bool(failed.any()):
        raise ValueError(
            f"S^-1 + beta A must be positive definite, it is not for component {int(failed.nonzero()[0])} at "
            f"beta = {beta:g}: the energy falls faster than the density, so q exp(-beta E) cannot be normalized"
        )
    half = torch.linalg.solve_triangular(cholesky, roots.mT, upper=False)  # S' = half' half
    grad = mixture.means @ A + b
    pull = torch.einsum("jkd,jd->jk", half, grad)
    energy = 0.5 * ((grad + b) * mixture.means).sum(1) + c
    log_det = 2.0 * cholesky.diagonal(dim1=1, dim2=2).log().sum(1)
    log_weights = mixture.log_weights - beta * energy + 0.5 * beta**2 * pull.square().sum(1) - 0.5 * log_det
    means = mixture.means - beta * torch.einsum("jkd,jk->jd", half, pull)
    return _normalized(log_weights, means, half.mT @ half)


def tilt_components(mixture: GaussianMixture, energies: Tensor, beta: float) -> tuple[GaussianMixture, Tensor]:
    """As :func:`tilt_quadratic` where component j has the energy ``energies[j]``, (J,): weights w exp(-beta energy)."""
    _check_shape("energies", energies, tuple(mixture.log_weights.shape))
    log_weights = mixture.log_weights - beta * energies.to(mixture.means)
    return _normalized(log_weights, mixture.means, mixture.covariances)


@dataclass(frozen=True)
class MixtureGuidance(Guidance):
    """Exact guidance from a mixture q_0 to its tilted version; observations are ignored.

    Args:
        schedule: The noise schedule.
        behavior: q_0.
        tilt: Maps (behavior, beta=...) to the tilted mixture and log Z, such as
            ``partial(tilt_quadratic, A=A, b=b, c=0.0)``.
    """

    schedule: VPLinearSchedule
    behavior: GaussianMixture
    tilt: Callable[..., tuple[GaussianMixture, Tensor]]

    def value_and_grad(
        self, x_t: Tensor, t: float | Tensor, obs: Tensor | None, inverse_temperature: float
    ) -> tuple[Tensor, Tensor]:
        """f(x_t, t) = log E[exp(-beta E(x_0)) | x_t] with its constant, (B,), and its gradient, (B, D)."""
        target, log_z = self.tilt(self.behavior, beta=inverse_temperature)
        at_t = _signal_and_noise(self.schedule, t, self.behavior.means)
        log_q, score_q = _log_prob_and_score(self.behavior, x_t, at_t)
        log_p, score_p = _log_prob_and_score(target, x_t, at_t)
        return (log_p - log_q + log_z).to(x_t.dtype), (score_p - score_q).to(x_t.dtype)


@dataclass(frozen=True)
class EmpiricalGuidance(Guidance):
    """Exact guidance when q_0 is uniform over finitely many points, for any energy; observations are ignored.

    Args:
        schedule: The noise schedule.
        points: (n, D), kept in float64.
        energies: Energy of each point, (n,).

    Raises:
        ValueError: If shapes disagree or a number is not finite.
    """

    schedule: VPLinearSchedule
    points: Tensor
    energies: Tensor

    def __post_init__(self) -> None:
        _to_float64(self, "points", "energies")
        if self.points.ndim != 2 or min(self.points.shape) < 1:
            raise ValueError(f"points must be (n, D) with n, D >= 1, got {tuple(self.points.shape)}")
        _check_shape("energies", self.energies, tuple(self.points.shape[:1]))

    def value_and_grad(
        self, x_t: Tensor, t: float | Tensor, obs: Tensor | None, inverse_temperature: float
    ) -> tuple[Tensor, Tensor]:
        """f(x_t, t) = log E[exp(-beta E(x_0)) | x_t] with its constant, (B,), and its gradient, (B, D)."""
        value, grad = torch.empty_like(x_t[:, 0]), torch.empty_like(x_t)
        for rows, alpha, sigma, logits in self._posterior(x_t, t):
            log_q, mean_q = _log_sum_and_mean(logits, self._centered)
            log_p, mean_p = _log_sum_and_mean(logits - inverse_temperature * self.energies, self._centered)
            value[rows] = (log_p - log_q).to(x_t.dtype)
            grad[rows] = (alpha / sigma.square() * (mean_p - mean_q)).to(x_t.dtype)
        return value, grad

    def noise(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """What a perfect network predicts at ``x_t`` (B, D) and ``t`` () or (B,), (B, D)."""
        noise = torch.empty_like(x_t)
        for rows, alpha, sigma, logits in self._posterior(x_t, t):
            mean = _log_sum_and_mean(logits, self.points)[1]
            noise[rows] = ((x_t[rows] - alpha * mean) / sigma).to(x_t.dtype)
        return noise

    @cached_property
    def _centered(self) -> Tensor:
        return self.points - self.points.mean(0)

    def _posterior(self, x_t: Tensor, t: float | Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Blocks of rows: their slice, alpha and sigma (rows, 1), and log q(point | x_t) + const a row, (rows, n)."""
        _check_shape("x_t", x_t, (len(x_t), self.points.shape[1]))
        alphas, sigmas = (v.expand(len(x_t)).unsqueeze(1) for v in _signal_and_noise(self.schedule, t, self.points))
        # -|x - alpha p|^2 / (2 sigma^2) without its |x|^2, about the center of the points so that little cancels.
        center, squares = self.points.mean(0), 0.5 * self._centered.square().sum(1)
        block = max(1, _TABLE_ENTRIES // len(self.points))
        for start in range(0, len(x_t), block):
            rows = slice(start, start + block)
            alpha, sigma = alphas[rows], sigmas[rows]
            offset = x_t[rows].to(torch.float64) - alpha * center
            yield rows, alpha, sigma, alpha / sigma.square() * (offset @ self._centered.mT - alpha * squares)


def _log_prob_and_score(
    mixture: GaussianMixture, x: Tensor, signal_and_noise: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Log-density (B,) and score (B, D) at ``x`` (B, D), float64: of x_0 or, given (alpha, sigma), of x_t."""
    _check_shape("x", x, (len(x), mixture.means.shape[1]))
    spread, axes, centers = mixture._spectrum
    if signal_and_noise is not None:
        alpha, sigma = (values.reshape(-1, 1, 1) for values in signal_and_noise)
        spread, centers = alpha**2 * spread + sigma**2, alpha * centers
    offset = torch.einsum("bd,jdk->bjk", x.to(torch.float64), axes) - centers
    joint = mixture.log_weights - 0.5 * (offset.square() / spread + torch.log(2.0 * math.pi * spread)).sum(-1)
    responsibility = torch.softmax(joint, 1).unsqueeze(-1)
    score = -torch.einsum("bjk,jdk->bd", responsibility * offset / spread, axes)
    return torch.logsumexp(joint, 1), score


def _log_sum_and_mean(logits: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the summed exp(logits) (B, n), (B,), and the mean of the points under those weights, (B, D)."""
    top = logits.amax(1, keepdim=True)
    weights = torch.exp(logits - top)
    total = weights.sum(1, keepdim=True)
    return (top + total.log()).squeeze(1), weights @ points / total


def _square_roots(mixture: GaussianMixture) -> Tensor:
    """R with S = R R' for every component, (J, D, D)."""
    variances, axes, _ = mixture._spectrum
    return axes * variances.sqrt().unsqueeze(1)


def _normalized(log_weights: Tensor, means: Tensor, covariances: Tensor) -> tuple[GaussianMixture, Tensor]:
    log_z = torch.logsumexp(log_weights, 0)
    return GaussianMixture(log_weights - log_z, means, covariances), log_z


def _signal_and_noise(schedule: VPLinearSchedule, t: float | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha(t) and sigma(t) in float64 on the device of ``like``, () or (B,)."""
    times = torch.as_tensor(t, dtype=torch.float64, device=like.device)
    return schedule.alpha(times), schedule.sigma(times)


def _to_float64(oracle: GaussianMixture | EmpiricalGuidance, *names: str) -> None:
    for name in names:
        tensor = getattr(oracle, name).to(torch.float64)
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite")
        object.__setattr__(oracle, name, tensor)


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")

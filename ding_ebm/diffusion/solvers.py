"""Solvers of the diffusion ODE: DDIM and DPM-Solver++ (singlestep and multistep, order 1 to 3), as one linear loop.

Every one of them is the same recursion once its coefficients are known. With ``d_i`` the clean sample predicted at
node i, the state after evaluation i is

    x_{i+1} = keep_i x_{base_i} + sum_j mix_ij d_j,

so a method is a table of numbers (:class:`SolverPlan`), made once in float64 by :func:`make_plan`, and
:func:`solve` runs it. NFE, the number of evaluations of the network, is what a sample costs and what a config states.

Letters: S = NFE, B batch, D dimension of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ding_ebm.diffusion.schedules import VPLinearSchedule

METHODS = ("ddim", "singlestep", "multistep")
SPACINGS = ("time", "log_snr", "quadratic")


@dataclass(frozen=True)
class SolverPlan:
    """The numbers of one sampling run; all tuples have S entries.

    Attributes:
        times: Time of each evaluation, in (0, 1], not increasing.
        alpha: Signal coefficient at each evaluation.
        sigma: Noise standard deviation at each evaluation.
        base: Index of the state that evaluation i starts from; state 0 is the noise.
        keep: Factor of that state.
        mix: For each evaluation the pairs (j, weight of the clean sample predicted at evaluation j).
    """

    times: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    base: tuple[int, ...]
    keep: tuple[float, ...]
    mix: tuple[tuple[tuple[int, float], ...], ...]

    @property
    def nfe(self) -> int:
        """Number of function evaluations S."""
        return len(self.times)


def time_grid(schedule: VPLinearSchedule, num_steps: int, spacing: str) -> Tensor:
    """Times from 1 down to ``schedule.t_min``, (num_steps + 1,), float64.

    Args:
        schedule: The noise schedule.
        num_steps: Number of intervals, >= 1.
        spacing: ``time`` (uniform in t), ``log_snr`` (uniform in log(alpha/sigma)) or ``quadratic`` (in sqrt t).
    """
    if spacing == "time":
        return torch.linspace(1.0, schedule.t_min, num_steps + 1, dtype=torch.float64)
    if spacing == "quadratic":
        return torch.linspace(1.0, math.sqrt(schedule.t_min), num_steps + 1, dtype=torch.float64).square()
    if spacing == "log_snr":
        low, high = schedule.log_snr_range
        grid = schedule.time_of_log_snr(torch.linspace(low, high, num_steps + 1, dtype=torch.float64))
        grid[0], grid[-1] = 1.0, schedule.t_min
        return grid
    raise ValueError(f"spacing must be one of {SPACINGS}, got {spacing!r}")


def make_plan(
    schedule: VPLinearSchedule, nfe: int, *, method: str = "singlestep", order: int = 3, spacing: str = "quadratic"
) -> SolverPlan:
    """Coefficients of a solver that spends exactly ``nfe`` evaluations.

    Args:
        schedule: The noise schedule.
        nfe: Number of network evaluations, >= 1.
        method: ``ddim`` (first order), ``singlestep`` or ``multistep`` DPM-Solver++.
        order: 1, 2 or 3. The singlestep solver spends ``order`` evaluations a step and ends with a step of lower order
            where ``nfe`` is no multiple of it; the multistep solver begins with lower orders.
        spacing: See :func:`time_grid`.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Lu et al. 2022 (arXiv:2211.01095), algorithms 1 and 2 and appendix B; DDIM is its first order (section 4.1).
    """
    if nfe < 1:
        raise ValueError(f"nfe must be at least 1, got {nfe}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order!r}")
    if method == "multistep":
        return _multistep_plan(schedule, time_grid(schedule, nfe, spacing), order)
    return _singlestep_plan(schedule, nfe, 1 if method == "ddim" else order, spacing)


def solve(
    plan: SolverPlan,
    predict_noise: Callable[[Tensor, int], Tensor],
    x: Tensor,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """Carry noise to samples by the solver's recursion.

    Args:
        plan: From :func:`make_plan`.
        predict_noise: Maps (x_t, i) with x_t of shape (..., D) and i the index of the evaluation (its time is
            ``plan.times[i]``) to the predicted noise, (..., D).
        x: Standard normal noise, (..., D); the state keeps its dtype whatever dtype the network computes in.
        clip: Range to which the predicted clean sample is clipped at every step, or None.

    Returns:
        Samples at ``schedule.t_min``, (..., D).
    """
    states = {0: x}
    clean: dict[int, Tensor] = {}
    for i in range(plan.nfe):
        noise = predict_noise(x, i).to(x.dtype)
        clean_i = torch.add(x, noise, alpha=-plan.sigma[i]).mul_(1.0 / plan.alpha[i])
        clean[i] = clean_i if clip is None else clean_i.clamp_(*clip)
        x = states[plan.base[i]] * plan.keep[i]
        for j, weight in plan.mix[i]:
            x = x.add_(clean[j], alpha=weight)
        states[i + 1] = x
    return x


def _grid_numbers(
    schedule: VPLinearSchedule, grid: Tensor
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Times, alpha, sigma and log-SNR of every node of a grid."""
    numbers = (grid, schedule.alpha(grid), schedule.sigma(grid), schedule.log_snr(grid))
    times, alpha, sigma, log_snr = (values.tolist() for values in numbers)
    return times, alpha, sigma, log_snr


def _multistep_plan(schedule: VPLinearSchedule, grid: Tensor, order: int) -> SolverPlan:
    times, alpha, sigma, log_snr = _grid_numbers(schedule, grid)
    steps = len(times) - 1
    mix = []
    for i in range(steps):
        h = log_snr[i + 1] - log_snr[i]
        past = [log_snr[i] - log_snr[j] for j in range(i - 1, max(i - order, -1), -1)]
        weights = _data_weights(h, [-distance / h for distance in past], exact=order == 3)
        mix.append(tuple((i - j, alpha[i + 1] * weight) for j, weight in enumerate(weights)))
    keep = tuple(sigma[i + 1] / sigma[i] for i in range(steps))
    return SolverPlan(tuple(times[:-1]), tuple(alpha[:-1]), tuple(sigma[:-1]), tuple(range(steps)), keep, tuple(mix))


def _singlestep_plan(schedule: VPLinearSchedule, nfe: int, order: int, spacing: str) -> SolverPlan:
    times, alpha, sigma, log_snr = _grid_numbers(schedule, time_grid(schedule, nfe, spacing))
    base: list[int] = []
    mix: list[tuple[tuple[int, float], ...]] = []
    start = 0
    for step_order in _singlestep_orders(nfe, order):
        for inner in range(1, step_order + 1):
            h = log_snr[start + inner] - log_snr[start]
            # Only the first node and the latest inner node enter: the tableau of the published methods.
            latest = [] if inner == 1 else [(log_snr[start + inner - 1] - log_snr[start]) / h]
            weights = _data_weights(h, latest, exact=step_order == 3)
            nodes = [start, start + inner - 1][: len(weights)]
            base.append(start)
            mix.append(tuple((j, alpha[start + inner] * weight) for j, weight in zip(nodes, weights)))
        start += step_order
    keep = tuple(sigma[i + 1] / sigma[base[i]] for i in range(nfe))
    return SolverPlan(tuple(times[:-1]), tuple(alpha[:-1]), tuple(sigma[:-1]), tuple(base), keep, tuple(mix))


def _singlestep_orders(nfe: int, order: int) -> list[int]:
    """Orders of the steps of a singlestep run that spends ``nfe`` evaluations, lower ones last."""
    full, rest = divmod(nfe, order)
    if order == 3 and rest == 0:
        return [3] * (full - 1) + [2, 1]
    return [order] * full + ([rest] if rest else [])


def _data_weights(h: float, offsets: Sequence[float], exact: bool) -> list[float]:
    """Weights of the predicted clean samples in one step of log-SNR length ``h``, divided by alpha at its end.

    The clean sample is taken as a polynomial in log-SNR through its value at the step's start and at ``offsets``
    (in units of h; negative in the past, in (0, 1) inside the step) and integrated against the exponential kernel.

    Args:
        h: Step in log(alpha / sigma), > 0.
        offsets: Up to two further nodes.
        exact: Integrate the linear term exactly (third-order methods); else use (1 - e^-h) / 2, the published
            second-order form. Both are second-order accurate.
    """
    constant = -math.expm1(-h)  # integral of e^(s - h) over the step
    if not offsets:
        return [constant]
    linear = (h - constant) / h if exact else 0.5 * constant  # the same with s / h
    if len(offsets) == 1:
        slope = linear / offsets[0]
        return [constant - slope, slope]
    half_quadratic = (0.5 * h - (h - constant) / h) / h  # the same with (s / h)^2 / 2
    near, far = offsets
    near_weight = (linear * -far + 2.0 * half_quadratic) / (near * (near - far))
    far_weight = (linear * -near + 2.0 * half_quadratic) / (far * (far - near))
    return [constant - near_weight - far_weight, near_weight, far_weight]

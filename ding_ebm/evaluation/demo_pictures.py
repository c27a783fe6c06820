"""What the demo's pictures show, computed: ways and their outcomes, values and energies, exact guidance in the plane.

Letters: n episodes, P points, W cells of a grid, Do and Da dimensions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ding_ebm.data.formats import Transitions
from ding_ebm.data.toys import sample_tilted_toy, sample_toy
from ding_ebm.diffusion.guidance import guide
from ding_ebm.diffusion.oracles import EmpiricalGuidance
from ding_ebm.diffusion.schedules import VPLinearSchedule
from ding_ebm.diffusion.solvers import make_plan, solve
from ding_ebm.envs.avoid import FIELD_X, MAX_DISPLACEMENT
from ding_ebm.envs.avoid_modes import SUCCESS_REWARD
from ding_ebm.evaluation.distances import sliced_wasserstein, two_draw_floor
from ding_ebm.evaluation.logs import read_scalars
from ding_ebm.evaluation.plots import Cloud, Curve, Decision, ValueMap, Ways
from ding_ebm.evaluation.rollout import Episodes
from ding_ebm.model.critics import aggregate
from ding_ebm.model.energy import log_mean_exp
from ding_ebm.policy.base import BasePolicy

# States in front of each row of cylinders, where the demonstrations part.
DECISIONS = {"A": (0.525, -0.24), "B": (0.565, -0.01), "C": (0.5, 0.16)}
ENERGY_TIMES = (0.05, 0.5)
TOYS = ("8gaussians", "2spirals")
BETAS = (0.0, 3.0, 10.0)
_CELL = 0.01  # of the map, meters
_DRAWS = 16  # actions a state of the map
_FLOORS = 5  # pairs of draws of the truth


def data_ways(data: Transitions) -> Ways:
    """The demonstrations as they were recorded."""
    ends = data.episode_ends
    starts = np.concatenate([[0], ends[:-1] + 1])
    paths = [np.concatenate([data.obs[a : b + 1, 2:], data.next_obs[b : b + 1, 2:]]) for a, b in zip(starts, ends)]
    returns = data.episode_returns()
    return Ways(f"demonstrations\nreturn {returns.mean():.2f}", paths, returns)


def policy_ways(name: str, episodes: Episodes) -> Ways:
    """Episodes of a policy, whose observations were kept."""
    return Ways(name, [path[:, 2:] for path in episodes.trajectories or []], episodes.returns, episodes.success)


def data_outcomes(data: Transitions) -> Ways:
    """The demonstrations of a task with a rewarded gate; a success is one of which a step has paid all that it can."""
    ends = data.episode_ends
    starts = np.concatenate([[0], ends[:-1] + 1])
    success = np.array([(data.reward[a : b + 1] >= SUCCESS_REWARD).any() for a, b in zip(starts, ends)])
    return replace(data_ways(data), title=f"demonstrations\nsuccess {success.mean():.2f}", success=success)


def learning_curve(run: Path) -> dict[str, Curve]:
    """Shares of successes that a run of fine-tuning has logged: in its evaluations, and while collecting."""
    return dict(
        evaluated=Curve("evaluation", *read_scalars(run, "evaluator_step/success_mean")),
        collected=Curve("collecting, with exploration", *read_scalars(run, "collector_step/success_rate")),
    )


@torch.no_grad()
def value_map(policy: BasePolicy, data: Transitions) -> ValueMap:
    """V(s) = log E_mu[exp(alpha Q)] / alpha over actions of the behavior policy, where the demonstrations have been."""
    low_y, high_y = float(data.obs[:, 3].min()), float(data.obs[:, 3].max())
    x_edges = np.arange(FIELD_X[0], FIELD_X[1] + _CELL / 2.0, _CELL)
    y_edges = np.arange(low_y, high_y + _CELL, _CELL)
    visits, _, _ = np.histogram2d(data.obs[:, 3], data.obs[:, 2], (y_edges, x_edges))
    x, y = 0.5 * (x_edges[1:] + x_edges[:-1]), 0.5 * (y_edges[1:] + y_edges[:-1])
    model, alpha = _parts(policy)
    position = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    obs = _states(policy, position)
    policy.eval_mode.reset()
    raw = np.tile(position, 2).astype(np.float32)
    drawn = np.stack([policy.act(raw, guidance_scale=0.0) for _ in range(_DRAWS)], axis=1)
    critic = policy.eval_mode.get_attribute("cfg").model.qgpo_critic
    q = model.target_critic(obs, model.action_normalizer(torch.from_numpy(drawn)))
    value = log_mean_exp(alpha * aggregate(q, critic.aggregation, critic.lcb_coefficient)) / alpha
    return ValueMap(x, y, np.where(visits > 0, value.view(len(y), len(x)).numpy(), np.nan))


@torch.no_grad()
def decision(policy: BasePolicy, name: str, scale: float, cells: int = 61, draws: int = 150) -> Decision:
    """Q and the learned energy over the actions in a state, and actions drawn there.

    Args:
        policy: A trained policy.
        name: Of the state.
        scale: Guidance scale of the guided actions.
        cells: W.
        draws: P, of the behavior policy and of the guided policy each.
    """
    model, alpha = _parts(policy)
    critic = policy.eval_mode.get_attribute("cfg").model.qgpo_critic
    axis = np.linspace(-MAX_DISPLACEMENT, MAX_DISPLACEMENT, cells)
    plane = torch.from_numpy(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)).float()
    actions = model.action_normalizer(plane)
    position = np.array([DECISIONS[name]])
    obs = _states(policy, position).expand(len(actions), -1)
    q = aggregate(model.target_critic(obs, actions), critic.aggregation, critic.lcb_coefficient)
    energies = {t: -model.guidance.value_and_grad(actions, t, obs, alpha)[0] / alpha for t in ENERGY_TIMES}
    policy.eval_mode.reset()
    raw = np.tile(position, (draws, 2)).astype(np.float32)
    behavior, guided = (policy.act(raw, guidance_scale=s) for s in (0.0, scale))
    grids = {t: energy.view(cells, cells).numpy() for t, energy in energies.items()}
    return Decision(name, DECISIONS[name], axis, q.view(cells, cells).numpy(), grids, behavior, guided)


def exact_clouds(num_points: int) -> list[list[Cloud]]:
    """For each toy set and inverse temperature the tilted law beside samples guided by the finite-data oracle.

    Both networks are replaced by what perfect ones would predict for a data set of 3 P points, so that what is left is
    the solver and the data set's size. The title has the mean distance to fresh draws of the truth, and the floor: the
    mean distance between two of them.
    """
    rows = []
    for name in TOYS:
        generator = torch.Generator().manual_seed(0)
        oracle = EmpiricalGuidance(VPLinearSchedule(), *sample_toy(name, 3 * num_points, generator))
        row = []
        for beta in BETAS:
            draws = sample_tilted_toy(name, beta, (1 + 2 * _FLOORS) * num_points, generator).split(num_points)
            target, samples = draws[0], _guided_samples(oracle, beta, num_points, generator)
            distance = float(np.mean([sliced_wasserstein(samples, draw) for draw in draws]))
            rest = iter(draws[1:])
            floor = two_draw_floor(lambda n, rest=rest: next(rest), sliced_wasserstein, num_points, _FLOORS).mean()
            title = f"guided, β = {beta:g}\nSWD {distance:.3f} (floor {float(floor):.3f})"
            row += [Cloud(f"target, β = {beta:g}\n{name}", target.numpy()), Cloud(title, samples.numpy())]
        rows.append(row)
    return rows


def _guided_samples(oracle: EmpiricalGuidance, beta: float, n: int, generator: torch.Generator) -> Tensor:
    plan = make_plan(oracle.schedule, 20)
    predict = guide(
        plan,
        lambda x, i: oracle.noise(x, plan.times[i]),
        oracle,
        inverse_temperature=beta,
        guidance_scale=float(beta > 0.0),
    )
    return solve(plan, predict, torch.randn(n, 2, generator=generator, dtype=torch.float64))


def _parts(policy: BasePolicy) -> tuple[Any, float]:
    """Model and alpha of a policy whose guidance is an energy network."""
    cfg = policy.eval_mode.get_attribute("cfg")
    return policy.eval_mode.get_attribute("model").cpu(), float(cfg.model.qgpo_critic.alpha)


def _states(policy: BasePolicy, positions: NDArray[np.floating]) -> Tensor:
    """Normalized observations of a point at rest at positions (P, 2)."""
    raw = torch.from_numpy(np.tile(positions, (1, 2))).float()
    return policy.eval_mode.get_attribute("model").obs_normalizer(raw)

"""Shaping against value iteration and Q-learning on gridworlds, with every mistake that breaks it planted once."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ding_ebm.energy.shaping import PotentialShaping, rollout_potentials, shaped_rewards

SIDE, GAMMA = 6, 0.95
S = SIDE * SIDE
Array = NDArray[np.float64]


def shape(reward: Array, phi: Array, next_phi: Array, terminated: Array, gamma: float, scale: float, **more) -> Array:
    """:func:`shaped_rewards` on arrays that broadcast."""
    arrays = np.broadcast_arrays(reward, phi, next_phi, terminated, *more.values())
    columns = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    options = dict(zip(more, columns[4:]))
    return shaped_rewards(*columns[:4], gamma, scale, **options).numpy()


class Grid:
    """A 6 x 6 world: slips with probability 0.1, rewards of its cells, and ends, a good and two bad ones."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        cells = np.arange(S).reshape(SIDE, SIDE)
        padded = np.pad(cells, 1, mode="edge")
        moves = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
        target = np.stack([move.ravel() for move in moves], 1)  # (S, 4)
        straight = np.zeros((S, 4, S))
        np.put_along_axis(straight, target[..., None], 1.0, -1)
        self.P = 0.9 * straight + 0.1 * straight.mean(1, keepdims=True)
        self.start, *ends = rng.permutation(S)[:4].tolist()
        self.ends = np.isin(np.arange(S), ends)
        arriving = 0.2 * rng.normal(size=S)
        arriving[ends] = 2.0, -1.0, -1.0
        self.R = np.broadcast_to(arriving, (S, 4, S)) + 0.05 * rng.normal(size=(S, 4, 1))
        self.phi = rng.normal(size=S)
        self.rng = rng


def values(P: Array, R: Array, ends: NDArray[np.bool_], gamma: float | Array = GAMMA) -> Array:
    """Optimal Q (S, C) by value iteration; P and R are (S, C, S), gamma a number or one an action."""
    reward = (P * R).sum(-1)
    onward = (P * ~ends) * np.broadcast_to(gamma, P.shape[1])[:, None]
    Q = np.zeros(reward.shape)
    for _ in range(5000):
        new = reward + onward @ Q.max(1)
        done = np.abs(new - Q).max() < 1e-14 * max(1.0, np.abs(new).max())
        Q = new
        if done:
            break
    return Q


def share_optimal(Q: Array, shaped: Array, ends: NDArray[np.bool_]) -> float:
    """Share of the states whose greedy action under ``shaped`` is optimal under ``Q``."""
    chosen = np.take_along_axis(Q, shaped.argmax(1)[:, None], 1)[:, 0]
    return float((chosen >= Q.max(1) - 1e-9)[~ends].mean())


GRIDS = range(10)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0, 1000.0])
def test_optimal_actions_stay_and_q_moves_by_the_potential(scale):
    for seed in GRIDS:
        grid = Grid(seed)
        Q = values(grid.P, grid.R, grid.ends)
        phi = grid.phi[:, None, None]
        shaped = values(grid.P, shape(grid.R, phi, grid.phi, grid.ends, GAMMA, scale), grid.ends)
        live = ~grid.ends
        assert np.abs(shaped - (Q - scale * grid.phi[:, None]))[live].max() < 1e-8
        assert share_optimal(Q, shaped, grid.ends) == 1.0


def mistaken(grid: Grid, name: str) -> Array:
    """Rewards shaped at scale 10 with a mistake, or with a potential that is allowed."""
    phi, none = grid.phi, np.zeros(S, dtype=bool)
    before, after, ends, gamma = phi, phi, grid.ends, GAMMA
    if name == "the potential of the end counts":
        ends = none
    elif name == "shifted, and the end has the shift":
        before, after, ends = phi + 5.0, np.where(grid.ends, 5.0, phi + 5.0), none
    elif name == "the next episode's first state after the end":
        after, ends = np.where(grid.ends, phi[grid.start], phi), none
    elif name == "gamma 1":
        gamma = 1.0
    elif name == "gamma 0.99":
        gamma = 0.99
    elif name == "another potential after than before":
        after = phi + 0.5 * grid.rng.normal(size=S)
    elif name == "a constant at the end too":
        before, after, ends = np.full(S, 5.0), np.full(S, 5.0), none
    elif name == "shifted":
        before, after = phi + 5.0, phi + 5.0
    else:
        assert name == "a constant"
        before, after = np.full(S, 5.0), np.full(S, 5.0)
    return shape(grid.R, before[:, None, None], after, ends, gamma, 10.0)


MISTAKES = [
    "the potential of the end counts",
    "shifted, and the end has the shift",
    "the next episode's first state after the end",
    "gamma 1",
    "gamma 0.99",
    "another potential after than before",
    "a constant at the end too",
]


@pytest.mark.parametrize("name", MISTAKES)
def test_each_planted_mistake_changes_the_optimal_actions(name):
    shares = []
    for seed in GRIDS:
        grid = Grid(seed)
        shaped = values(grid.P, mistaken(grid, name), grid.ends)
        shares.append(share_optimal(values(grid.P, grid.R, grid.ends), shaped, grid.ends))
    assert np.mean(shares) < 0.9


@pytest.mark.parametrize("name", ["shifted", "a constant"])
def test_a_shift_of_the_potential_moves_nothing_where_the_end_has_none(name):
    for seed in GRIDS:
        grid = Grid(seed)
        shaped = values(grid.P, mistaken(grid, name), grid.ends)
        assert share_optimal(values(grid.P, grid.R, grid.ends), shaped, grid.ends) == 1.0


# Learning from a stream with time limits.


def stream(grid: Grid, steps: int, limit: int = 7) -> dict[str, Array]:
    """Random actions in episodes of at most ``limit`` steps; ``first`` is the state that follows a reset."""
    rng = np.random.default_rng(99)
    cumulative = grid.P.cumsum(-1)
    rows, s, t = [], grid.start, 0
    for uniform, a in zip(rng.random(steps), rng.integers(0, 4, steps)):
        after = min(int(np.searchsorted(cumulative[s, a], uniform)), S - 1)
        t += 1
        terminated = bool(grid.ends[after])
        truncated = t == limit and not terminated
        rows.append((s, a, grid.R[s, a, after], after, terminated, truncated))
        s, t = (grid.start, 0) if terminated or truncated else (after, t)
    names = ("s", "a", "r", "after", "terminated", "truncated")
    return {name: np.array(column) for name, column in zip(names, zip(*rows))}


def q_learning(data: dict[str, Array], reward: Array, Q: Array, rate: float = 0.1) -> Array:
    """Q after every 100th update, (n, S, 4)."""
    table, kept = Q.tolist(), []
    columns = (data["s"].tolist(), data["a"].tolist(), reward.tolist(), data["after"].tolist())
    for t, (s, a, r, after, ended) in enumerate(zip(*columns, data["terminated"].tolist())):
        target = r if ended else r + GAMMA * max(table[after])
        table[s][a] += rate * (target - table[s][a])
        if t % 100 == 0:
            kept.append(np.array(table))
    return np.stack(kept)


def test_learning_is_the_same_from_shaped_rewards_and_a_shifted_start_and_from_no_mistaken_ones():
    grid, scale = Grid(3), 25.0
    data = stream(grid, 20_000)
    assert data["terminated"].sum() > 100 and data["truncated"].sum() > 100
    phi, after = grid.phi[data["s"]], grid.phi[data["after"]]
    ended, cut = data["terminated"], data["truncated"]
    never = np.zeros_like(ended)
    reset = grid.phi[grid.start]
    rewards = {
        "right": shape(data["r"], phi, after, ended, GAMMA, scale),
        "the next first state at every end": shape(
            data["r"], phi, np.where(ended | cut, reset, after), never, GAMMA, scale
        ),
        "the next first state after a termination": shape(
            data["r"], phi, np.where(ended, reset, after), never, GAMMA, scale
        ),
        "0 at a time limit": shape(data["r"], phi, after, ended | cut, GAMMA, scale),
        "another gamma": shape(data["r"], phi, after, ended, 0.99, scale),
    }
    plain = q_learning(data, data["r"], np.zeros((S, 4)))
    for name, reward in rewards.items():
        shaped = q_learning(data, reward, np.repeat(-scale * grid.phi[:, None], 4, 1))
        distance = np.abs(shaped + scale * grid.phi[:, None] - plain).max()
        assert distance < 1e-9 if name == "right" else distance > 1.0, name


# Rollouts.


def rollout(steps: int, envs: int, seed: int = 0, ends: float = 0.15) -> dict[str, Tensor]:
    """Random histories (T, E, 2, 3) whose episodes end either way; the next one begins elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(steps + 1, envs, 2, 3, generator=generator, dtype=torch.float64)
    draws = torch.rand(2, steps, envs, generator=generator)
    terminated = draws[0] < ends
    boundary = terminated | (draws[1] < ends)
    last = torch.randn(steps, envs, 2, 3, generator=generator, dtype=torch.float64)
    next_obs = torch.where(boundary.view(steps, envs, 1, 1), last, obs[1:])
    return dict(obs=obs[:-1], next_obs=next_obs, terminated=terminated, boundary=boundary)


class Counted:
    """A potential that counts the states it is evaluated of; ``noise`` makes it another function in every call."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.states, self.calls = noise, 0, 0
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, obs: Tensor) -> Tensor:
        self.states += len(obs)
        self.calls += 1
        noise = torch.randn(len(obs), generator=self.generator, dtype=torch.float64)
        return torch.sin(obs.flatten(1).sum(1)) + self.noise * noise


@pytest.mark.parametrize("seed", range(3))
def test_potentials_of_a_rollout_are_those_of_each_decision_by_itself(seed):
    data = rollout(30, 4, seed)
    potential, alone = Counted(), Counted()
    phi, next_phi = rollout_potentials(potential, **data)
    for t, env in itertools.product(range(30), range(4)):
        assert float(phi[t, env]) == float(alone(data["obs"][t, env].unsqueeze(0)))
        expected = 0.0 if data["terminated"][t, env] else float(alone(data["next_obs"][t, env].unsqueeze(0)))
        assert float(next_phi[t, env]) == pytest.approx(expected, abs=1e-14)
    reached = data["boundary"].clone()
    reached[-1] = True
    assert potential.states == 30 * 4 + int((reached & ~data["terminated"]).sum()) and potential.calls == 1


def test_an_unbroken_rollout_asks_for_each_visited_state_once_and_telescopes_however_noisy_the_potential_is():
    steps, discount = 25, GAMMA ** torch.arange(25, dtype=torch.float64)
    data = rollout(steps, 1, ends=0.0)
    potential = Counted(noise=0.5)
    shaping = PotentialShaping(potential, GAMMA, scale=2.0)
    reward, phi, next_phi = shaping(torch.zeros(steps, 1, dtype=torch.float64), **data)
    assert potential.states == steps + 1
    total = float(discount @ reward[:, 0])
    assert total == pytest.approx(2.0 * float(GAMMA**steps * next_phi[-1] - phi[0]), abs=1e-12)
    # Noise that is drawn again for the same state does not cancel.
    fresh = Counted(noise=0.5)
    before, after = fresh(data["obs"][:, 0]), fresh(data["next_obs"][:, 0])
    again = shaped_rewards(torch.zeros_like(before), before, after, data["terminated"][:, 0], GAMMA, 2.0)
    assert abs(float(discount @ again) - 2.0 * float(GAMMA**steps * after[-1] - before[0])) > 0.1


def test_every_episode_telescopes_to_its_own_ends():
    data = rollout(60, 3)
    reward, phi, next_phi = PotentialShaping(Counted(noise=0.5), GAMMA, 3.0)(
        torch.zeros(60, 3, dtype=torch.float64), **data
    )
    ended_by = set()
    for env in range(3):
        first, total = 0, 0.0
        for t in range(60):
            total += GAMMA ** (t - first) * float(reward[t, env])
            if data["boundary"][t, env] or t == 59:
                after = float(next_phi[t, env])
                ended_by.add(bool(data["terminated"][t, env]))
                assert (after == 0.0) == bool(data["terminated"][t, env])
                expected = 3.0 * (GAMMA ** (t + 1 - first) * after - float(phi[first, env]))
                assert total == pytest.approx(expected, abs=1e-12)
                first, total = t + 1, 0.0
    assert ended_by == {True, False}


def test_an_offset_is_subtracted_from_every_potential_but_that_of_the_end():
    data, reward = rollout(20, 3), torch.zeros(20, 3, dtype=torch.float64)
    plain, moved = (PotentialShaping(Counted(), GAMMA, 2.0, offset)(reward, **data) for offset in (0.0, 1.5))
    torch.testing.assert_close(moved.phi, plain.phi - 1.5)
    torch.testing.assert_close(moved.next_phi, torch.where(data["terminated"], 0.0, plain.next_phi - 1.5))
    torch.testing.assert_close(moved.reward, 2.0 * (GAMMA * moved.next_phi - moved.phi))


def test_rollouts_that_hold_no_final_observations_are_refused():
    data = rollout(12, 2)
    reward = torch.zeros(12, 2, dtype=torch.float64)
    t, env = torch.nonzero(data["boundary"] & ~data["terminated"])[0].tolist()
    missing = {**data, "next_obs": data["next_obs"].clone()}
    missing["next_obs"][t, env] = math.nan
    with pytest.raises(ValueError, match=rf"after .*episode's own last observation.* decision \[{t}, {env}\] is nan"):
        PotentialShaping(Counted(), GAMMA)(reward, **missing)
    # After a termination there is nothing to know.
    ended = {**data, "next_obs": data["next_obs"].clone()}
    ended["next_obs"][data["terminated"]] = math.nan
    expected = PotentialShaping(Counted(), GAMMA)(reward, **data).reward
    torch.testing.assert_close(PotentialShaping(Counted(), GAMMA)(reward, **ended).reward, expected)
    unordered = {key: column.flip(0) for key, column in rollout(12, 2, ends=0.0).items()}
    with pytest.raises(ValueError, match="decisions must be in order"):
        rollout_potentials(Counted(), **unordered)
    with pytest.raises(ValueError, match="a decision that terminated must be a boundary"):
        rollout_potentials(Counted(), **{**data, "boundary": torch.zeros(12, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"a potential must be \(B,\), got"):
        rollout_potentials(lambda obs: obs[:, 0, :1], **data)
    with pytest.raises(ValueError, match=r"terminated and boundary \(T, E\)"):
        rollout_potentials(Counted(), **{**data, "boundary": data["boundary"][:, :1]})


def test_columns_that_do_not_fit_are_refused():
    reward, never = torch.zeros(3), torch.zeros(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"phi must have the rewards' shape \(3,\), got \(3, 1\)"):
        shaped_rewards(reward, torch.zeros(3, 1), reward, never, GAMMA, 1.0)
    with pytest.raises(ValueError, match="terminated must be bool, got torch.float32"):
        shaped_rewards(reward, reward, reward, reward, GAMMA, 1.0)
    with pytest.raises(ValueError, match=r"before decision \[1\] is inf"):
        shaped_rewards(reward, torch.tensor([0.0, math.inf, 0.0]), reward, never, GAMMA, 1.0)


# Chunks and n-step returns.

CHUNKS = [c for n in (1, 2, 3) for c in itertools.product(range(4), repeat=n)]
LENGTHS = np.array([len(c) for c in CHUNKS])


def chunked(grid: Grid, discount: float) -> tuple[Array, Array]:
    """P (S, C, S) of where a chunk ends, and its reward (S, C), discounted per step within it."""
    onward, ending = grid.P * ~grid.ends, grid.P * grid.ends
    step_reward = (grid.P * grid.R).sum(-1)
    P, R = np.zeros((S, len(CHUNKS), S)), np.zeros((S, len(CHUNKS)))
    for c, chunk in enumerate(CHUNKS):
        alive = np.eye(S)
        for i, a in enumerate(chunk):
            R[:, c] += discount**i * alive @ step_reward[:, a]
            P[:, c] += alive @ ending[:, a]
            alive = alive @ onward[:, a]
        P[:, c] += alive
    return P, R


@pytest.mark.parametrize("per_step", [True, False], ids=["discount per step", "discount per decision"])
def test_chunks_are_shaped_with_the_exponent_of_the_learners_discount(per_step):
    gamma_of = {True: GAMMA**LENGTHS, False: GAMMA}  # of the backup
    length = dict(length=LENGTHS[:, None])
    right, wrong = [], []
    for seed in range(3):
        grid = Grid(seed)
        P, R = chunked(grid, GAMMA if per_step else 1.0)
        Q = values(P, np.broadcast_to(R[..., None], P.shape), grid.ends, gamma_of[per_step])
        for shares, more in ((right, length if per_step else {}), (wrong, {} if per_step else length)):
            reward = shape(R[..., None], grid.phi[:, None, None], grid.phi, grid.ends, GAMMA, 10.0, **more)
            shares.append(share_optimal(Q, values(P, reward, grid.ends, gamma_of[per_step]), grid.ends))
    assert min(right) == 1.0 and np.mean(wrong) < 0.9


def test_n_step_returns_of_shaped_rewards_are_shaped_n_step_returns():
    n, steps, generator = 4, 30, torch.Generator().manual_seed(0)
    reward, phi = torch.randn(2, steps + 1, generator=generator, dtype=torch.float64)
    never = torch.zeros(steps, dtype=torch.bool)
    never[-1] = True  # the episode ends with the stream
    shaped = shaped_rewards(reward[:-1], phi[:-1], phi[1:], never, GAMMA, 2.0)
    starts = range(steps - n + 1)
    discount = GAMMA ** torch.arange(n, dtype=torch.float64)
    returns, of_shaped = (torch.stack([discount @ r[t : t + n] for t in starts]) for r in (reward, shaped))
    after, ended = phi[n:], torch.tensor([t + n == steps for t in starts])
    length = torch.full((len(starts),), n)
    expected = shaped_rewards(returns, phi[: len(starts)], after, ended, GAMMA, 2.0, length)
    torch.testing.assert_close(of_shaped, expected, rtol=0.0, atol=1e-12)
    # Shaping what has been added up already, as if it were one step, is another thing.
    late = shaped_rewards(returns, phi[: len(starts)], phi[1 : len(starts) + 1], ended, GAMMA, 2.0)
    assert float((late - of_shaped).abs().max()) > 0.1

"""Success of an episode, from the task by every way to what is logged: the same, and read before the next episode."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from ding.envs import BaseEnvManager
from ding.worker import InteractionSerialEvaluator
from easydict import EasyDict

from ding_ebm.envs.avoid_demos import make_mode_demonstrations
from ding_ebm.envs.avoid_modes import FAILURE_REWARD, AvoidModesEnv
from ding_ebm.host.collector import ChunkCollector
from ding_ebm.host.env import ChunkTaskEnv, TaskEnv
from ding_ebm.host.vector_env import VectorEnvManager

TA, LIMIT, DECISIONS = 8, 100, 13  # 13 chunks of 8 hold an episode of 100 steps, the last of them in part
E = 4


def recorded(episodes: int = 12) -> np.ndarray:
    """Actions by which every other episode succeeds from any start, in chunks, (episodes, 13, Ta, 2).

    Every third is led down onto a cylinder afterwards, which it meets in its last decision: those that had succeeded
    have been, and the last reward tells nothing of it.
    """
    data = make_mode_demonstrations("avoid_m1", episodes, seed=1)
    action = np.zeros((episodes, DECISIONS * TA, 2), np.float32)
    action[:, :LIMIT] = data.action.reshape(episodes, LIMIT, 2)
    position = data.next_obs.reshape(episodes, LIMIT, 4)[:, :, :2]
    for i in range(0, episodes, 3):
        action[i, 84:] = (0.35 - position[i, 83, 0]) / 14, -0.01
    return action.reshape(episodes, DECISIONS, TA, 2)


def manager(task: str = "avoid_m1", envs: int = E) -> VectorEnvManager:
    cfg = EasyDict(env_id=task, act_steps=TA, cond_steps=1)
    made = VectorEnvManager([partial(ChunkTaskEnv, cfg=cfg)] * envs, EasyDict())
    made.seed(0)
    return made


def seed_of(env: int, episode: int) -> int:
    return int(np.random.SeedSequence([0, env, episode]).generate_state(1)[0])


def single(env: int, episode: int, chunks: np.ndarray) -> tuple[dict[str, float], float, bool]:
    """What the adapter of one environment says of an episode, its last reward, and whether a step of it paid 2."""
    adapter, raw = ChunkTaskEnv(EasyDict(env_id="avoid_m1", act_steps=TA, cond_steps=1)), AvoidModesEnv()
    adapter.seed(seed_of(env, episode))
    adapter.reset()
    raw.reset(seed=seed_of(env, episode))
    steps = [adapter.step(chunk) for chunk in chunks]
    assert [step.done for step in steps] == [False] * (DECISIONS - 1) + [True]
    rewards, ended = [], False
    for action in chunks.reshape(-1, 2)[:LIMIT]:
        if not ended:
            _, reward, terminated, truncated, _ = raw.step(action)
            rewards, ended = [*rewards, reward], terminated or truncated
    assert steps[-1].info["episode_info"]["length"] == len(rewards)
    return steps[-1].info["episode_info"], rewards[-1], max(rewards) >= 2.0


def test_the_vector_manager_and_single_environments_agree_with_the_definition_episode_by_episode():
    vector, actions = manager(), recorded()
    vector.launch()
    seen = []
    for episode in range(3):
        chunks = actions[episode * E : (episode + 1) * E]
        for t in range(DECISIONS):
            made = vector.batch_step(chunks[:, t])
            assert sorted(made.successes) == (list(range(E)) if t == DECISIONS - 1 else [])
        for env in range(E):
            said, last, paid = single(env, episode, chunks[env])
            assert said == dict(length=float(made.lengths[env]), success=float(made.successes[env]))
            assert made.successes[env] is paid
            seen.append((paid, last == FAILURE_REWARD))
    # both outcomes with and without a collision at the end: a collision takes no success back
    assert set(seen) == {(True, True), (True, False), (False, False), (False, True)}


def test_the_hosts_dictionaries_hold_it_where_an_episode_ends():
    one, other, actions = manager(), manager(), recorded()
    one.launch()
    other.launch()
    for t in range(DECISIONS):
        steps, made = one.step({i: actions[i, t] for i in range(E)}), other.batch_step(actions[:E, t])
    found = [steps[i].info["episode_info"] for i in range(E)]
    assert found == [dict(length=float(made.lengths[i]), success=float(made.successes[i])) for i in range(E)]
    assert {info["success"] for info in found} == {0.0, 1.0}


def test_a_task_without_a_notion_of_success_reports_none():
    pytest.importorskip("mujoco")
    vector = manager("hopper", 2)
    vector.launch()
    made = None
    while made is None or not made.returns:
        made = vector.batch_step(np.ones((2, TA, 3), np.float32))
    assert made.successes is None
    adapter = TaskEnv(EasyDict(env_id="hopper"))
    adapter.reset()
    step = adapter.step(np.ones(3, np.float32))
    while not step.done:
        step = adapter.step(np.ones(3, np.float32))
    assert set(step.info["episode_info"]) == {"length"}
    vector.close()


class Scalars:
    """A TensorBoard writer that keeps what it is given."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.values.setdefault(name, []).append(float(value))

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Replay:
    """A collect or eval mode that acts as recorded, or zero where nothing is: decision by decision, or step by step."""

    def __init__(self, actions: Any, n_sample: int | None = None) -> None:
        self._actions, self._t = actions, 0
        self._cfg = EasyDict(type="replay", collect=dict(n_sample=n_sample))

    def get_attribute(self, name: str) -> Any:
        return self._cfg

    def reset(self, data_id: list[int] | None = None) -> None:
        self._t = 0 if data_id is None else self._t

    def forward(self, obs: Any) -> Any:
        action = self._actions[:, self._t % self._actions.shape[1]]
        self._t += 1
        if isinstance(obs, dict):
            return {i: dict(action=torch.from_numpy(action[i])) for i in obs}
        return dict(action=torch.from_numpy(action))


def test_the_collector_logs_the_share_of_the_episodes_that_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logged, actions = Scalars(), recorded()[:E]
    policy = Replay(actions, n_sample=E * DECISIONS)
    collector = ChunkCollector(ChunkCollector.default_config(), manager(), policy, logged)
    collector.collect()
    expected = np.mean([single(env, 0, actions[env])[2] for env in range(E)])
    assert 0.0 < expected < 1.0
    assert logged.values["collector_step/success_rate"] == [expected]
    policy._cfg.collect.n_sample = E
    collector.reset_policy(policy)
    collector.collect()  # in which no episode ends
    assert len(logged.values["collector_step/envstep_count"]) == 2
    assert len(logged.values["collector_step/success_rate"]) == 1


def evaluated(env: Any, policy: Replay, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> dict[str, list[float]]:
    monkeypatch.chdir(tmp_path)
    cfg, logged = InteractionSerialEvaluator.default_config(), Scalars()
    cfg.update(n_episode=2, stop_value=float("inf"))
    InteractionSerialEvaluator(cfg, env, policy, logged).eval()
    return logged.values


@pytest.mark.parametrize("vector", [True, False])
def test_the_hosts_evaluator_shows_the_share_of_its_episodes(vector, monkeypatch, tmp_path):
    actions = recorded(2)
    if vector:
        env = manager(envs=2)
    else:
        actions = actions.reshape(2, DECISIONS * TA, 2)
        cfg = EasyDict(env_id="avoid_m1")
        env = BaseEnvManager([partial(TaskEnv, cfg=cfg)] * 2, BaseEnvManager.default_config())
        env.seed(0, dynamic_seed=False)
    values = evaluated(env, Replay(actions), monkeypatch, tmp_path)
    assert values["evaluator_iter/success_mean"] == [0.5]
    assert 97.0 <= values["evaluator_iter/length_mean"][0] <= 100.0
    assert "success_mean" in (tmp_path / "default_experiment/log/evaluator/evaluator_logger.txt").read_text("utf-8")


def test_the_hosts_evaluator_shows_no_success_where_there_is_none(monkeypatch, tmp_path):
    pytest.importorskip("mujoco")
    env = manager("hopper", 2)
    values = evaluated(env, Replay(np.ones((2, 5, TA, 3), np.float32)), monkeypatch, tmp_path)
    assert "evaluator_iter/length_mean" in values
    assert not [name for name in values if "success" in name]

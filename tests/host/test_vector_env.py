"""The vector manager and the chunk collector against single environments stepped by hand, and the on-policy buffer."""

from __future__ import annotations

import importlib.util
import io
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from ding.utils import BUFFER_REGISTRY, ENV_MANAGER_REGISTRY, SERIAL_COLLECTOR_REGISTRY
from easydict import EasyDict

from ding_ebm.energy.shaping import rollout_potentials
from ding_ebm.envs.registry import make_batch_env
from ding_ebm.host.buffer import OnPolicyBuffer
from ding_ebm.host.collector import ChunkCollector
from ding_ebm.host.env import ChunkTaskEnv, TaskEnv
from ding_ebm.host.vector_env import VectorEnvManager

E, TA, TO = 3, 5, 2
needs_mujoco = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="MuJoCo is not installed")


def manager(
    envs: int = E, seed: int = 0, dynamic: bool = True, cond_steps: int = TO, launch: bool = True
) -> VectorEnvManager:
    cfg = EasyDict(env_id="avoid", act_steps=TA, cond_steps=cond_steps)
    made = VectorEnvManager([partial(ChunkTaskEnv, cfg=cfg)] * envs, EasyDict())
    made.seed(seed, dynamic_seed=dynamic)
    if launch:
        made.launch()
    return made


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def chunks(seed: int, envs: int = E) -> np.ndarray:
    """Mostly upwards, so that episodes end after some ten to thirty decisions, by collision."""
    drift = np.array([0.0, 0.006])
    return (np.random.default_rng(seed).uniform(-0.01, 0.01, (envs, TA, 2)) * 0.6 + drift).astype(np.float32)


def test_they_are_registered_under_their_names():
    assert ENV_MANAGER_REGISTRY.get("ebm_vector") is VectorEnvManager
    assert SERIAL_COLLECTOR_REGISTRY.get("ebm_chunk") is ChunkCollector
    assert BUFFER_REGISTRY.get("ebm_on_policy") is OnPolicyBuffer


@pytest.mark.parametrize("cond_steps", [1, 2, 7])
def test_decisions_are_the_steps_of_single_environments_and_episodes_follow_each_other(cond_steps):
    vector, twins = manager(cond_steps=cond_steps), [make_batch_env("avoid", 1) for _ in range(E)]
    seeds = lambda i, n: [int(np.random.SeedSequence([0, i, n]).generate_state(1)[0])]  # noqa: E731
    seen = [[twin.reset(seeds(i, 0))[0]] for i, twin in enumerate(twins)]
    episode, totals, finished = [0] * E, [0.0] * E, 0
    history = lambda row: np.stack([row[max(len(row) - back, 0)] for back in range(cond_steps, 0, -1)])  # noqa: E731
    for number in range(40):
        np.testing.assert_array_equal(vector.batch_obs, np.stack([history(row) for row in seen]))
        chunk = chunks(number)
        made = vector.batch_step(chunk)
        for i, twin in enumerate(twins):
            reward, length = 0.0, 0
            for action in chunk[i]:
                obs, r, terminated, truncated = twin.step(action[None])
                seen[i].append(obs[0])
                reward, length = reward + float(r[0]), length + 1
                if terminated[0] or truncated[0]:
                    break
            totals[i] += reward
            np.testing.assert_array_equal(made.next_obs[i], history(seen[i]))
            assert float(made.reward[i]) == pytest.approx(reward, rel=1e-5, abs=1e-6) and made.length[i] == length
            assert (made.terminated[i], made.truncated[i]) == (terminated[0], truncated[0])
            assert (i in made.returns) == bool(terminated[0] or truncated[0])
            if i in made.returns:
                assert made.returns[i] == pytest.approx(totals[i]) and made.lengths[i] == len(seen[i]) - 1
                episode[i], totals[i], finished = episode[i] + 1, 0.0, finished + 1
                seen[i] = [twin.reset(seeds(i, episode[i]))[0]]
    assert finished > E


def test_an_evaluation_begins_with_the_same_episodes_every_time_and_collecting_goes_on():
    for dynamic in (False, True):
        vector = manager(dynamic=dynamic)
        first = vector.batch_obs
        vector.reset()
        assert np.array_equal(vector.batch_obs, first) is not dynamic
    assert not np.array_equal(manager(seed=1).batch_obs, manager(seed=0).batch_obs)


def test_the_hosts_dictionaries_hold_what_the_arrays_hold():
    one, other = manager(), manager()
    for number in range(25):
        chunk = chunks(number)
        assert all(np.array_equal(one.ready_obs[i], other.batch_obs[i]) for i in range(E))
        steps, made = one.step({i: chunk[i] for i in range(E)}), other.batch_step(chunk)
        for i, step in steps.items():
            np.testing.assert_array_equal(step.obs, made.next_obs[i])
            assert step.reward == made.reward[i] and step.done == (i in made.returns)
            assert step.info["steps"] == made.length[i] and step.info["terminated"] == made.terminated[i]
            assert ("eval_episode_return" in step.info) == step.done
    with pytest.raises(ValueError, match="actions must be given for all 3 environments"):
        one.step({0: chunks(0)[0]})


def test_policies_over_single_actions_are_served_too():
    vector = VectorEnvManager([partial(TaskEnv, cfg=EasyDict(env_id="avoid"))] * 2, EasyDict())
    vector.seed(0)
    vector.launch()
    assert vector.ready_obs[0].shape == (4,)
    step = vector.step({i: np.zeros(2, dtype=np.float32) for i in range(2)})[1]
    assert step.obs.shape == (4,) and step.info["steps"] == 1


def test_environments_of_two_tasks_and_other_seeds_are_refused():
    mixed = [partial(TaskEnv, cfg=EasyDict(env_id=name)) for name in ("avoid", "hopper")]
    with pytest.raises(ValueError, match=r"must be of one task, got \['avoid', 'hopper'\]"):
        VectorEnvManager(mixed, EasyDict())
    with pytest.raises(ValueError, match="seed must be one integer"):
        manager().seed([1, 2, 3])


# The collector.


class Random:
    """A collect mode that acts at random and gives the number of the call beside its action."""

    def __init__(self, n_sample: int) -> None:
        self._cfg = EasyDict(collect=dict(n_sample=n_sample))
        self.calls = 0

    def get_attribute(self, name: str) -> Any:
        return self._cfg

    def forward(self, obs: np.ndarray) -> dict[str, torch.Tensor]:
        self.calls += 1
        action = torch.from_numpy(chunks(self.calls))
        return dict(action=action, call=torch.full((E,), self.calls), echo=torch.from_numpy(obs))


def collector(tmp_path, monkeypatch, n_sample: int, env: Any = None) -> ChunkCollector:
    monkeypatch.chdir(tmp_path)
    cfg = ChunkCollector.default_config()
    return ChunkCollector(cfg, manager(launch=False) if env is None else env, Random(n_sample), exp_name="run")


def test_every_decision_is_handed_over_in_order_and_collections_continue_each_other(tmp_path, monkeypatch):
    ours, twin = collector(tmp_path, monkeypatch, 20 * E), manager()
    steps, call = 0, 0
    for _ in range(2):
        data = ours.collect()
        assert data["reward"].shape == (20, E) and data["obs"].shape == (20, E, TO, 4) and "action" not in data
        assert torch.equal(data["echo"], data["obs"])
        for t in range(20):
            call += 1
            np.testing.assert_array_equal(data["obs"][t], twin.batch_obs)
            made = twin.batch_step(chunks(call))
            np.testing.assert_array_equal(data["next_obs"][t], made.next_obs)
            np.testing.assert_array_equal(data["reward"][t], made.reward)
            np.testing.assert_array_equal(data["terminated"][t], made.terminated)
            np.testing.assert_array_equal(data["boundary"][t], made.terminated | made.truncated)
            assert data["call"][t].tolist() == [call] * E
            steps += int(made.length.sum())
        assert ours.envstep == steps
    assert bool(data["boundary"].any())


def test_what_is_collected_is_laid_out_as_shaping_asks(tmp_path, monkeypatch):
    ours = collector(tmp_path, monkeypatch, 20 * E)
    ended = 0
    for _ in range(2):
        data = ours.collect()
        columns = (data[key] for key in ("obs", "next_obs", "terminated", "boundary"))
        phi, next_phi = rollout_potentials(lambda obs: obs.flatten(1).sum(1), *columns)
        torch.testing.assert_close(phi, data["obs"].sum((2, 3)))
        torch.testing.assert_close(next_phi, data["next_obs"].sum((2, 3)) * ~data["terminated"])
        ended += int(data["boundary"].sum())
    assert ended > 0


def test_a_number_of_decisions_that_environments_cannot_share_and_a_stock_manager_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"n_sample \(7\) must be a multiple of env.collector_env_num \(3\)"):
        collector(tmp_path, monkeypatch, 7)
    with pytest.raises(TypeError, match="needs create_config.env_manager type 'ebm_vector', got object"):
        collector(tmp_path, monkeypatch, 6, env=object())


# The buffer.


def test_the_buffer_hands_each_collection_out_whole_and_once():
    buffer = OnPolicyBuffer(OnPolicyBuffer.default_config())
    for number in range(3):
        data = {"reward": torch.full((4, 2), float(number))}
        buffer.push(data, cur_collector_envstep=number)
        assert buffer.count() == 1
        assert buffer.sample(1, number) is data and buffer.count() == 0
    with pytest.raises(RuntimeError, match="has been learned from already"):
        buffer.sample(1, 3)
    buffer.push({}, 4)
    with pytest.raises(RuntimeError, match="before the last one was learned from"):
        buffer.push({}, 5)


@pytest.mark.parametrize("task", ["avoid", pytest.param("hopper", marks=needs_mujoco)])
def test_episodes_go_on_where_they_were_in_another_process(task):
    cfg = EasyDict(env_id=task, act_steps=TA, cond_steps=TO)
    make = lambda: VectorEnvManager([partial(ChunkTaskEnv, cfg=cfg)] * E, EasyDict())  # noqa: E731
    whole = make()
    whole.seed(3)
    whole.launch()
    size = whole._env.action_dim
    scale = float(whole._env.action_high[0])
    chosen = np.random.default_rng(1).uniform(-scale, scale, (60, E, TA, size)).astype(np.float32)
    ends, others = 0, []
    for number, chunk in enumerate(chosen):
        if number in (0, 1, 13, 37):
            other = make()
            other.seed(3)
            other.launch()
            assert other.load_state_dict(through_a_file(whole.state_dict())) == []
            others.append(other)
        made = whole.batch_step(chunk)
        for other in others:
            given = chunk.copy()
            again = other.batch_step(given)
            given[:] = 0.0  # what is kept of a chunk is not the caller's memory
            for name in ("next_obs", "reward", "terminated", "truncated", "length"):
                np.testing.assert_array_equal(getattr(made, name), getattr(again, name))
            assert made.returns == again.returns and made.lengths == again.lengths
        ends += len(made.returns)
    assert ends >= E and len(others) == 4
    for other in others:
        now, there = whole.state_dict(), other.state_dict()
        assert all(torch.equal(*pair) for pair in zip(now["actions"], there["actions"]))
        assert all(torch.equal(now[key], there[key]) for key in ("episode", "seen", "returns"))


def test_what_does_not_repeat_begins_anew_and_says_so():
    vector = manager()
    for number in range(4):
        vector.batch_step(chunks(number))
    state = vector.state_dict()
    state["actions"][1] = state["actions"][1] * 0.9  # as if the simulator were another one
    other = manager()
    assert other.load_state_dict(state) == [1]
    seen = vector.batch_obs
    np.testing.assert_array_equal(other.batch_obs[[0, 2]], seen[[0, 2]])
    assert not np.array_equal(other.batch_obs[1], seen[1])
    assert other._episode.tolist() == [1, 2, 1] and other._length.tolist() == [20, 0, 20]


def test_a_state_of_another_seed_or_number_of_environments_is_refused():
    state = manager(seed=0).state_dict()
    with pytest.raises(ValueError, match="are of seed 0 in 3 environments, this run has seed 1 and 3"):
        manager(seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match=r"this run has seed 0 and 2 \(env.collector_env_num\)"):
        manager(envs=2).load_state_dict(state)

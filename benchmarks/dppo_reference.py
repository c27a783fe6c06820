"""The reference's side of ``dppo_speed.py``, and what both sides share: sizes, clock and data.

Of the reference (github.com/irom-princeton/dppo, commit cc7234a) these are called as they are: ``PPODiffusion`` with
``forward``, ``get_logprobs`` and ``loss``, its networks, ``RunningRewardScaler``, ``DiffusionModel.loss`` and
``StitchedSequenceDataset``. Its agents and environments need hydra, wandb, gym 0.22 and d4rl; the agents' lines that
call these classes are restated here, and its environments are Gymnasium's AsyncVectorEnv, one process each, around a
wrapper that executes a chunk.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from env_speed import SCALE
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from torch.utils.data import DataLoader

from ding_ebm.envs.registry import make_env
from ding_ebm.model.diffusion_mlp import DiffusionMLP

TASK = "hopper"
ENVS, CHUNK, OBS, ACTION, K, F = 40, 4, 11, 3, 20, 10


class Clock:
    """CPU and wall seconds of named parts."""

    def __init__(self, cpu: Callable[[], float]) -> None:
        self.cpu = cpu
        self.spent: dict[str, tuple[float, float]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside."""
        cpu, wall = self.cpu(), time.perf_counter()
        yield
        before = self.spent.get(name, (0.0, 0.0))
        self.spent[name] = (before[0] + self.cpu() - cpu, before[1] + time.perf_counter() - wall)

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return counted


POLICY, STEPPING, PREPARING = "policy calls", "environments", "log-probabilities and advantages"
PARTS = ("all", POLICY, STEPPING, PREPARING, "update")


class ChunkWrapper(gymnasium.Wrapper):
    """Executes a chunk of normalized actions, up to the end of the episode, and normalizes the observation after it.

    Our side does the latter in the policy.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (CHUNK, ACTION), np.float32)
        self._obs_min, self._obs_max = -np.ones(OBS), np.ones(OBS)
        self._action_min, self._action_max = -SCALE * np.ones(ACTION), SCALE * np.ones(ACTION)

    def step(self, chunk: np.ndarray) -> tuple[Any, ...]:
        """One decision; its reward is the sum."""
        total = 0.0
        for action in chunk:
            raw = (action + 1) / 2 * (self._action_max - self._action_min) + self._action_min
            obs, reward, terminated, truncated, info = self.env.step(raw)
            obs = 2 * ((obs - self._obs_min) / (self._obs_max - self._obs_min + 1e-6) - 0.5)
            total += reward
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


def make_workers() -> AsyncVectorEnv:
    """The reference's side of the environments; an ended one begins anew within its step, as there."""
    return AsyncVectorEnv([lambda: ChunkWrapper(make_env(TASK))] * ENVS, autoreset_mode=AutoresetMode.SAME_STEP)


class Reference:
    """The reference's classes, called as ``TrainPPODiffusionAgent.run`` calls them, without logs and videos."""

    def __init__(self, decisions: int, batch: int, passes: int) -> None:
        sizes = dict(horizon_steps=CHUNK, action_dim=ACTION)
        load = importlib.import_module
        self.model = load("model.diffusion.diffusion_ppo").PPODiffusion(
            gamma_denoising=0.99, clip_ploss_coef=0.01, clip_ploss_coef_base=0.01, clip_ploss_coef_rate=3,
            randn_clip_value=3, min_sampling_denoising_std=0.1, min_logprob_denoising_std=0.1, ft_denoising_steps=F,
            denoising_steps=K, obs_dim=OBS, device="cpu", **sizes,
            actor=load("model.diffusion.mlp_diffusion").DiffusionMLP(
                time_dim=16, mlp_dims=[512] * 3, activation_type="ReLU", residual_style=True, cond_dim=OBS, **sizes
            ),
            critic=load("model.common.critic").CriticObs(
                cond_dim=OBS, mlp_dims=[256] * 3, activation_type="Mish", residual_style=True
            ),
        )  # fmt: skip
        self.scaler = load("util.reward_scaling").RunningRewardScaler(ENVS)
        self.decisions, self.batch, self.passes = decisions, batch, passes
        self.actor_optimizer = torch.optim.AdamW(self.model.actor_ft.parameters(), lr=1e-4, weight_decay=0)
        self.critic_optimizer = torch.optim.AdamW(self.model.critic.parameters(), lr=1e-3, weight_decay=0)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Chunks (E, Ta, Da) and chains for observations (E, To, Do)."""
        samples = self.model(cond={"state": torch.from_numpy(obs).float()}, deterministic=False, return_chain=True)
        return samples.trajectories.cpu().numpy()[:, :CHUNK], samples.chains.cpu().numpy()

    def iterate(self, clock: Clock, workers: AsyncVectorEnv) -> None:
        """Collect and learn."""
        obs = workers.reset(seed=0)[0]
        with clock.part("all"):
            data = self.holders()
            for step in range(self.decisions):
                data["obs"][step] = obs[:, None]
                with clock.part(POLICY):
                    action, data["chains"][step] = self.act(obs[:, None])
                with clock.part(STEPPING):
                    obs, reward, terminated, truncated, _ = workers.step(action)
                data["reward"][step], data["terminated"][step] = reward, terminated
                data["first"][step + 1] = terminated | truncated
            with clock.part("update"):
                with clock.part(PREPARING):
                    prepared = self.prepare(data, obs[:, None])
                self.update(*prepared)

    def holders(self) -> dict[str, np.ndarray]:
        """Arrays for a collection."""
        shape = (self.decisions, ENVS)
        data = dict(
            obs=np.zeros((*shape, 1, OBS)),
            chains=np.zeros((*shape, F + 1, CHUNK, ACTION)),
            terminated=np.zeros(shape),
            reward=np.zeros(shape),
            first=np.zeros((self.decisions + 1, ENVS)),
        )
        data["first"][0] = 1
        return data

    def collection(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """A collection from environments that give noise, and the observations after it."""
        data, rng = self.holders(), np.random.default_rng(0)
        for name in ("obs", "reward"):
            data[name][:] = rng.standard_normal(data[name].shape)
        for step in range(self.decisions):
            data["chains"][step] = self.act(data["obs"][step])[1]
        return data, data["obs"][0]

    @torch.no_grad()
    def prepare(self, data: dict[str, np.ndarray], last_obs: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Values, log-probabilities and advantages of a collection, decisions in one dimension."""
        obs = torch.from_numpy(data["obs"]).float().flatten(0, 1)
        chains = torch.from_numpy(data["chains"]).float().flatten(0, 1)
        values = np.empty((0, ENVS))
        log_probs = np.empty((0, F, CHUNK, ACTION))
        for part in obs.split(10_000):
            values = np.vstack((values, self.model.critic({"state": part}).numpy().flatten().reshape(-1, ENVS)))
        for part, chain in zip(obs.split(10_000), chains.split(10_000)):
            new = self.model.get_logprobs({"state": part}, chain).numpy()
            log_probs = np.vstack((log_probs, new.reshape(-1, *log_probs.shape[1:])))
        reward = self.scaler(reward=data["reward"].T, first=data["first"][:-1].T).T
        advantages, following = np.zeros_like(reward), 0.0
        for t in reversed(range(len(reward))):
            last = {"state": torch.from_numpy(last_obs).float()}
            next_values = values[t + 1] if t + 1 < len(reward) else self.model.critic(last).reshape(1, -1).numpy()
            goes_on = 1.0 - data["terminated"][t]
            delta = reward[t] + 0.99 * next_values * goes_on - values[t]
            advantages[t] = following = delta + 0.99 * 0.95 * goes_on * following
        flat = [torch.tensor(array).float().reshape(-1) for array in (advantages + values, values, advantages)]
        chains = torch.tensor(data["chains"]).float().flatten(0, 1)
        return obs, chains, *flat, torch.tensor(log_probs).float()

    def update(
        self,
        obs: torch.Tensor,
        chains: torch.Tensor,
        returns: torch.Tensor,
        values: torch.Tensor,
        advantages: torch.Tensor,
        log_probs: torch.Tensor,
    ) -> None:
        """All passes."""
        total = len(obs) * F
        for _ in range(self.passes):
            order = torch.randperm(total)
            for number in range(max(1, total // self.batch)):
                chosen = order[number * self.batch : (number + 1) * self.batch]
                row, step = torch.unravel_index(chosen, (len(obs), F))
                policy_loss, _, value_loss, _, kl, *_ = self.model.loss(
                    {"state": obs[row]}, chains[row, step], chains[row, step + 1], step, returns[row], values[row],
                    advantages[row], log_probs[row, step], use_bc_loss=False, reward_horizon=CHUNK,
                )  # fmt: skip
                loss = policy_loss + 0.5 * value_loss
                self.actor_optimizer.zero_grad()
                self.critic_optimizer.zero_grad()
                loss.backward()
                self.actor_optimizer.step()
                self.critic_optimizer.step()
                if kl > 1:
                    return


class ReferenceCloning:
    """The reference's pre-training, called as ``TrainDiffusionAgent.run`` calls it."""

    def __init__(self, file: Path, batch: int) -> None:
        sizes = dict(horizon_steps=CHUNK, action_dim=ACTION)
        load = importlib.import_module
        self.model, self.average = (
            load("model.diffusion.diffusion").DiffusionModel(
                network=load("model.diffusion.mlp_diffusion").DiffusionMLP(
                    time_dim=16, mlp_dims=[512] * 3, activation_type="ReLU", residual_style=True, cond_dim=OBS, **sizes
                ),
                obs_dim=OBS, denoising_steps=K, device="cpu", **sizes,
            )
            for _ in range(2)
        )  # fmt: skip
        dataset = load("agent.dataset.sequence").StitchedSequenceDataset(str(file), CHUNK, device="cpu")
        self.batches = endless(lambda: DataLoader(dataset, batch, shuffle=True))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=1e-6)
        self.count = 0

    def step(self) -> None:
        """One update, with the moving average of every tenth."""
        loss = self.model.loss(*next(self.batches))
        loss.backward()
        loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.count % 10 == 0:
            for new, old in zip(self.model.parameters(), self.average.parameters()):
                old.data = old.data * 0.995 + (1 - 0.995) * new.data
        self.count += 1


def alone(batch: int) -> Callable[[], Any]:
    """Forward, backward and optimizer of our network on tensors that are there."""
    network = DiffusionMLP(OBS, ACTION, 1, CHUNK)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    x, noise, obs = torch.randn(batch, CHUNK, ACTION), torch.randn(batch, CHUNK, ACTION), torch.randn(batch, 1, OBS)
    k = torch.randint(K, (batch,))

    def step() -> None:
        loss = torch.nn.functional.mse_loss(network(x, k, obs), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def endless(make: Callable[[], DataLoader]) -> Iterator[Any]:
    """Batches of one epoch after the other."""
    while True:
        yield from make()


def memory(field: str) -> float:
    """Megabytes that the process holds (``VmRSS``) or has held (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

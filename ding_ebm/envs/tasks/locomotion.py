"""Running on MuJoCo: Gymnasium's v4 tasks, for v5 rewards and ends episodes differently from D4RL's data.

Reference returns: D4RL (Fu et al. 2020, arXiv:2004.07219), of a random and an expert policy.
"""

from __future__ import annotations

import warnings

import gymnasium

from ding_ebm.envs.batch import BatchEnv
from ding_ebm.envs.task import Task


def simulated_batch(task: Task, num_envs: int) -> BatchEnv:
    """Environments of a task on MuJoCo's ``rollout``."""
    from ding_ebm.envs.mujoco_batch import MujocoBatch  # imports the simulator

    steps = task.max_episode_steps
    return MujocoBatch(task.base, num_envs, dynamics=task.dynamics or "v4", max_episode_steps=steps)


def _gymnasium_single(task: Task) -> gymnasium.Env:
    assert task.gym_id is not None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is out of date.*", DeprecationWarning)
        env: gymnasium.Env = gymnasium.make(task.gym_id)
    if task.dynamics == "d4rl-v2":
        from ding_ebm.envs.inertia import use_legacy_capsules  # imports the simulator
        from ding_ebm.envs.running import RUNNERS

        use_legacy_capsules(env.unwrapped.model, RUNNERS[task.base][1].total_mass)  # type: ignore[attr-defined]
    return env


def _runner(
    name: str, gym_id: str, obs_dim: int, action_dim: int, reference: tuple[float, float], v5_obs_dim: int | None = None
) -> Task:
    medium, expert = f"{name}_medium.hdf5", f"{name}_expert.hdf5"
    return Task(
        name=name,
        extra="mujoco",
        obs_dim=obs_dim,
        action_dim=action_dim,
        action_range=(-1.0, 1.0),
        max_episode_steps=1000,
        make_batch=simulated_batch,
        make_single=_gymnasium_single,
        reference_returns=reference,
        reward_tuning="locomotion",
        data_sets={
            "medium": (medium,),
            "medium_replay": (f"{name}_medium_replay.hdf5",),
            "medium_expert": (medium, expert),
            "expert": (expert,),
        },
        dynamics="v4",
        other_dynamics={"v5": v5_obs_dim or obs_dim, "d4rl-v2": obs_dim},
        gym_id=gym_id,
        d4rl_id=f"{name}-medium-v2",
    )


# D4RL has no humanoid, and nobody else a data set that its results are compared on.
_HUMANOID = Task(
    name="humanoid",
    extra="mujoco",
    obs_dim=376,
    action_dim=17,
    action_range=(-0.4, 0.4),
    max_episode_steps=1000,
    make_batch=simulated_batch,
    make_single=_gymnasium_single,
    reward_tuning="locomotion",
    data_sets={"medium": ("humanoid_medium.hdf5",)},
    dynamics="v4",
    other_dynamics={"v5": 348},
    gym_id="Humanoid-v4",
)

TASKS = (
    _runner("hopper", "Hopper-v4", 11, 3, (-20.272305, 3234.3)),
    _runner("walker2d", "Walker2d-v4", 17, 6, (1.629008, 4592.3)),
    _runner("halfcheetah", "HalfCheetah-v4", 17, 6, (-280.178953, 12135.0)),
    _runner("ant", "Ant-v4", 27, 8, (-325.6, 3879.7), v5_obs_dim=105),
    _HUMANOID,
)

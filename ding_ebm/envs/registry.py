"""The table of tasks: environments, their dimensions, data sets, reward tuning and reference returns.

Importing it needs no simulator; making an environment needs the extra that its task names. A task of your own joins it
by :func:`register_gymnasium`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
from numpy.typing import NDArray

from ding_ebm.envs.batch import BatchEnv
from ding_ebm.envs.own import Maker, is_same, own_task
from ding_ebm.envs.single import SingleEnv
from ding_ebm.envs.task import Task, look_up
from ding_ebm.envs.tasks import avoid, furniture, kitchen, locomotion, mazes, robomimic

_BENCHMARKS = (locomotion, mazes, kitchen, robomimic, furniture, avoid)
TASKS: dict[str, Task] = {task.name: task for benchmark in _BENCHMARKS for task in benchmark.TASKS}


def register_gymnasium(
    name: str,
    make: Maker,
    max_episode_steps: int | None = None,
    *,
    reference_returns: tuple[float, float] | None = None,
    reward_tuning: str = "none",
    data_sets: Mapping[str, Sequence[str]] | None = None,
) -> Task:
    """Add a Gymnasium environment of your own to the table, for as long as the process runs.

    Call it in the config file, or in a module that the config imports: whoever reads the config then knows the task.
    The environment is made and reset once to read off its sizes. It must begin the same episode whenever it is reset
    with the same seed; actions are clipped to its range, since policies add noise to theirs; ``info["success"]``, if
    there is one, is the task's notion of success. To register the same once more, as when a config is read twice,
    replaces it.

    Args:
        name: The task's name in configs and file names: letters, digits and '_'.
        make: Gymnasium id, as ``"Pendulum-v1"``; or a class or function that makes an environment when called without
            arguments.
        max_episode_steps: Time limit in steps; None: the environment's own.
        reference_returns: Returns that score 0 and 100; None: results have no normalized scores.
        reward_tuning: How rewards are tuned for training, see :func:`ding_ebm.data.rewards.tune_rewards`.
        data_sets: Files of each data set; None: one, ``demonstrations``, of the file ``<name>.hdf5``.

    Returns:
        The row.

    Raises:
        TypeError: If ``make`` makes no Gymnasium environment.
        ValueError: If the name is taken or has other characters; if observations or actions are no Box of one
            dimension, the action range is infinite, there is no time limit, or the same seed begins different episodes.
    """
    task = own_task(name, make, max_episode_steps, reference_returns, reward_tuning, data_sets)
    if name in TASKS and not is_same(TASKS[name], task):
        raise ValueError(f"there is a task {name!r} already, and it is another one: choose a name of your own")
    TASKS[name] = task
    return task


def get_task(name: str, dynamics: str | None = None) -> Task:
    """The task of that name, under the dynamics that it has by default or others.

    Under others its name says which, as in ``hopper-v5``, and such a name is understood here too.

    Raises:
        ValueError: If there is none.
    """
    base, _, named = name.partition("-")
    note = "a task of your own is known once the config that registers it has been read"
    return look_up(TASKS, base, "task", note).under(dynamics or named or None)


def make_env(name: str, dynamics: str | None = None) -> gymnasium.Env[Any, Any]:
    """One environment of a task, with raw observations, actions and rewards.

    Raises:
        ValueError: If there is no such task, or it has no such dynamics.
        ModuleNotFoundError: If the extra that it needs is not installed.
    """
    task = _runnable(name, dynamics)
    return SingleEnv(task.make_batch(task, 1)) if task.make_single is None else task.make_single(task)


def make_batch_env(name: str, num_envs: int, dynamics: str | None = None) -> BatchEnv:
    """Many environments of a task, stepped together; raises as :func:`make_env`."""
    task = _runnable(name, dynamics)
    return task.make_batch(task, num_envs)


def normalized_score(name: str, ret: float | NDArray[Any]) -> Any:
    """Returns on the scale of the task's reference returns, 0 to 100, elementwise; None where there are none."""
    reference = get_task(name).reference_returns
    return None if reference is None else 100.0 * (ret - reference[0]) / (reference[1] - reference[0])


def _runnable(name: str, dynamics: str | None) -> Task:
    task = get_task(name, dynamics)
    if task.missing_modules:
        raise ModuleNotFoundError(f"the task {task.name} needs {', '.join(task.missing_modules)}: {task.remedy}")
    return task

"""The table of tasks: environments, their dimensions, data sets, reward tuning and reference returns.

Importing it needs no simulator; making an environment needs the extra that its task names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
from numpy.typing import NDArray

from ding_ebm.envs.batch import BatchEnv
from ding_ebm.envs.single import SingleEnv
from ding_ebm.envs.task import Task, look_up
from ding_ebm.envs.tasks import avoid, locomotion, mazes, robomimic

TASKS: Mapping[str, Task] = {
    task.name: task for task in (*locomotion.TASKS, *mazes.TASKS, *robomimic.TASKS, *avoid.TASKS)
}


def get_task(name: str, dynamics: str | None = None) -> Task:
    """The task of that name, under the dynamics that it has by default or others.

    Under others its name says which, as in ``hopper-v5``, and such a name is understood here too.

    Raises:
        ValueError: If there is none.
    """
    base, _, named = name.partition("-")
    return look_up(TASKS, base, "task").under(dynamics or named or None)


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
        raise ModuleNotFoundError(
            f"the task {task.name} needs {', '.join(task.missing_modules)}, "
            f"which pip install 'ding_ebm[{task.extra}]' installs"
        )
    return task

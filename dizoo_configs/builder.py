"""What the configs of a benchmark share, so that a file states only what its task changes.

Three levels, later ones win: the policy's class-level ``config``, these builders, the file.
"""

from __future__ import annotations

from typing import Any

from ding.utils import deep_merge_dicts
from easydict import EasyDict

from ding_ebm.envs.registry import get_task
from ding_ebm.envs.task import Task
from ding_ebm.host.checks import check_files

Configs = tuple[EasyDict, EasyDict]


def merge(base: dict[str, Any], override: dict[str, Any] | None) -> EasyDict:
    """Nested dictionaries as one, ``override`` wins."""
    return deep_merge_dicts(EasyDict(base), EasyDict(override or {}))


def offline(algo: str, policy_type: str, task_name: str, data_set: str, main: dict[str, Any]) -> Configs:
    """Main and create config of an offline run of one policy that learns from the rewards of a data set of a task.

    Args:
        algo: Last part of the experiment's name.
        policy_type: Registered name of the policy.
        task_name: Name in the task table.
        data_set: Name of one of the task's data sets.
        main: What the main config holds beside the task's facts.
    """
    task = _task(task_name, main)
    facts = dict(
        exp_name=f"{task_name}_{data_set}_{algo}_seed0",
        env=dict(env_id=task_name),
        policy=dict(
            model=dict(obs_dim=task.obs_dim, action_dim=task.action_dim),
            collect=dict(data_path=list(task.data_files(data_set)), reward_tuning=task.reward_tuning),
        ),
    )
    create = dict(
        env=dict(type="ebm_env", import_names=["ding_ebm.host"]),
        env_manager=dict(type="ebm_vector", import_names=["ding_ebm.host"]),
        policy=dict(type=policy_type, import_names=["ding_ebm.policy", "ding_ebm.host"]),
    )
    return _checked(merge(facts, main), create)


def imitation(algo: str, policy_type: str, task_name: str, data_set: str, main: dict[str, Any]) -> Configs:
    """Main and create config of a run that clones the action chunks of a data set of a task; arguments as above.

    The chunk lengths of ``main``'s policy are the environment's too.
    """
    facts = _chunk_facts(algo, task_name, main)
    facts["policy"]["collect"] = dict(data_path=list(get_task(task_name).data_files(data_set)))
    create = dict(
        env=dict(type="ebm_chunk_env", import_names=["ding_ebm.host"]),
        env_manager=dict(type="ebm_vector", import_names=["ding_ebm.host"]),
        policy=dict(type=policy_type, import_names=["ding_ebm.policy", "ding_ebm.host"]),
    )
    return _checked(_with_chunk_lengths(merge(facts, main)), create)


def online(algo: str, policy_type: str, task_name: str, base: str, main: dict[str, Any]) -> Configs:
    """Main and create config of a run that fine-tunes a cloned policy by collecting.

    Args:
        algo: Last part of the experiment's name.
        policy_type: Registered name of the policy.
        task_name: Name in the task table.
        base: Algorithm part of the experiment whose policy is fine-tuned.
        main: What the main config holds beside the task's facts.
    """
    facts = _chunk_facts(algo, task_name, main)
    facts["policy"]["base_policy_path"] = f"{task_name}_{base}_seed0"
    host = ["ding_ebm.host"]
    create = dict(
        env=dict(type="ebm_chunk_env", import_names=host),
        env_manager=dict(type="ebm_vector", import_names=host),
        collector=dict(type="ebm_chunk", import_names=host),
        replay_buffer=dict(type="ebm_on_policy", import_names=host),
        policy=dict(type=policy_type, import_names=["ding_ebm.policy", *host]),
    )
    return _checked(_with_chunk_lengths(merge(facts, main)), create)


def shaped_by(task_name: str) -> dict[str, Any]:
    """Rewards shaped by the free energy of the energy that the task's energy config trains."""
    energy = dict(ebm_ckpt_path=f"{task_name}_energy_seed0", use_energy_scaling=True, use_pbrs=True)
    return dict(policy=dict(energy=energy))


def _checked(main: EasyDict, create: dict[str, Any]) -> Configs:
    check_files(main, EasyDict(create))
    return main, EasyDict(create)


def _task(name: str, main: dict[str, Any]) -> Task:
    """The task under the dynamics that a main config asks for."""
    return get_task(name, main.get("env", {}).get("dynamics"))


def _chunk_facts(algo: str, task_name: str, main: dict[str, Any]) -> dict[str, Any]:
    """What a task says of a policy over action chunks."""
    task = _task(task_name, main)
    return dict(
        exp_name=f"{task_name}_{algo}_seed0",
        env=dict(env_id=task_name),
        policy=dict(
            model=dict(task=task_name, obs_dim=task.obs_dim, action_dim=task.action_dim, act_steps=4, cond_steps=1),
        ),
    )


def _with_chunk_lengths(main: EasyDict) -> EasyDict:
    main.env.update(act_steps=main.policy.model.act_steps, cond_steps=main.policy.model.cond_steps)
    return main

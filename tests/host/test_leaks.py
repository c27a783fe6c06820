"""Many trainings in one process leave nothing behind, and many updates take no more memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ding_ebm.data.formats import write_d4rl_hdf5
from ding_ebm.envs.avoid_demos import make_mode_demonstrations

ROOT = Path(__file__).parents[2]
# Prints resident memory in MB, threads and open files, after each training or each so many updates.
PROLOGUE = """
import gc, os, sys, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import torch
torch.set_num_threads(1)
from ding.entry import serial_pipeline_offline, serial_pipeline_onpolicy
from dizoo_configs.avoid.builder import diffusion_bc, dppo

def state():
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    numbers = pages * os.sysconf("SC_PAGE_SIZE") / 2**20, *(len(os.listdir(f"/proc/self/{n}")) for n in ("task", "fd"))
    print(*numbers, file=sys.stderr)

model = dict(mlp=dict(mlp_dims=[16, 16, 16]))
hook = dict(log_show_after_iter=4, save_ckpt_after_iter=4)
env = dict(collector_env_num=3, evaluator_env_num=2, n_evaluator_episode=2)
"""
TRAININGS = """
for number in range(int(sys.argv[1])):
    learn = dict(train_epoch=2, iterations_per_epoch=4, batch_size=16, learner=dict(hook=hook))
    policy = dict(model=model, learn=learn, eval=dict(evaluator=dict(eval_freq=4)))
    main, create = diffusion_bc("avoid_m1", dict(env=env, policy=policy))
    main.exp_name = f"offline_{number}"
    serial_pipeline_offline((main, create), seed=0)
    learn = dict(epoch_per_collect=2, batch_size=32, learner=dict(hook=hook))
    policy = dict(model=model, learn=learn, collect=dict(n_sample=21), eval=dict(evaluator=dict(eval_freq=4)))
    main, create = dppo("avoid_m1", dict(env=env, policy=policy))
    main.exp_name, main.policy.base_policy_path = f"online_{number}", None
    serial_pipeline_onpolicy((main, create), seed=0, max_train_iter=4)
    state()
"""
UPDATES = """
from ding.config import compile_config
from ding.policy import create_policy
from ding_ebm.host.datasets import HostChunkDataset

main, create = diffusion_bc("avoid_m1", dict(env=env, policy=dict(model=model, learn=dict(batch_size=16))))
create.policy.type += "_command"
cfg = compile_config(main, seed=0, auto=True, create_cfg=create, save_cfg=False)
dataset = HostChunkDataset(cfg)
policy = create_policy(cfg.policy, enable_field=["learn"])
policy.set_statistic(dataset.statistics)
for number in range(int(sys.argv[1])):
    for _ in range(int(sys.argv[2])):
        policy.learn_mode.forward(dataset.__getitems__(range(16)))
    state()
"""


def states(script: str, folder: Path, *arguments: int) -> list[tuple[float, float, float]]:
    """What a script printed: megabytes, threads and open files."""
    write_d4rl_hdf5(folder / "avoid_m1_demonstrations.hdf5", make_mode_demonstrations("avoid_m1", 6, 0))
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", DING_EBM_DATA=str(folder))
    command = [sys.executable, "-c", PROLOGUE + script, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stderr.splitlines()]
    found = [
        tuple(map(float, words)) for words in lines if len(words) == 3 and words[1].isdigit() and words[2].isdigit()
    ]
    assert len(found) == arguments[0]
    return found


def check_trainings(found: list[tuple[float, float, float]]) -> None:
    memory, threads, files = zip(*found)
    assert memory[-1] <= 1.05 * memory[0], memory
    assert len(set(threads)) == len(set(files)) == 1, (threads, files)


def test_a_training_leaves_no_memory_no_thread_and_no_open_file(tmp_path):
    check_trainings(states(TRAININGS, tmp_path, 3))


@pytest.mark.slow
def test_twenty_trainings_leave_no_memory_no_thread_and_no_open_file(tmp_path):
    check_trainings(states(TRAININGS, tmp_path, 20))


@pytest.mark.slow
def test_updates_take_no_more_memory(tmp_path):
    memory, threads, files = zip(*states(UPDATES, tmp_path, 5, 10_000))
    # The allocator settles in the first ten thousand.
    assert max(later - earlier for earlier, later in zip(memory[1:], memory[2:])) < 1.0, memory
    assert len(set(threads)) == len(set(files)) == 1

"""Runs of the demo as the host is asked for them, and the rows of their policies."""

from __future__ import annotations

import numpy as np
import pytest

from ding_ebm.envs.registry import make_batch_env
from ding_ebm.evaluation import demo_runs as module
from ding_ebm.evaluation.checkpoint import load_policy, rollout_policy
from ding_ebm.evaluation.demo_runs import Run, evaluate, stock_config


@pytest.fixture
def demo_run(tmp_path) -> Run:
    folder = tmp_path / "demo"
    folder.mkdir()
    return Run("DPPO", "serial_onpolicy", stock_config("avoid_m1_dppo"), folder, train_iter=51)


def test_what_one_would_type_is_what_is_run_but_for_the_folder(demo_run, monkeypatch):
    monkeypatch.chdir(demo_run.folder.parent)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    job, (variable, *typed) = demo_run.job(), demo_run.typed.split()
    assert variable == "DING_EBM_DATA=demo" and job.environment["DING_EBM_DATA"] == str(demo_run.folder)
    assert typed[:3] == ["ding", "-m", "serial_onpolicy"] and typed[5:] == ["-s", "0", "--train-iter", "51"]
    assert [job.command[1:4], job.command[5:]] == [typed[1:4], typed[5:]]
    assert (demo_run.folder.parent / typed[4]).samefile(job.command[4])
    assert (job.folder, job.total, job.log.name) == (demo_run.folder, 51, "DPPO.log")
    assert job.environment["OMP_NUM_THREADS"] == "3"  # the user's word counts


def test_a_run_of_the_same_name_is_removed_and_the_last_checkpoint_is_that_of_the_latest_iteration(demo_run):
    folder = demo_run.folder / "avoid_m1_dppo_seed0"
    assert demo_run.path == folder
    (folder / "ckpt").mkdir(parents=True)
    for name in ("iteration_9", "iteration_51", "iteration_10", "ckpt_best"):
        (folder / "ckpt" / f"{name}.pth.tar").touch()
    assert demo_run.checkpoint.name == "iteration_51.pth.tar"
    demo_run.job()
    assert not folder.exists()


def test_a_row_is_the_rollout_of_the_policy_and_says_how_to_make_it_again(chunk_run, tmp_path, monkeypatch):
    monkeypatch.setattr(module.Run, "path", tmp_path / "run")
    one, policy = Run("cloning", "serial_offline", chunk_run.config, tmp_path), load_policy(*chunk_run)
    monkeypatch.chdir(tmp_path)
    result, episodes = evaluate(one, policy, 5)
    twin = rollout_policy(policy, make_batch_env("avoid_m1", 5), range(1000, 1005), keep_trajectories=True)
    assert result.mean == pytest.approx(twin.returns.mean(), abs=1e-4) and result.guidance_scale is None
    assert all(np.array_equal(a, b) for a, b in zip(episodes.trajectories, twin.trajectories))
    assert result.command == (
        "ding-ebm eval -c tiny_config.py --load-path run/ckpt/iteration_30.pth.tar --episodes 5 --seed 1000 "
        "--num-envs 5"
    )

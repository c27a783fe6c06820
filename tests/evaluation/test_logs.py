"""Logged numbers come back as they were logged."""

from __future__ import annotations

import pytest
from tensorboardX import SummaryWriter

from ding_ebm.evaluation.logs import read_scalars, scalar_names


@pytest.fixture
def run(tmp_path):
    with SummaryWriter(str(tmp_path / "log" / "serial")) as writer:
        for i, value in enumerate([0.25, 0.5, -1.0]):
            writer.add_scalar("collector_step/reward_mean", value, 5000 * (i + 1))
            writer.add_scalar("collector_iter/reward_mean", value, i)
            writer.add_scalar("evaluator_step/reward_mean", 7.0, 3_000_000_000)
    return tmp_path


def test_steps_and_values_are_those_of_the_name(run):
    steps, values = read_scalars(run, "collector_step/reward_mean")
    assert steps.tolist() == [5000, 10000, 15000]
    assert values.tolist() == [0.25, 0.5, -1.0]
    assert read_scalars(run, "evaluator_step/reward_mean")[0].tolist() == [3_000_000_000] * 3


def test_the_names_are_those_that_were_logged(run, tmp_path):
    names = {"collector_step/reward_mean", "collector_iter/reward_mean", "evaluator_step/reward_mean"}
    assert scalar_names(run) == names
    assert scalar_names(tmp_path / "elsewhere") == set()


def test_what_was_not_logged_and_a_log_that_is_cut_short_are_refused(run):
    with pytest.raises(ValueError, match="nothing was logged as 'collector_step/reward'"):
        read_scalars(run, "collector_step/reward")
    (path,) = (run / "log" / "serial").iterdir()
    whole = path.read_bytes()
    for rest in (2, 7, len(whole) - 10):
        path.write_bytes(whole[:-rest])
        with pytest.raises(ValueError, match="is cut short: its record at byte"):
            read_scalars(run, "collector_step/reward_mean")

"""The pictures of an energy hold what its diagnostics return, on rows of its task's data and of no other's."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboardX import SummaryWriter

from ding_ebm.cli import main
from ding_ebm.data.formats import Transitions, read_d4rl_hdf5, write_d4rl_hdf5
from ding_ebm.energy.diagnostics import alpha_sweep, error_profile
from ding_ebm.envs.avoid_demos import make_mode_demonstrations
from ding_ebm.evaluation import energy_pictures as module
from ding_ebm.evaluation.energy_pictures import (
    ALPHAS,
    NOISE,
    energy_of_chunks,
    read_rows,
    slice_of,
    sweep_both_starts,
    training_curves,
)
from ding_ebm.policy.trained_energy import load_energy

from .conftest import CLONING, Run, make_run

ENERGY = """
from dizoo_configs.builder import imitation

tiny = dict(
    model=dict(horizon_steps=4, act_steps=3, cond_steps=2, mlp=dict(mlp_dims=[8, 8])),
    learn=dict(train_epoch=3, iterations_per_epoch=10),
    eval=dict(evaluator=dict(eval_freq=30)),
)
main_config, create_config = imitation("energy", "energy_model", "avoid_m1", "demonstrations", dict(policy=tiny))
"""
PICTURES = {"energy_alpha.png", "energy_error.png", "energy_landscape.png"}
TABLES = {"energy_alpha.csv", "energy_error.csv"}


@pytest.fixture
def energy_run(tmp_path: Path) -> Run:
    """Of an energy that has learned nothing, of chunks of 4 actions after 2 observations."""
    return make_run(tmp_path, ENERGY)


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "demonstrations.hdf5"
    write_d4rl_hdf5(path, make_mode_demonstrations("avoid_m1", 6, seed=1))
    return path


def write_log(run: Path, prefix: str, **values: float) -> None:
    with SummaryWriter(str(run / "log" / "serial")) as writer:
        for name, value in values.items():
            for step in (0, 1000):
                writer.add_scalar(f"{prefix}{name}_avg", value * (1.0 + step), step)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(path: Path, name: str) -> list[float]:
    return [float(line[name]) for line in table(path)]


def shown(run: Run, data: Path, out: Path, *more: str) -> int:
    return main(
        ["energy", "--load-path", str(run.checkpoint.parents[1]), "--data", str(data), "--out", str(out), *more]
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["energy", *map(str, arguments)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_tables_hold_what_the_diagnostics_return(energy_run, data_file, tmp_path, capsys):
    write_log(tmp_path / "run", "learner_iter/", energy_loss=4.0, E_pos=-1.0, E_neg=1.0, top1=0.5, mi_bound=0.1)
    out = tmp_path / "new" / "pictures"
    assert shown(energy_run, data_file, out, "--seed", "3", "--rows", "50") == 0
    assert {path.name for path in out.iterdir()} == PICTURES | TABLES | {"energy_training.png"}
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in out.glob("*.png"))

    energy = load_energy(str(energy_run.checkpoint), "cpu")
    rows = read_rows(energy, data_file, 50, 3)
    energy_fn, generator = energy_of_chunks(energy, rows.obs), torch.Generator().manual_seed(3)
    torch.testing.assert_close(energy_fn(rows.action), energy(energy.obs_normalizer(rows.obs), rows.action))
    assert len(sweep_both_starts(energy_fn, rows.action, generator)) == 4
    profile = error_profile(energy_fn, rows.action, NOISE, generator, (-1.0, 1.0))
    sweep = alpha_sweep(energy_fn, rows.action, ALPHAS)
    sweeps, errors = out / "energy_alpha.csv", out / "energy_error.csv"
    assert column(sweeps, "alpha") == [*ALPHAS] * 4
    for name in ("energy", "rose", "displacement", "clip_rate"):
        assert column(sweeps, name)[: len(ALPHAS)] == pytest.approx(getattr(sweep, name).tolist(), rel=1e-5, abs=1e-9)
    assert column(errors, "noise") == [*NOISE]
    assert column(errors, "error") == pytest.approx(profile.error.mean(dim=1).tolist(), rel=1e-5)
    assert column(errors, "cosine") == pytest.approx(profile.cosine.mean(dim=1).tolist(), rel=1e-5)
    assert column(errors, "spearman")[0] == pytest.approx(profile.spearman, rel=1e-5)
    said = capsys.readouterr().out
    assert f"Spearman {profile.spearman:.3f} within a state, {profile.pooled_spearman:.3f}" in said
    assert "50 chunks" in said


def test_the_tables_are_those_of_the_seed_and_files_are_replaced(energy_run, data_file, tmp_path, capsys, monkeypatch):
    for name in ("plot_sweeps", "plot_error", "plot_slices"):
        monkeypatch.setattr(module, name, lambda path, _: None)
    tables = []
    for seed in ("1", "1", "2"):
        assert shown(energy_run, data_file, tmp_path / "out", "--seed", seed, "--rows", "20") == 0
        tables.append((tmp_path / "out" / "energy_error.csv").read_text())
    assert tables[0] == tables[1] != tables[2]
    assert {path.name for path in (tmp_path / "out").iterdir()} == TABLES
    assert "no picture of the training" in capsys.readouterr().out


def test_rows_are_the_data_in_the_units_of_the_energy(energy_run, data_file):
    energy = load_energy(str(energy_run.checkpoint), "cpu")
    rows, data = read_rows(energy, data_file, 10_000, 0), read_d4rl_hdf5(data_file)
    assert len(rows.action) == 6 * (100 - 3)  # windows of 4 within 100 steps, each once
    first = int((rows.step == 0).nonzero()[0])
    assert torch.equal(rows.obs[first, 0], rows.obs[first, 1])  # before the first there is none
    episode = next(start for start in range(0, 600, 100) if np.array_equal(data.obs[start], rows.obs[first, 1].numpy()))
    torch.testing.assert_close(rows.action[first], torch.from_numpy(data.action[episode : episode + 4]) / 0.01)


def test_a_slice_is_the_energy_of_the_chunk_with_two_numbers_changed(energy_run, data_file):
    energy = load_energy(str(energy_run.checkpoint), "cpu")
    rows = read_rows(energy, data_file, 5, 0)
    one = slice_of(energy, rows, 2, (0, 0), (0, 1))
    raw = energy.action_normalizer.inverse(rows.action[2:3]).clone()
    assert one.data == pytest.approx(raw[0, 0].tolist())
    raw[0, 0] = torch.tensor([one.x[40], one.y[7]])
    assert one.energy[7, 40] == pytest.approx(float(energy.energy(rows.obs[2:3], raw)), abs=1e-5)
    assert (one.x[0], one.x[-1]) == pytest.approx((-0.01, 0.01))


@pytest.mark.parametrize("prefix", ["learner_iter/", "learner_iter/energy/"])
def test_the_training_is_what_the_run_logged_by_itself_or_beside_a_policy(prefix, tmp_path):
    write_log(tmp_path, prefix, energy_loss=4.0, E_pos=-1.0, top1=0.25)
    curves = training_curves(tmp_path)
    assert set(curves) == {"energy_loss", "E_pos", "top1"}
    assert [numbers.tolist() for numbers in curves["E_pos"]] == [[0, 1000], [-1.0, -1001.0]]


def test_what_is_no_energy_or_no_data_of_its_task_is_refused_before_anything_is_written(
    energy_run, data_file, tmp_path, capsys
):
    (tmp_path / "cloning").mkdir()
    cloned = make_run(tmp_path / "cloning", CLONING.format(algo="gaussian_bc")).checkpoint
    cut = tmp_path / "cut.pth.tar"
    cut.write_bytes(energy_run.checkpoint.read_bytes()[:-500])
    path, out = energy_run.checkpoint, ("--out", tmp_path / "out")
    good = ("--data", data_file, *out)
    assert "is no energy: it holds" in refused(capsys, "--load-path", cloned, *good)
    assert "is damaged or cut short" in refused(capsys, "--load-path", cut, *good)
    assert "no checkpoint at" in refused(capsys, "--load-path", tmp_path / "none", *good)
    assert "nothing.hdf5" in refused(capsys, "--load-path", path, "--data", tmp_path / "nothing.hdf5", *out)
    said = refused(capsys, "--load-path", path, *good, "--log", tmp_path / "cloning" / "run")
    assert "run has no log of the training of an energy" in said

    data = read_d4rl_hdf5(data_file)
    other = tmp_path / "other.hdf5"
    wide = np.tile(data.obs, 3)[:, :11]
    write_d4rl_hdf5(other, replaced(data, obs=wide, next_obs=np.tile(data.next_obs, 3)[:, :11]))
    said = refused(capsys, "--load-path", path, "--data", other, *out)
    assert "obs has 11 dimensions, the environment has 4: is this another task's file?" in said
    write_d4rl_hdf5(other, replaced(data, action=100.0 * data.action))
    assert "action leaves [-0.01, 0.01]" in refused(capsys, "--load-path", path, "--data", other, *out)
    write_d4rl_hdf5(other, replaced(data, truncated=np.ones(len(data), bool)))
    assert "no window of horizon_steps = 4 fits" in refused(capsys, "--load-path", path, "--data", other, *out)
    assert not (tmp_path / "out").exists()


def replaced(data: Transitions, **changes: np.ndarray) -> Transitions:
    return Transitions(**{**{name: getattr(data, name) for name in data.__dataclass_fields__}, **changes})


def test_a_chunk_of_one_number_has_no_slice_and_is_refused(energy_run, monkeypatch):
    energy = load_energy(str(energy_run.checkpoint), "cpu")
    assert module._numbers(energy) == ((0, 0), (0, 1))
    monkeypatch.setattr(energy, "action_dim", 1)
    assert module._numbers(energy) == ((0, 0), (1, 0))
    monkeypatch.setattr(energy, "horizon_steps", 1)
    with pytest.raises(ValueError, match="chunks of one number"):
        module._numbers(energy)

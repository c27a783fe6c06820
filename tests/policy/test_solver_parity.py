"""The same noise gives the same sample as DI-engine's DPM-Solver, where that one is right."""

from __future__ import annotations

import math

import pytest
import torch
from ding.torch_utils.diffusion_SDE.dpm_solver_pytorch import DPM_Solver, NoiseScheduleVP
from torch import Tensor

from ding_ebm.diffusion import solvers
from ding_ebm.diffusion.oracles import GaussianMixture
from ding_ebm.diffusion.schedules import VPLinearSchedule
from ding_ebm.diffusion.solvers import make_plan, solve

SCHEDULE = VPLinearSchedule()
SKIP_TYPES = dict(time="time_uniform", log_snr="logSNR", quadratic="time_quadratic")
MIXTURE = GaussianMixture(
    torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log(),
    torch.tensor([[1.0, 0.5, -0.5], [-0.7, 0.4, 0.1], [0.2, -0.9, 0.8]]),
    torch.diag_embed(torch.tensor([[0.02, 0.1, 0.3], [0.2, 0.05, 0.1], [0.4, 0.01, 0.1]])),
)


@pytest.fixture
def default_dtype(dtype):
    # DI-engine builds its times in the default dtype.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield dtype
    torch.set_default_dtype(before)


def noise(dtype: torch.dtype, n: int = 64) -> Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


def theirs(z: Tensor, steps: int, **how: object) -> Tensor:
    solver = DPM_Solver(lambda x, t: MIXTURE.noise(SCHEDULE, x, t), NoiseScheduleVP(schedule="linear"), predict_x0=True)
    return solver.sample(z, steps=steps, **how)


def ours(z: Tensor, nfe: int, **how: object) -> Tensor:
    plan = make_plan(SCHEDULE, nfe, **how)
    return solve(plan, lambda x, i: MIXTURE.noise(SCHEDULE, x, plan.times[i]), z)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_call_of_the_paper_gives_the_same_samples(default_dtype, tolerance):
    z = noise(default_dtype)
    expected = theirs(z, 15, order=2)
    samples = ours(z, 15, method="singlestep", order=2, spacing="time")
    assert samples.dtype == default_dtype
    torch.testing.assert_close(samples, expected, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64])
@pytest.mark.parametrize("spacing", list(SKIP_TYPES))
@pytest.mark.parametrize(
    ("method", "order", "nfe"),
    [
        ("singlestep", 1, 12),
        ("singlestep", 2, 9),
        ("singlestep", 3, 9),
        ("singlestep", 3, 10),
        ("singlestep", 3, 11),
        ("multistep", 1, 12),
        ("multistep", 2, 12),
    ],
)
def test_every_method_that_is_right_there_gives_the_same_samples(default_dtype, method, order, nfe, spacing):
    z = noise(default_dtype)
    expected = theirs(z, nfe, order=order, method=method, skip_type=SKIP_TYPES[spacing])
    samples = ours(z, nfe, method=method, order=order, spacing=spacing)
    torch.testing.assert_close(samples, expected, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64])
def test_their_third_order_multistep_solver_is_of_second_order_and_ours_of_third(default_dtype):
    z = noise(default_dtype)
    how = dict(method="multistep", order=3)
    end = ours(z, 1500, spacing="log_snr", **how)

    def slope(samples: list[Tensor]) -> float:
        coarse, fine = ((x - end).norm(dim=1).median().item() for x in samples)
        return math.log2(coarse / fine)

    assert slope([ours(z, n, spacing="log_snr", **how) for n in (80, 160)]) == pytest.approx(3.0, abs=0.25)
    assert slope([theirs(z, n, skip_type="logSNR", **how) for n in (80, 160)]) == pytest.approx(2.0, abs=0.25)


@pytest.mark.parametrize("dtype", [torch.float64])
def test_at_an_even_count_they_end_with_two_first_order_steps_where_we_have_one_of_second_order(
    default_dtype, monkeypatch
):
    z = noise(default_dtype)
    expected = theirs(z, 8, order=2)
    assert (ours(z, 8, method="singlestep", order=2, spacing="time") - expected).abs().max() > 1e-3
    monkeypatch.setattr(solvers, "_singlestep_orders", lambda nfe, order: [2, 2, 2, 1, 1])
    samples = ours(z, 8, method="singlestep", order=2, spacing="time")
    torch.testing.assert_close(samples, expected, rtol=0.0, atol=1e-10)

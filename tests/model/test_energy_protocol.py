"""The check of a user's own energy refuses what would go wrong later, and any energy gives pairs and candidates.

Letters: B batch, N actions, M candidates, S context tokens, Tp predicted actions, Do observation, Da action.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ding_ebm.model.energy_model import EnergyMLP, FlatEnergy, candidate_energy, check_energy, pair_energy
from ding_ebm.model.energy_protocol import _BLOCK_ROWS as BLOCK_ROWS

OBS = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(1))
ACTION = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(2))
STEPS = torch.arange(6)


class Plain(nn.Module):
    """A user's own energy, with nothing but ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(22, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 1))
        self.calls: list[int] = []

    def forward(self, obs: Tensor, action: Tensor, k_idx: Tensor | None = None, views: object = None) -> Tensor:
        self.calls.append(len(obs))
        energy = self.net(torch.cat([obs.flatten(1), action.flatten(1)], dim=1)).squeeze(1)
        return energy if k_idx is None else energy * (1.0 + k_idx)


def total(obs: Tensor, action: Tensor) -> Tensor:
    return action.square().flatten(1).sum(1) + obs.flatten(1).sum(1)


@pytest.mark.parametrize("need_gradient", [False, True])
@pytest.mark.parametrize("make", [Plain, lambda: EnergyMLP(5, 3, 2, 4, num_steps=6), lambda: total])
def test_a_right_energy_passes_and_is_left_as_it_was(make, need_gradient):
    energy = make()
    if isinstance(energy, Plain):
        energy.net[3].eval()
    modes = [part.training for part in energy.modules()] if isinstance(energy, nn.Module) else []
    with torch.no_grad():
        check_energy(energy, OBS, ACTION, need_gradient=need_gradient)
        if energy is not total:
            check_energy(energy, OBS, ACTION, k_idx=STEPS, need_gradient=need_gradient)
    if isinstance(energy, nn.Module):
        assert [part.training for part in energy.modules()] == modes
        assert all(parameter.grad is None for parameter in energy.parameters())
    assert not ACTION.requires_grad


WRONG = {
    "a column": (lambda o, a: total(o, a).unsqueeze(1), r"shape \(B,\) = \(6,\), got \(6, 1\)"),
    "an energy for each step": (lambda o, a: a.sum(2), r"got \(6, 4\)"),
    "a mean over the batch": (lambda o, a: total(o, a).mean(), r"got \(\)"),
    "two results": (lambda o, a: (total(o, a), a), "must return a tensor .* got tuple"),
    "integers": (lambda o, a: total(o, a).long(), "floating-point, got torch.int64"),
    "NaN": (lambda o, a: (total(o, a) - 15.0).log(), "finite, got [1-6] of 6"),
    "infinity": (lambda o, a: total(o, a) / 0.0, "finite, got 6 of 6"),
    "a mean over the batch in each row": (lambda o, a: total(o, a).mean().expand(len(o)), "row 0 changes by"),
    "a normalization over the batch": (lambda o, a: total(o, a) - total(o, a).mean(), "without the other 5"),
}
WITHOUT_GRADIENT = {
    "without a graph": (torch.no_grad()(total), "computed without gradients"),
    "detached": (lambda o, a: total(o, a.detach()), "computed without gradients"),
    "of the observation alone": (lambda o, a: total(o.clone().requires_grad_(), a.detach()), "does not depend on it"),
    "of the action's sign": (lambda o, a: a.sign().flatten(1).sum(1), "zero in every row"),
    "infinite": (lambda o, a: (a - a.detach()).abs().sqrt().flatten(1).sum(1), "gradient .* must be finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_energy_is_refused(name):
    energy, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        check_energy(energy, OBS, ACTION)


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_an_energy_without_a_gradient_is_refused_where_one_is_needed_and_only_there(name):
    energy, message = WITHOUT_GRADIENT[name]
    check_energy(energy, OBS, ACTION)
    with pytest.raises(ValueError, match=message):
        check_energy(energy, OBS, ACTION, need_gradient=True)


@pytest.mark.parametrize("k_idx", [None, STEPS])
def test_any_energy_gives_pairs_and_candidates_a_block_at_a_time(k_idx, monkeypatch):
    monkeypatch.setitem(BLOCK_ROWS, "cpu", 20)
    energy = Plain().eval()
    pairs = pair_energy(energy, OBS[:5], ACTION, k_idx)
    assert pairs.shape == (5, 6) and max(energy.calls) == 18
    candidates = ACTION.repeat(6, 1, 1).view(6, 6, 4, 3) * torch.linspace(0.5, 2.0, 6).view(6, 1, 1, 1)
    energies = candidate_energy(energy, OBS, candidates, k_idx)
    every_k = candidate_energy(energy, OBS, candidates, None if k_idx is None else k_idx.repeat(6, 1).T)
    for i in range(5):
        for j in range(6):
            k = (None, None) if k_idx is None else (k_idx[j : j + 1], k_idx[i : i + 1])
            pair = energy(OBS[i : i + 1], ACTION[j : j + 1], k[0])
            torch.testing.assert_close(pairs[i, j], pair[0], rtol=1e-4, atol=1e-5)
            candidate = energy(OBS[i : i + 1], candidates[i, j : j + 1], k[1])
            torch.testing.assert_close(energies[i, j], candidate[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(every_k, energies)


def test_an_energy_with_pairs_of_its_own_is_asked_for_them():
    net = EnergyMLP(5, 3, 2, 4)
    net.forward = None
    assert torch.equal(pair_energy(net, OBS, ACTION), net.pair_energy(OBS, ACTION))
    several = ACTION.unsqueeze(1).repeat(1, 3, 1, 1)
    assert torch.equal(candidate_energy(net, OBS, several), net.candidate_energy(OBS, several))


def test_candidates_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="same number of rows, got 6 and 5"):
        candidate_energy(total, OBS, ACTION[:5].unsqueeze(1))


class Candidates(nn.Module):
    """The signature of the host's ``EBM``: (B, M, O) and (B, M, A) to (B, M)."""

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return (obs.sum(-1) - action.square().sum(-1)).view(*obs.shape[:2])


def test_a_network_of_flat_candidates_is_an_energy():
    energy = FlatEnergy(Candidates())
    check_energy(energy, OBS, ACTION, need_gradient=True)
    wanted = OBS.flatten(1).sum(1, keepdim=True) - ACTION.square().flatten(1).sum(1)
    torch.testing.assert_close(pair_energy(energy, OBS, ACTION), wanted)
    torch.testing.assert_close(candidate_energy(energy, OBS, ACTION.expand(6, 6, 4, 3)), wanted)
    with pytest.raises(ValueError, match="no k_idx"):
        energy(OBS, ACTION, STEPS)

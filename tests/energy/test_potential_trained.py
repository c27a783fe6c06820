"""What a potential from a trained energy is: reproducible only where the contrast fixes the energy's part of the state.

The toy: s ~ N(0, I), a | s ~ N(W s, sigma^2 I) in two dimensions, and an MLP trained by in-batch contrast. At its
optimum the energy is -tau log p(a | s) / p(a) + c(s): the contrast of actions for a state leaves c free, that of states
for an action too fixes it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ding_ebm.energy.potential import KFreePotential

W = torch.tensor([[1.0, 0.5], [-0.5, 1.0]])
SIGMA, TAU = 0.5, 0.5
KINDS = ("symmetric", "row")


class Expert:
    """A prior that draws the expert's actions; or, with ``marginal``, actions whatever the state is."""

    levels, num_steps = (0,), 1

    def __init__(self, marginal: bool = False) -> None:
        self.marginal = marginal

    def sample_chains(self, obs: Tensor, num: int, deterministic: bool, generator: torch.Generator) -> Tensor:
        noise = torch.randn(num, 1, 1, 1, 2, generator=generator)
        if self.marginal:  # S = W W' + sigma^2 I = 1.5 I
            return 1.5**0.5 * noise.expand(num, len(obs), 1, 1, 2)
        return (obs[:, -1] @ W.T).view(1, -1, 1, 1, 2) + SIGMA * noise


class Toy(nn.Module):
    """An energy of (s, a)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (4, width, width, width)
        layers = [layer for n, m in zip(sizes, sizes[1:]) for layer in (nn.Linear(n, m), nn.SiLU())]
        self.net = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([obs[:, -1], action[:, 0]], -1)).squeeze(-1)


def trained(kind: str, seed: int, steps: int, width: int, batch: int = 64) -> Toy:
    """An energy trained by the contrast of actions for a state ('row'), or of both ('symmetric')."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        toy = Toy(width)
    optimizer = torch.optim.Adam(toy.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    own = torch.arange(batch)
    for _ in range(steps):
        s = torch.randn(batch, 2, generator=generator)
        a = s @ W.T + SIGMA * torch.randn(batch, 2, generator=generator)
        pairs = torch.cat([s.unsqueeze(1).expand(-1, batch, -1), a.expand(batch, -1, -1)], -1)
        logits = -toy.net(pairs).squeeze(-1) / TAU
        loss = nn.functional.cross_entropy(logits, own)
        if kind == "symmetric":
            loss = 0.5 * (loss + nn.functional.cross_entropy(logits.T, own))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return toy.requires_grad_(False)


def potentials(toys: list[Toy], prior: Expert, M: int) -> Tensor:
    """phi of 300 states in units of tau, by energies of several seeds, (seeds, 300)."""
    obs = torch.randn(300, 1, 2, generator=torch.Generator().manual_seed(99))
    options = dict(beta=1.0 / TAU, M=M, use_mu_only=False, k_use_mode=[0])
    return torch.stack([KFreePotential(toy, prior, **options)(obs) / TAU for toy in toys])


def least_correlation(phi: Tensor) -> float:
    """Between two seeds' potentials over the states."""
    return float(torch.corrcoef(phi).min())


@pytest.fixture(scope="module")
def toys() -> dict[str, list[Toy]]:
    return {kind: [trained(kind, seed, steps=160, width=32) for seed in (0, 1)] for kind in KINDS}


def test_a_symmetric_contrast_gives_the_same_potential_twice_and_one_of_actions_alone_does_not(toys):
    assert least_correlation(potentials(toys["symmetric"], Expert(), 256)) > 0.9
    assert least_correlation(potentials(toys["row"], Expert(), 256)) < 0.5


def test_under_actions_of_the_marginal_a_symmetric_energys_potential_is_almost_constant(toys):
    # E[p(a | s) / p(a)] = 1 under p(a).
    for one in potentials(toys["symmetric"], Expert(marginal=True), 2048):
        assert float(one.std()) < 0.35
    assert float(potentials(toys["symmetric"][:1], Expert(), 2048).std()) > 0.7
    assert float(potentials(toys["row"][:1], Expert(marginal=True), 2048).std()) > 1.0


@pytest.mark.slow
def test_the_same_after_longer_training():
    phi, under_marginal = {}, {}
    for kind in KINDS:
        toys = [trained(kind, seed, 300, 64) for seed in range(3)]
        phi[kind] = potentials(toys, Expert(), 1024)
        under_marginal[kind] = potentials(toys, Expert(marginal=True), 8192).std(1)
    assert least_correlation(phi["symmetric"]) > 0.97
    assert least_correlation(phi["row"]) < 0.5
    assert float(under_marginal["symmetric"].max()) < 0.35
    assert float(under_marginal["row"].min()) > 1.0

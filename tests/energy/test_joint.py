"""An energy beside a policy: what each mode differentiates, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ding_ebm.energy.joint import MODES, combined_loss
from ding_ebm.energy.losses import info_nce
from ding_ebm.model.energy_model import EnergyMLP, pair_energy


class Shared(nn.Module):
    """A policy with an encoder, and an energy of what it encodes, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)
        self.energy = EnergyMLP(4, 2, 1, 1, [16])
        self.energy.dropout = nn.Dropout(0.5)

    def losses(self, mode: str, **options: object) -> tuple[Tensor, dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        obs, action = (torch.randn(8, n, generator=generator) for n in (3, 2))
        features = self.encoder(obs)

        def energy_loss(context: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            context = self.energy.dropout(context)
            loss = info_nce(pair_energy(self.energy, context.unsqueeze(1), action.unsqueeze(1)), 0.5, "row")
            return loss, {"energy_loss": loss}

        policy_loss = (self.head(features) - action).square().mean()
        return combined_loss(mode, policy_loss, self.energy, energy_loss, features, **options)

    def gradients(self, mode: str, **options: object) -> dict[str, Tensor]:
        torch.manual_seed(0)
        self.zero_grad(set_to_none=True)
        self.losses(mode, **options)[0].backward()
        return {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}


@pytest.fixture
def shared() -> Shared:
    torch.manual_seed(3)
    return Shared()


def of(part: str, gradients: dict[str, Tensor]) -> set[str]:
    return {name for name in gradients if name.startswith(part)}


def test_monitoring_gives_no_gradient_and_leaves_the_random_stream_alone(shared):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    metrics = shared.losses("monitor")[1]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not metrics["energy_loss"].requires_grad and float(metrics["energy_loss"]) > 0.0
    assert shared.energy.training
    gradients = shared.gradients("monitor")
    assert not of("energy", gradients)
    without = shared.gradients("joint", weight=0.0)
    assert gradients and all(torch.equal(gradients[name], without[name]) for name in gradients)
    # The control: in another mode dropout does draw.
    torch.manual_seed(0)
    shared.losses("joint")
    assert not torch.equal(torch.random.get_rng_state(), before)


def test_joint_gradients_are_the_policys_and_a_tenth_of_the_energys(shared):
    policy, alone, joint = shared.gradients("monitor"), shared.gradients("joint", weight=1.0), shared.gradients("joint")
    for name in of("encoder", joint):
        torch.testing.assert_close(joint[name], policy[name] + 0.1 * (alone[name] - policy[name]))
        assert (joint[name] - policy[name]).abs().max() > 1e-4
    for name in of("head", joint):
        assert torch.equal(joint[name], policy[name])
    for name in of("energy", joint):
        torch.testing.assert_close(joint[name], 0.1 * alone[name])
    detached = shared.gradients("joint", detach_context=True)
    assert all(torch.equal(detached[name], policy[name]) for name in policy)
    assert of("energy", detached) == of("energy", joint)


def test_the_energy_alone_gives_the_policy_no_gradient(shared):
    gradients = shared.gradients("energy_only")
    assert not of("encoder", gradients) and not of("head", gradients)
    expected = shared.gradients("joint", weight=1.0, detach_context=True)
    assert all(torch.equal(gradients[name], expected[name]) for name in of("energy", expected))


def test_bad_modes_and_losses_are_refused(shared):
    with pytest.raises(ValueError, match=f"mode must be one of {', '.join(MODES)}, got 'both'"):
        shared.losses("both")
    with pytest.raises(ValueError, match=r"losses must be scalars, got \(2,\) and \(\)"):
        combined_loss("joint", torch.zeros(2), None, lambda x: (x.sum(), {}), torch.zeros(1))

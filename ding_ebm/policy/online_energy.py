"""An energy that goes on learning while a policy is fine-tuned: what the base policy does against what this one did.

At states of a collection, a chunk of the frozen base policy, which was cloned from demonstrations, is the positive, and
the chunk that the fine-tuned policy has executed there is the negative, both with the same exploration. As the
discriminator of GAIL (arXiv:1606.03476) tells experts from the policy, so does this energy, in states that the policy
visits and not only in those of the demonstrations.

Potentials and rewards are of a frozen copy, so that a potential is one function for as long as a collection lasts.

Letters: N decisions, To observation history, Tp predicted actions, Do observation, Da action.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from easydict import EasyDict
from torch import Tensor

from ding_ebm.policy.base import load_optimizer
from ding_ebm.policy.energy_training import ENERGY_LOSS, EnergyLoss
from ding_ebm.policy.trained_energy import TrainedEnergy


class OnlineEnergy:
    """Trains a copy of an energy, and hands its weights over at intervals.

    Args:
        energy: What potentials and rewards are of; its network is overwritten at intervals, and nothing else.
        base: Draws from the base policy: normalized histories (B, To, Do) to normalized chunks (B, Tp, Da).
        updates: Updates after each collection.
        batch_size: States of an update.
        learning_rate: Of AdamW.
        target_every: Collections between two copies.
        temperature: Of the contrastive loss.
        generator: Of states and noise.
    """

    def __init__(
        self,
        energy: TrainedEnergy,
        base: Callable[[Tensor], Tensor],
        *,
        updates: int,
        batch_size: int,
        learning_rate: float,
        target_every: int,
        temperature: float,
        generator: torch.Generator,
    ) -> None:
        self._target, self._base, self._generator = energy, base, generator
        self._updates, self._batch_size, self._target_every = updates, batch_size, target_every
        self._network = copy.deepcopy(energy.network).requires_grad_(True).train()
        loss = EasyDict(ENERGY_LOSS, temperature=temperature)
        self._loss = EnergyLoss(loss, energy.num_steps, generator)
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=learning_rate, weight_decay=1e-6)
        self._collections = 0

    @torch.enable_grad()
    def update(self, obs: Tensor, executed: Tensor) -> dict[str, float]:
        """Learn of a collection; what is logged are means over the updates.

        Args:
            obs: Normalized histories, (N, To, Do).
            executed: Normalized chunks, (N, Tp, Da).

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        totals: dict[str, Tensor] = {}
        for _ in range(self._updates):
            rows = torch.randint(len(obs), (self._batch_size,), generator=self._generator, device=obs.device)
            some = obs[rows]
            loss, metrics = self._loss.against(self._network, some, self._base(some), executed[rows].unsqueeze(1))
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / self._updates
        if not bool(torch.isfinite(totals["energy_loss"])):
            raise FloatingPointError(f"the loss of the energy is {float(totals['energy_loss'])}; the run cannot go on")
        self._collections += 1
        if self._collections % self._target_every == 0:
            self._target.network.load_state_dict(self._network.state_dict())
        return {f"energy/{name}": float(value) for name, value in totals.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "network": self._network.state_dict(),
            "target": self._target.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "collections": self._collections,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of :meth:`state_dict`."""
        self._network.load_state_dict(state["network"])
        self._target.network.load_state_dict(state["target"])
        load_optimizer(self._optimizer, state["optimizer"])
        self._generator.set_state(state["generator"].cpu())
        self._collections = int(state["collections"])

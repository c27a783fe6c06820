"""A trained energy with the normalizers of its data, for use beside any policy of the same task.

Letters: B batch, To observation history, Tp actions of a chunk, Do observation, Da action.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ding_ebm.data.normalizer import Normalizer
from ding_ebm.energy.line_search import EnergyFn, Rescaled


class TrainedEnergy:
    """An energy in the environment's units, low where an action is preferred; its parameters are frozen.

    Args:
        network: Maps normalized histories (B, To, Do) and chunks (B, Tp, Da) to energies (B,). If it has a method
            ``bind``, from histories to the energy as a function of chunks, that is used where one state's actions are
            evaluated several times.
        obs_normalizer: Of its data.
        action_normalizer: Of its data.
        task: Name of the task that it was trained on.
        cond_steps: To.
        horizon_steps: Tp.
    """

    def __init__(
        self,
        network: nn.Module,
        obs_normalizer: Normalizer,
        action_normalizer: Normalizer,
        task: str,
        cond_steps: int,
        horizon_steps: int,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.obs_normalizer, self.action_normalizer = obs_normalizer, action_normalizer
        self._scale = 1.0 / action_normalizer.scale
        self._shift = -action_normalizer.shift * self._scale
        self.task, self.cond_steps, self.horizon_steps = task, cond_steps, horizon_steps
        self.obs_dim, self.action_dim = len(obs_normalizer.shift), len(action_normalizer.shift)

    def energy(self, obs: Tensor, action: Tensor) -> Tensor:
        """Energies, (B,), of chunks (B, Tp, Da) after histories (B, To, Do), both in the environment's units."""
        return self.bind(obs)(action)

    def bind(self, obs: Tensor) -> EnergyFn:
        """The energy as a function of chunks (B, Tp, Da), in the environment's units as the histories (B, To, Do)."""
        normalized = self.obs_normalizer(obs)
        own: Any = getattr(self.network, "bind", None)
        energy_fn = (lambda action: self.network(normalized, action)) if own is None else own(normalized)
        return Rescaled(energy_fn, self._scale, self._shift)


def load_energy(path: str, device: str | torch.device) -> TrainedEnergy:
    """The energy of a checkpoint, on a device.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint of an energy.
    """
    raise NotImplementedError("energies are not trained by this package yet")

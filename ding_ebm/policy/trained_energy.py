"""An energy that ``energy_model`` has trained, read from its checkpoint, for policies that use one.

Letters: B batch, To observation history, Tp predicted actions, Do observation, Da action, K denoising steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ding_ebm.data.normalizer import Normalizer
from ding_ebm.policy.base import read_checkpoint
from ding_ebm.policy.base_checkpoint import newest_checkpoint
from ding_ebm.policy.chunk_model import check_same
from ding_ebm.policy.energy_training import KIND, make_energy

# What an energy and the policy that uses it must agree in.
_SHARED = ("task", "obs_dim", "action_dim", "horizon_steps", "cond_steps")


class TrainedEnergy(nn.Module):
    """A frozen energy of histories and chunks in the environment's units, or in those of a policy's normalizers.

    Args:
        facts: What the checkpoint records of the energy's config.
        state: The checkpoint's model.

    Attributes:
        num_steps: K of the denoising indices that it takes, or None: it is of clean actions.
    """

    def __init__(self, facts: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        settings = {key.split(".")[1]: value for key, value in facts.items() if "." in key}
        network = next(key.split(".")[0] for key in facts if "." in key)
        self.network = make_energy({**facts, "network": network, network: settings})
        self.obs_normalizer = Normalizer(facts["obs_dim"])
        self.action_normalizer = Normalizer(facts["action_dim"])
        self.facts, self.num_steps = dict(facts), facts["denoising_steps"]
        for name, part in (
            ("network_ema", self.network),
            ("obs_normalizer", self.obs_normalizer),
            ("action_normalizer", self.action_normalizer),
        ):
            part.load_state_dict({k[len(name) + 1 :]: v for k, v in state.items() if k.startswith(f"{name}.")})
        self.requires_grad_(False).eval()

    def forward(self, obs: Tensor, action: Tensor, k_idx: Tensor | None = None, views: Any = None) -> Tensor:
        """Energies, (B,), of raw histories (B, To, Do) and raw chunks (B, Tp, Da)."""
        return self.normalized(self.obs_normalizer(obs), self.action_normalizer(action), k_idx)

    def normalized(self, obs: Tensor, action: Tensor, k_idx: Tensor | None = None, views: Any = None) -> Tensor:
        """The same of normalized ones; an energy of clean actions takes no notice of ``k_idx``."""
        return self.network(obs, action, None if self.num_steps is None else k_idx)

    def check_normalizers(self, obs_normalizer: Normalizer, action_normalizer: Normalizer, path: str) -> None:
        """Refuse a policy whose normalized units are not the energy's.

        Raises:
            ValueError: Names both values of what differs.
        """
        for name, theirs in (("obs_normalizer", obs_normalizer), ("action_normalizer", action_normalizer)):
            ours = getattr(self, name)
            for part in ("shift", "scale"):
                a, b = getattr(ours, part).cpu(), getattr(theirs, part).cpu()
                if not torch.allclose(a, b, rtol=1e-5, atol=1e-6):
                    raise ValueError(
                        f"{path} was trained in other units than the policy: {name}'s {part} is {a.tolist()} there and "
                        f"{b.tolist()} here; train both on the same data set with the same normalization"
                    )


def load_energy(path: str, model: Mapping[str, Any], denoising_steps: int | None = None) -> TrainedEnergy:
    """Read an energy for a policy.

    Args:
        path: A checkpoint of ``energy_model``, or the folder of its run.
        model: The config of the policy's model.
        denoising_steps: K of the noised actions that the policy wants energies of, or None: clean ones only.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no energy, or one of another task, other sizes, or another K; names both values.
    """
    file = newest_checkpoint(path)
    state = read_checkpoint(str(file))
    if state.get("kind") != KIND:
        raise ValueError(
            f"{file} is no energy: it holds {', '.join(sorted(map(str, state)))}, and not what energy_model records; "
            "train one by ding -m serial_offline with an energy config"
        )
    facts = state["facts"]
    check_same({key: facts[key] for key in _SHARED}, {key: model[key] for key in _SHARED}, str(file))
    steps = facts["denoising_steps"]
    if denoising_steps is not None and steps not in (None, denoising_steps):
        check_same(dict(denoising_steps=steps), dict(denoising_steps=denoising_steps), str(file))
    return TrainedEnergy(facts, state["model"])

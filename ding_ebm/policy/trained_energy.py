"""An energy that ``energy_model`` has trained, with the normalizers of its data, for use beside any policy of its task.

Letters: B batch, To observation history, Tp predicted actions, Do observation, Da action, K denoising steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ding_ebm.checkpoint import find_checkpoint, read_checkpoint
from ding_ebm.data.normalizer import Normalizer
from ding_ebm.energy.line_search import EnergyFn, Rescaled
from ding_ebm.model.bound_energy import BoundEnergyMLP, EnergyMLPWeights
from ding_ebm.model.energy_model import EnergyMLP
from ding_ebm.policy.chunk_model import check_same
from ding_ebm.policy.energy_training import KIND, make_energy


class TrainedEnergy(nn.Module):
    """A frozen energy, low where an action is preferred.

    Args:
        network: Maps normalized histories (B, To, Do) and chunks (B, Tp, Da) to energies (B,). If it has a method
            ``bind``, from histories to the energy as a function of chunks, that is used where one state's actions are
            evaluated several times.
        obs_normalizer: Of its data.
        action_normalizer: Of its data.
        task: Name of the task that it was trained on.
        cond_steps: To.
        horizon_steps: Tp.
        num_steps: K of the denoising indices that it takes, or None: it is of clean actions.
    """

    def __init__(
        self,
        network: nn.Module,
        obs_normalizer: Normalizer,
        action_normalizer: Normalizer,
        task: str,
        cond_steps: int,
        horizon_steps: int,
        num_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.network, self.obs_normalizer, self.action_normalizer = network, obs_normalizer, action_normalizer
        self.task, self.cond_steps, self.horizon_steps, self.num_steps = task, cond_steps, horizon_steps, num_steps
        self.obs_dim, self.action_dim = len(obs_normalizer.shift), len(action_normalizer.shift)
        self.requires_grad_(False).eval()

    def energy(self, obs: Tensor, action: Tensor) -> Tensor:
        """Energies, (B,), of chunks (B, Tp, Da) after histories (B, To, Do), both in the environment's units."""
        return self.bind(obs)(action)

    def bind(self, obs: Tensor) -> EnergyFn:
        """The energy as a function of chunks (B, Tp, Da), in the environment's units as the histories (B, To, Do)."""
        raw = (Normalizer(dim).to(obs.device) for dim in (self.obs_dim, self.action_dim))
        return self.binder(*raw)(obs)

    def binder(self, obs_units: Normalizer, action_units: Normalizer) -> Callable[[Tensor], EnergyFn]:
        """Maps histories, (B, To, Do), to the energy as a function of chunks, (B, Tp, Da).

        What is the same for all histories is computed here, so that neither the energy nor the units may change.

        Args:
            obs_units: What the histories are normalized by.
            action_units: What the chunks are normalized by.
        """
        network = self.network
        scale, shift = _conversion(obs_units, self.obs_normalizer)
        chunks = _conversion(action_units, self.action_normalizer)
        if isinstance(network, EnergyMLP):
            weights = EnergyMLPWeights(network, (scale, shift), chunks)
            return lambda obs: BoundEnergyMLP(weights, obs)
        bind: Any = getattr(network, "bind", None) or (lambda obs: lambda action: network(obs, action))
        return lambda obs: Rescaled(bind(obs * scale + shift), *chunks)

    def forward(self, obs: Tensor, action: Tensor, k_idx: Tensor | None = None, views: Any = None) -> Tensor:
        """Energies, (B,), of normalized histories and chunks; one of clean actions takes no notice of ``k_idx``."""
        energies: Tensor = self.network(obs, action, None if self.num_steps is None else k_idx)
        return energies

    def check_units(self, obs_normalizer: Normalizer, action_normalizer: Normalizer, path: str) -> None:
        """Refuse a policy whose normalized units are not the energy's.

        Raises:
            ValueError: Names both values of what differs.
        """
        here = dict(obs_normalizer=obs_normalizer.state_dict(), action_normalizer=action_normalizer.state_dict())
        check_same_units({name: getattr(self, name).state_dict() for name in here}, here, path)


def _conversion(here: Normalizer, there: Normalizer) -> tuple[Tensor, Tensor]:
    """Scale and shift, (D,) each, that take what one has normalized to what the other would have made of it."""
    return here.scale / there.scale, (here.shift - there.shift) / there.scale


def check_same_units(
    there: Mapping[str, Mapping[str, Tensor]], here: Mapping[str, Mapping[str, Tensor]], path: str
) -> None:
    """Refuse a checkpoint whose normalized units are not those in use.

    Args:
        there: States of the checkpoint's normalizers, by name.
        here: States of those in use, by the same names.
        path: Of the checkpoint, for the message.

    Raises:
        ValueError: Names both values of what differs.
    """
    for name, theirs in here.items():
        for part in ("shift", "scale"):
            a, b = there[name][part].cpu(), theirs[part].cpu()
            if not torch.allclose(a, b, rtol=1e-5, atol=1e-6):
                raise ValueError(
                    f"{path} was trained in other units than the policy: {name}'s {part} is {a.tolist()} there and "
                    f"{b.tolist()} here; train both on the same data set with the same normalization"
                )


def load_energy(path: str, device: str | torch.device) -> TrainedEnergy:
    """The energy of a checkpoint, or of the latest one of a run's folder, on a device.

    The run may be that of an energy, or of a policy that one was trained beside.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no checkpoint of an energy.
    """
    file = find_checkpoint(path)
    state = read_checkpoint(str(file))
    state = state.get("energy", state)
    if state.get("kind") != KIND:
        raise ValueError(
            f"{file} is no energy: it holds {', '.join(sorted(map(str, state)))}, and not what energy_model records; "
            "train one by ding -m serial_offline with an energy config"
        )
    facts = _checked_facts(state, file)
    settings = {key.split(".")[1]: value for key, value in facts.items() if "." in key}
    network = next(key.split(".")[0] for key in facts if "." in key)
    model = {**facts, "network": network, network: settings}
    parts: dict[str, Callable[[], nn.Module]] = dict(
        network_ema=lambda: make_energy(model),
        obs_normalizer=lambda: Normalizer(facts["obs_dim"]),
        action_normalizer=lambda: Normalizer(facts["action_dim"]),
    )
    lengths = (facts[key] for key in ("cond_steps", "horizon_steps", "denoising_steps"))
    return TrainedEnergy(
        *(_built(make, state["model"], name, file) for name, make in parts.items()), facts["task"], *lengths
    ).to(device)


def _checked_facts(state: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """What a checkpoint says of its energy, refused where something is missing."""
    facts = state.get("facts", {})
    needed = ("task", "obs_dim", "action_dim", "cond_steps", "horizon_steps", "denoising_steps")
    missing = [key for key in needed if key not in facts] + ["model"] * ("model" not in state)
    if missing or not any("." in key for key in facts):
        raise ValueError(f"{file} is no energy: it lacks {', '.join(missing) or 'the sizes of its network'}")
    longest = max((len(value) for value in facts.values() if isinstance(value, (list, tuple))), default=0)
    if longest > len(state["model"]):
        raise ValueError(f"{file}: the facts speak of {longest} layers, and there are {len(state['model'])} tensors")
    return facts


def _built(make: Callable[[], nn.Module], state: Mapping[str, Tensor], name: str, file: Path) -> nn.Module:
    """A module with its part of a state, made only if the state has the sizes that the checkpoint says."""
    kept = {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}
    try:
        with torch.device("meta"):  # no memory is taken
            expected = {key: value.shape for key, value in make().state_dict().items()}
    except (RuntimeError, TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise ValueError(f"{file}: no {name} can be made of what its facts say: {error}") from error
    if expected != {key: value.shape for key, value in kept.items()}:
        raise ValueError(f"{file}: the tensors of {name} do not have the names and sizes that its facts say")
    module = make()
    module.load_state_dict(kept)
    return module


def check_fits(energy: TrainedEnergy, model: Mapping[str, Any], path: str, denoising_steps: int | None = None) -> None:
    """Refuse an energy of another task or of other sizes than a policy's.

    Args:
        energy: The energy.
        model: The config of the policy's model; that of a policy over single actions, which sees one observation,
            names no task.
        path: Of the energy, for the message.
        denoising_steps: K, where the policy wants energies of noised actions too.

    Raises:
        ValueError: Names both values of everything that differs.
    """
    here = {key: model.get(key, 1) for key in ("obs_dim", "action_dim", "cond_steps", "horizon_steps")}
    if "task" in model:
        here["task"] = model["task"]
    there = {key: getattr(energy, key) for key in here}
    if denoising_steps is not None and energy.num_steps is not None:
        there["denoising_steps"], here["denoising_steps"] = energy.num_steps, denoising_steps
    check_same(there, here, path)

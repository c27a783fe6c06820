"""Better actions at test time by an energy, for every policy: the best of N samples, then descent.

Its settings are in ``eval`` of every policy's config, and off by default. A policy hands over how it samples, and
gets actions back; see :func:`~ding_ebm.energy.correction.correct` for the descent and what bounds it.

Letters: E environments, N candidates, To observation history, Tp actions of a chunk, Do observation, Da action.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ding_ebm.config import Rule, choice, flag, integer, number, optional, sequence, text
from ding_ebm.energy.correction import CLIPS, best_of_n, correct
from ding_ebm.energy.line_search import EnergyFn
from ding_ebm.model.energy_model import EnergyMLP
from ding_ebm.model.kept import Kept
from ding_ebm.policy.chunk_model import raise_problems
from ding_ebm.policy.trained_energy import check_fits, load_energy

# Instead of a path: minus the policy's own critic.
CRITIC = "critic"
# Normalized actions lie in it.
BOUNDS = (-1.0, 1.0)

ENERGY_CORRECTION = dict(
    # (str) Checkpoint of a trained energy, or 'critic': minus the policy's own critic, where it has one of actions.
    energy_checkpoint="",
    # (int) N, number of actions that the policy samples for each one executed, that of least energy; 1: no choice.
    energy_candidates=1,
    # (int) Steps down the energy, from the chosen action; 0: none.
    energy_correction_steps=0,
    # (float) Length of a step, in squared units of a normalized action by those of the energy.
    energy_alpha=0.1,
    # (str or None) Bound on a step: 'range' (each number by a share of its range), 'original_norm' or 'current_norm'
    # (the chunk by a share of its norm, as sampled or as it is); None: no bound.
    energy_clip="range",
    # (float) That share.
    energy_clip_frac=0.2,
    # (bool) Whether only the first action of a chunk is corrected.
    correct_first_only=False,
    # (list of bool or None) Which dimensions of an action are corrected; None: all.
    energy_dims=None,
    # (bool) Whether a step is shortened until the energy does not rise.
    energy_line_search=True,
    # (float) Temperature of Langevin dynamics, in units of the energy; above 0 it needs energy_line_search=False.
    energy_noise=0.0,
)
ENERGY_CORRECTION_RULES: dict[str, Rule] = {
    "eval.energy_checkpoint": text(empty=True),
    "eval.energy_candidates": integer(1),
    "eval.energy_correction_steps": integer(0),
    "eval.energy_alpha": number(0.0),
    "eval.energy_clip": optional(choice(*(clip for clip in CLIPS if clip is not None))),
    "eval.energy_clip_frac": number(0.0, above=True),
    "eval.correct_first_only": flag(),
    "eval.energy_dims": optional(sequence(flag())),
    "eval.energy_line_search": flag(),
    "eval.energy_noise": number(0.0),
}

# Maps normalized histories and chunks (E, Tp, Da) to energies (E,).
CriticEnergy = Callable[[Tensor, Tensor], Tensor]


def is_on(settings: Mapping[str, Any]) -> bool:
    """Whether the settings, ``eval`` of a policy's config, ask for an energy at all."""
    return settings["energy_correction_steps"] > 0 or settings["energy_candidates"] > 1


def check_energy_correction(cfg: Mapping[str, Any], has_critic: bool) -> None:
    """Refuse settings that do not go together.

    Raises:
        ConfigError: Names all of them.
    """
    settings, problems = cfg["eval"], []
    path, dims, action_dim = settings["energy_checkpoint"], settings["energy_dims"], cfg["model"]["action_dim"]
    if is_on(settings) and not path:
        wanted = ", ".join(f"eval.{key} is {settings[key]}" for key in ("energy_candidates", "energy_correction_steps"))
        problems.append(f"eval.energy_checkpoint must name an energy: {wanted}")
    if path == CRITIC and not has_critic:
        problems.append(
            f"eval.energy_checkpoint is {CRITIC!r}, but {cfg['type']} has no critic of actions: give the checkpoint of "
            "a trained energy"
        )
    if settings["energy_noise"] > 0.0 and settings["energy_line_search"]:
        problems.append(
            "eval.energy_noise above 0 needs eval.energy_line_search=False: no step of a line search raises the "
            "energy, as noise must"
        )
    if dims is not None and len(dims) != action_dim:
        problems.append(f"eval.energy_dims must have one entry for each of {action_dim} action dimensions, got {dims}")
    raise_problems(problems)


def make_energy_correction(
    cfg: Any, model: nn.Module, critic_energy: CriticEnergy | None, generator: torch.Generator
) -> EnergyCorrection | None:
    """What the policy's config asks for; None, and nothing is read, if that is nothing.

    Args:
        cfg: The policy's config.
        model: Holds ``obs_normalizer`` and ``action_normalizer``.
        critic_energy: Minus the policy's critic in normalized units, or None.
        generator: Of noise, on the model's device.

    Raises:
        FileNotFoundError: If the energy's checkpoint is missing.
        ValueError: If it is no energy, or of another task or other dimensions than the policy; names both values.
    """
    if not is_on(cfg.eval):
        return None
    path = cfg.eval.energy_checkpoint
    if path == CRITIC:
        assert critic_energy is not None
        return EnergyCorrection(cfg.eval, lambda _, seen: lambda action: critic_energy(seen, action), generator)
    energy = load_energy(path, generator.device)
    check_fits(energy, cfg.model, f"eval.energy_checkpoint {path}")
    binder: Kept[Callable[[Tensor], EnergyFn]] = Kept()  # the policy's units are known when its state is loaded
    units = model.obs_normalizer, model.action_normalizer
    numbers = [x for normalizer in units for x in (normalizer.scale, normalizer.shift)]

    def bind(obs: Tensor, normalized: Tensor) -> EnergyFn:
        return binder.get([x._version for x in numbers], lambda: energy.binder(*units))(normalized.view_as(obs))

    return EnergyCorrection(cfg.eval, bind, generator, autograd=not isinstance(energy.network, EnergyMLP))


class EnergyCorrection:
    """Samples of a policy made better by an energy, and what that changed since the last :meth:`reset`.

    Args:
        settings: ``eval`` of a policy's config.
        bind: From observations in the environment's units (E, To, Do), and the same as the policy normalizes them, to
            the energy as a function of normalized chunks (E, Tp, Da).
        generator: Of noise.
        autograd: Whether the energy's gradients are autograd's, and not its own.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        bind: Callable[[Tensor, Tensor], EnergyFn],
        generator: torch.Generator,
        autograd: bool = True,
    ) -> None:
        self._bind, self._candidates, self._autograd = bind, settings["energy_candidates"], autograd
        self._descent = dict(
            steps=settings["energy_correction_steps"],
            alpha=settings["energy_alpha"],
            clip=settings["energy_clip"],
            clip_frac=settings["energy_clip_frac"],
            bounds=BOUNDS,
            first_only=settings["correct_first_only"],
            dims=settings["energy_dims"],
            line_search=settings["energy_line_search"],
            noise=settings["energy_noise"],
            generator=generator,
        )
        self.reset()

    @property
    def name(self) -> str:
        """What is done, for tables: ``best of 4 + 3 steps``."""
        parts = [f"best of {self._candidates}"] if self._candidates > 1 else []
        steps = self._descent["steps"]
        return " + ".join(parts + ([f"{steps} step{'s' if steps > 1 else ''}"] if steps else []))

    def reset(self) -> None:
        """Forget what was observed."""
        self._sums = dict.fromkeys(
            ("calls", "rows", "before", "after", "displacement", "clip_rate", "accept_rate", "sampling", "energy"), 0.0
        )

    def __call__(self, obs: Tensor, normalized: Tensor, sample: Callable[[Tensor], Tensor]) -> Tensor:
        """Corrected chunks, (E, Tp, Da), in normalized units.

        Args:
            obs: Observation histories in the environment's units, (E, To, Do).
            normalized: The same as ``sample`` takes them, (E, ...).
            sample: From rows of them, (R, ...), to normalized chunks (R, Tp, Da).
        """
        start, count = time.perf_counter(), self._candidates
        drawn = sample(normalized.repeat(count, *(1,) * (normalized.ndim - 1)) if count > 1 else normalized)
        if drawn.is_cuda:
            torch.cuda.synchronize(drawn.device)
        middle = time.perf_counter()
        with torch.no_grad() if self._autograd else torch.inference_mode():  # the latter is faster
            energy_fn = self._bind(obs, normalized)
            first, chosen = None, drawn
            if count > 1:
                chosen, _, energies = best_of_n(energy_fn, drawn.unflatten(0, (count, len(obs))))
                first = energies[0]
            action, info = correct(energy_fn, chosen, **self._descent)
        rows = len(obs)
        before = info.energy_before if first is None else first
        self._add(
            calls=1,
            rows=rows,
            before=sum(before.tolist()),
            after=sum(info.energy_after.tolist()),
            displacement=sum(info.displacement.tolist()),
            clip_rate=rows * info.clip_rate,
            accept_rate=rows * info.accept_rate,
            sampling=1e3 * (middle - start),
            energy=1e3 * (time.perf_counter() - middle),
        )
        return action

    def _add(self, **values: float) -> None:
        for key, value in values.items():
            self._sums[key] += value

    def averages(self) -> dict[str, float]:
        """What was observed.

        Returns:
            ``decisions``: number of rows. Averages over them: ``energy_before`` of the first sample, ``energy_after``
            of the action, ``displacement`` by the descent (norm in normalized units), ``clip_rate`` and
            ``accept_rate`` of its steps. Averages over calls: ``sampling_ms`` and ``energy_ms``, wall time.

        Raises:
            ValueError: If nothing was observed.
        """
        sums = self._sums
        if not sums["calls"]:
            raise ValueError("nothing was corrected since the last reset")
        rows = {key: sums[key] / sums["rows"] for key in ("displacement", "clip_rate", "accept_rate")}
        return dict(
            decisions=sums["rows"],
            energy_before=sums["before"] / sums["rows"],
            energy_after=sums["after"] / sums["rows"],
            **rows,
            sampling_ms=sums["sampling"] / sums["calls"],
            energy_ms=sums["energy"] / sums["calls"],
        )

    def summary(self) -> str:
        """:meth:`averages` in a line."""
        if not self._sums["calls"]:
            return f"{self.name}: nothing was corrected"
        a = self.averages()
        return (
            f"{self.name}: energy {a['energy_before']:.4g} to {a['energy_after']:.4g} over {a['decisions']:.0f} "
            f"decisions, moved by {a['displacement']:.3g}, {100 * a['clip_rate']:.1f} % of steps clipped, "
            f"{100 * a['accept_rate']:.1f} % at full length; {a['energy_ms']:.2f} ms a call beside "
            f"{a['sampling_ms']:.2f} ms of sampling"
        )

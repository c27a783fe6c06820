"""Normalization of energies by statistics of each denoising index.

Energies of noisy actions and of clean ones differ in level and spread; what compares or adds them over denoising
indices needs them on one scale.

Letters: N energies of a call, K denoising steps, W energies kept of each index.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ESTIMATORS = ("ring", "ema")
# Makes the median absolute deviation of a normal distribution its standard deviation.
_MAD_TO_STD = 1.4826


class EnergyScalerPerK(nn.Module):
    """(E - location_k) / (scale_k + eps), with statistics of the energies seen at each k = 0 .. K.

    Location and scale are the interpolated median and 1.4826 times the median absolute deviation, or mean and
    standard deviation. An index with fewer than ``min_group`` energies so far is left as it is. Statistics are kept in
    float64 whatever the energies are, as buffers.

    Args:
        K: Denoising steps; indices are 0 to K.
        momentum: Share of the old statistics that an update of ``ema`` leaves.
        eps: Added to the scale.
        use_mad: Median and absolute deviation; else mean and standard deviation.
        estimator: ``ring``: statistics of the latest ``window`` energies of each index. ``ema``: moving averages of
            the statistics of groups, bias-corrected; the spread of the groups' locations counts towards the scale.
        window: W of the ring.
        min_group: Least number of energies that statistics are taken of. ``ema`` collects smaller groups until there
            are as many.
        min_scale: Least scale.
        clip: Bound on the absolute value of a normalized energy, or None.

    Raises:
        ValueError: If an argument is out of range.
    """

    ring: Tensor
    pending: Tensor
    count: Tensor
    moments: Tensor
    updates: Tensor
    is_frozen: Tensor

    def __init__(
        self,
        K: int,
        momentum: float = 0.99,
        eps: float = 1e-6,
        use_mad: bool = True,
        *,
        estimator: str = "ring",
        window: int = 4096,
        min_group: int = 8,
        min_scale: float = 1e-3,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        if K < 1:
            raise ValueError(f"K must be at least 1, got {K}")
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {ESTIMATORS}, got {estimator!r}")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if not 2 <= min_group <= window:
            raise ValueError(f"min_group must be from 2 to the window of {window}, got {min_group}")
        if not min_scale > 0.0 or eps < 0.0 or (clip is not None and not clip > 0.0):
            raise ValueError(f"min_scale and clip must be > 0 and eps >= 0, got {min_scale}, {clip} and {eps}")
        self.K, self.momentum, self.eps, self.use_mad = K, momentum, eps, use_mad
        self.estimator, self.min_group, self.min_scale, self.clip = estimator, min_group, min_scale, clip
        width = window if estimator == "ring" else min_group
        # Of ``ring`` the latest energies, of ``ema`` those of groups that are too small yet; NaN where there is none.
        self.register_buffer("ring", torch.full((K + 1, width), torch.nan, dtype=torch.float64))
        self.register_buffer("pending", torch.zeros(K + 1, dtype=torch.int64))
        self.register_buffer("count", torch.zeros(K + 1, dtype=torch.int64))
        # Averages of a group's location, its square and the squared scale, before the correction of their bias.
        self.register_buffer("moments", torch.zeros(K + 1, 3, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros(K + 1, dtype=torch.int64))
        self.register_buffer("is_frozen", torch.zeros((), dtype=torch.bool))
        self.frozen = False
        self._cached: tuple[Tensor, Tensor] | None = None
        self.register_load_state_dict_post_hook(_after_loading)

    def _apply(self, fn: Any, recurse: bool = True) -> EnergyScalerPerK:
        self._cached = None
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def reset(self) -> None:
        """Forget all energies, and thaw."""
        self.ring.fill_(torch.nan)
        for buffer in (self.pending, self.count, self.moments, self.updates):
            buffer.zero_()
        self.freeze(False)
        self._cached = None

    def freeze(self, frozen: bool = True) -> None:
        """Refuse further updates, or allow them again: a potential must be one function of the state."""
        self.frozen = frozen
        self.is_frozen.fill_(frozen)

    @torch.no_grad()
    def update(self, k_vec: Tensor, E_vec: Tensor) -> None:
        """Take energies into account.

        Args:
            k_vec: Denoising index of each energy, int64.
            E_vec: Energies, in the same shape.

        Raises:
            ValueError: If shapes differ, an index is not from 0 to K, an energy is not finite, or the scaler is
                frozen; nothing is taken then.
        """
        if self.frozen:
            raise ValueError("the scaler is frozen: freeze(False) lets it take energies again")
        k, energy = self._checked(k_vec, E_vec)
        k, energy = k.flatten(), energy.flatten().to(self.ring)
        if self.estimator == "ring":
            width = self.ring.shape[1]
            for k_part, energy_part in zip(k.split(width), energy.split(width)):
                sizes, place = _sizes_and_places(k_part, self.K + 1)
                self.ring[k_part, (self.count[k_part] + place) % width] = energy_part
                self.count += sizes
        else:
            self._update_averages(k, energy)
        self._cached = None

    def _update_averages(self, k: Tensor, energy: Tensor) -> None:
        sizes, place = _sizes_and_places(k, self.K + 1)
        total = self.pending + sizes
        held = self.ring.shape[1]
        groups = self.ring.new_full((self.K + 1, max(held, int(total.max()))), torch.nan)
        groups[:, :held] = self.ring
        groups[k, self.pending[k] + place] = energy
        full = total >= self.min_group
        location, scale = self._statistics_of(groups, total)
        new = torch.stack([location, location.square(), scale.square()], dim=-1)
        mixed = self.momentum * self.moments + (1.0 - self.momentum) * new
        self.moments.copy_(torch.where(full.unsqueeze(-1), mixed, self.moments))
        self.ring.copy_(torch.where(full.unsqueeze(-1), torch.nan, groups[:, :held]))
        self.pending.copy_(total.masked_fill(full, 0))
        self.updates += full
        self.count += sizes

    def normalize(self, k_vec: Tensor, E_vec: Tensor) -> Tensor:
        """Normalized energies, in the shape and dtype of ``E_vec``; differentiable in them.

        Args:
            k_vec: Denoising index of each energy, int64.
            E_vec: Energies, in the same shape.

        Raises:
            ValueError: As :meth:`update`, but for the freezing.
        """
        k, energy = self._checked(k_vec, E_vec)
        location, scale = self.statistics()
        known = self._is_known()
        scale = torch.where(known, scale + self.eps, 1.0)
        result = (energy - location.to(energy.dtype)[k]) / scale.to(energy.dtype)[k]
        return result if self.clip is None else result.clamp(-self.clip, self.clip)

    @torch.no_grad()
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Location and scale of each index, (K + 1,) float64; 0 and 1 where too few energies were seen."""
        if self._cached is None:
            known = self._is_known()
            if self.estimator == "ring":
                location, scale = self._statistics_of(self.ring, self.count.clamp(max=self.ring.shape[1]))
            else:
                bias = 1.0 - self.momentum ** self.updates.clamp(min=1).to(self.moments.dtype)
                location, square, variance = (self.moments / bias.unsqueeze(-1)).unbind(-1)
                scale = (variance + (square - location.square()).clamp(min=0.0)).sqrt()
            scale = torch.where(known, scale.clamp(min=self.min_scale), 1.0)
            self._cached = torch.where(known, location, 0.0), scale
        return self._cached

    def get_stats(self, k: int) -> dict[str, float]:
        """Location and scale of an index under the names ``mean`` and ``std``, and ``count``, the energies seen."""
        if not 0 <= k <= self.K:
            raise ValueError(f"k must be from 0 to K = {self.K}, got {k}")
        location, scale = self.statistics()
        return dict(mean=float(location[k]), std=float(scale[k]), count=int(self.count[k]))

    def _is_known(self) -> Tensor:
        return self.count >= self.min_group if self.estimator == "ring" else self.updates > 0

    def _statistics_of(self, rows: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of the first ``count`` numbers of each row, the others NaN; anything where that is 0."""
        if self.use_mad:
            location = _row_medians(rows, count)
            return location, _MAD_TO_STD * _row_medians((rows - location.unsqueeze(-1)).abs(), count)
        location = torch.nan_to_num(rows.nanmean(-1))
        return location, torch.nan_to_num((rows - location.unsqueeze(-1)).square().nanmean(-1)).sqrt()

    def _checked(self, k_vec: Tensor, E_vec: Tensor) -> tuple[Tensor, Tensor]:
        k, energy = torch.as_tensor(k_vec, device=self.ring.device), torch.as_tensor(E_vec, device=self.ring.device)
        if k.dtype != torch.int64 or not energy.is_floating_point():
            raise ValueError(f"k_vec must be int64 and E_vec floating, got {k.dtype} and {energy.dtype}")
        if k.shape != energy.shape:
            raise ValueError(f"k_vec and E_vec must have one shape, got {tuple(k.shape)} and {tuple(energy.shape)}")
        wrong = torch.stack([(k < 0) | (k > self.K), ~torch.isfinite(energy)]).flatten(1)
        if bool(wrong.any()):
            place = int(wrong.any(0).nonzero()[0])
            raise ValueError(
                f"k must be from 0 to K = {self.K} and energies finite, got k = {int(k.flatten()[place])} and "
                f"E = {float(energy.flatten()[place])} at {place}"
            )
        return k, energy


def _after_loading(scaler: nn.Module, incompatible: Any) -> None:
    assert isinstance(scaler, EnergyScalerPerK)
    scaler.frozen, scaler._cached = bool(scaler.is_frozen), None


def _sizes_and_places(k: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Number of entries of each index, (groups,), and of each entry its number among those of its index, (N,)."""
    sizes = torch.zeros(groups, dtype=torch.int64, device=k.device).index_add_(0, k, torch.ones_like(k))
    order = torch.argsort(k, stable=True)
    first = sizes.cumsum(0) - sizes
    place = torch.empty_like(k)
    place[order] = torch.arange(len(k), device=k.device) - first[k[order]]
    return sizes, place


def _row_medians(rows: Tensor, count: Tensor) -> Tensor:
    """Interpolated median of the numbers of each row, (R,); ``count`` of them are not NaN, and 0 is answered by 0."""
    ordered = rows.sort(dim=-1).values  # NaN comes last
    middle = torch.stack([(count - 1).clamp(min=0) // 2, count // 2], dim=-1)
    return torch.nan_to_num(ordered.gather(-1, middle.clamp(max=rows.shape[1] - 1)).mean(-1))

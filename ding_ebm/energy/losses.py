"""Losses that train an energy, and what they show while they do.

What an energy is after training depends on the loss. With the negatives of the batch, which have the marginal law p(a)
of the data's actions, it is -tau log(p(a|s) / p(a)) + c(s): the pointwise mutual information, whose minimum lies beyond
the expert's action. With uniform negatives it is -tau log p(a|s) + c(s), and the minimum is right. c(s) is arbitrary
but for the symmetric loss, where it is one number: only that energy says anything of a state.

Letters: B batch, M negatives of a row, Tp predicted actions, Da action, tau the temperature, sigma a noise level.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ding_ebm.model.energy_protocol import Energy

KINDS = ("row", "column", "symmetric")


def info_nce(
    energies: Tensor, temperature: float = 0.5, kind: str = "symmetric", false_negatives: Tensor | None = None
) -> Tensor:
    """Contrastive loss of a batch whose own rows are its negatives, in nats; log B where the energy knows nothing.

    Args:
        energies: Energy of action j in context i at [i, j], the data's pairs on the diagonal, (B, B) with B >= 2.
        temperature: tau > 0.
        kind: ``row``: actions compete for a context, -mean_i log softmax_j(-E_ij / tau)[i]. ``column``: contexts
            compete for an action. ``symmetric``: the mean of the two, without which the energy of a state has an
            arbitrary level.
        false_negatives: (B, B) bool, True where a pair is not to count as a negative, for instance because both are of
            one episode. Its diagonal is not read.

    Source:
        van den Oord et al. 2018 (arXiv:1807.03748); both directions as in Radford et al. 2021 (arXiv:2103.00020).
    """
    if energies.ndim != 2 or energies.shape[0] != energies.shape[1] or len(energies) < 2:
        raise ValueError(f"energies must be (B, B) with B >= 2, got {tuple(energies.shape)}")
    logits = -energies / _checked_temperature(temperature)
    if false_negatives is not None:
        if false_negatives.shape != energies.shape or false_negatives.dtype != torch.bool:
            got = f"{false_negatives.dtype} {tuple(false_negatives.shape)}"
            raise ValueError(f"false_negatives must be bool {tuple(energies.shape)}, True where dropped, got {got}")
        diagonal = torch.eye(len(energies), dtype=torch.bool, device=energies.device)
        logits = logits.masked_fill(false_negatives & ~diagonal, -math.inf)
    positives = torch.arange(len(energies), device=energies.device)
    if kind == "row":
        return F.cross_entropy(logits, positives)
    if kind == "column":
        return F.cross_entropy(logits.t(), positives)
    if kind == "symmetric":
        return 0.5 * (F.cross_entropy(logits, positives) + F.cross_entropy(logits.t(), positives))
    raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")


def info_nce_negatives(positive: Tensor, negative: Tensor, temperature: float = 0.5) -> Tensor:
    """Contrastive loss of each row against negatives of its own, in nats; log(M + 1) where the energy knows nothing.

    Args:
        positive: Energies of the data's pairs, (B,).
        negative: Energies of M other actions in the same contexts, (B, M).
        temperature: tau > 0.

    Source:
        Florence et al. 2021 (arXiv:2109.00137), with uniform negatives.
    """
    _check_negatives(positive, negative)
    logits = torch.cat([positive.unsqueeze(1), negative], dim=1) / -_checked_temperature(temperature)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


def dsm_loss(
    energy: Energy,
    obs: Tensor,
    action: Tensor,
    sigma: float | Tensor,
    generator: torch.Generator,
    temperature: float = 1.0,
    k_idx: Tensor | None = None,
) -> Tensor:
    """Denoising score matching: mean of (sigma grad E(s, a + sigma eps) / tau - eps)^2 over rows, steps and dimensions.

    The energy becomes -tau log p_sigma(a|s) + c(s), p_sigma being the law of the data's actions with that noise: no
    negatives, and no bias towards rare actions. 1 where the energy has no gradient.

    Args:
        energy: Differentiable twice, so not with ``relu``.
        obs: (B, To, Do).
        action: (B, Tp, Da).
        sigma: Standard deviation of the noise, > 0, in normalized units: one, or one for each row, (B,).
        generator: Of the noise.
        temperature: tau > 0; 1 makes exp(-E) the density.
        k_idx: (B,) int64 for an energy of noised actions; then sigma is that of each row's k.

    Source:
        Vincent 2011 (Neural Computation 23:1661); for energies Song and Kingma 2021 (arXiv:2101.03288), section 3.
    """
    scale = torch.as_tensor(sigma, dtype=action.dtype, device=action.device).view(-1, *(1,) * (action.ndim - 1))
    if len(scale) not in (1, len(action)) or not bool((scale > 0.0).all()):
        raise ValueError(f"sigma must be positive, one number or (B,) = ({len(action)},), got {sigma}")
    noise = torch.randn(action.shape, dtype=action.dtype, device=action.device, generator=generator)
    grad = _gradient(energy, obs, action + scale * noise, k_idx)
    return F.mse_loss(scale * grad / _checked_temperature(temperature), noise)


def gradient_penalty(
    energy: Energy, obs: Tensor, action: Tensor, margin: float = 1.0, k_idx: Tensor | None = None
) -> Tensor:
    """Mean over rows of max(0, max_j |dE/da_j| - margin)^2, which keeps an energy smooth enough to descend.

    Args:
        energy: Differentiable twice.
        obs: (B, To, Do).
        action: Where the slope is bounded, (B, Tp, Da); most often negatives.
        margin: The largest slope that costs nothing, in energy per normalized unit.
        k_idx: (B,) int64 or None.

    Source:
        Florence et al. 2021 (arXiv:2109.00137), appendix B.3.1.
    """
    slope = _gradient(energy, obs, action, k_idx).flatten(1).abs().amax(dim=1)
    return F.relu(slope - margin).square().mean()


def off_diagonal(energies: Tensor) -> Tensor:
    """What stands beside the diagonal of a (B, B) matrix, row by row, (B, B - 1)."""
    size = len(energies)
    return energies.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


@torch.no_grad()
def energy_metrics(positive: Tensor, negative: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """What a log should show of a contrastive batch; tensors without shape, so that nothing waits for the device.

    That positives have less energy than negatives does not make an energy good to descend: its minimum may still lie
    far from the data.

    Args:
        positive: Energies of the data's pairs, (B,): the diagonal of an in-batch matrix.
        negative: Energies of M negatives of each, (B, M): its :func:`off_diagonal`.
        loss: The contrastive loss of them, in nats.

    Returns:
        ``E_pos`` and ``E_neg``, the mean energies; ``gap``, E_neg - E_pos; ``top1``, the share of rows whose positive
        is below all its negatives; ``mi_bound``, log(M + 1) - loss: where negatives have the marginal law of the data's
        actions and none is dropped, the mutual information of context and action is at least its expectation, in nats.
    """
    _check_negatives(positive, negative)
    E_pos, E_neg = positive.mean(), negative.mean()
    return {
        "E_pos": E_pos,
        "E_neg": E_neg,
        "gap": E_neg - E_pos,
        "top1": (positive < negative.amin(dim=1)).to(positive.dtype).mean(),
        "mi_bound": math.log(negative.shape[1] + 1) - loss,
    }


def _gradient(energy: Energy, obs: Tensor, action: Tensor, k_idx: Tensor | None) -> Tensor:
    """dE/da, (B, Tp, Da), itself differentiable in what the energy is made of."""
    action = action.detach().requires_grad_()
    with torch.enable_grad():
        values = energy(obs, action) if k_idx is None else energy(obs, action, k_idx)
        (grad,) = torch.autograd.grad(values.sum(), action, create_graph=True)
    return grad


def _checked_temperature(temperature: float) -> float:
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return temperature


def _check_negatives(positive: Tensor, negative: Tensor) -> None:
    if positive.ndim != 1 or negative.ndim != 2 or len(negative) != len(positive) or negative.shape[1] < 1:
        raise ValueError(
            f"energies must be (B,) of positives and (B, M) of negatives, M >= 1, got {tuple(positive.shape)} and "
            f"{tuple(negative.shape)}"
        )

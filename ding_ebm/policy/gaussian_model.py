"""Config, rules and registered models of the policies whose action chunks are Gaussian or a mixture of Gaussians.

Letters: To observation history, Tp predicted actions, Do observation, Da action, C components of a mixture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ding.utils import MODEL_REGISTRY

from ding_ebm.config import Rule, flag, integer, number, sequence
from ding_ebm.model.gaussian import GaussianMixtureMLP, GaussianMLP
from ding_ebm.policy.chunk_model import CHUNK_MODEL, CHUNK_RULES, MLP, MLP_RULES, AveragedChunkModel

# Sizes of the published Gaussian policies of the locomotion tasks.
GAUSSIAN_MODEL = dict(
    CHUNK_MODEL,
    mlp=dict(MLP, mlp_dims=[256, 256, 256], activation="mish", residual=False),
    # (float) Standard deviation in normalized units, or where a learned one begins.
    std=0.1,
    # (bool) Whether it is learned, one number for each action dimension (and component), the same in all states.
    learn_std=False,
    # (list of float) Lowest and highest value of a learned one.
    std_bounds=[0.01, 1.0],
)
MIXTURE_MODEL = dict(
    GAUSSIAN_MODEL,
    # (int) C, number of components.
    num_modes=5,
)
GAUSSIAN_RULES: dict[str, Rule] = {
    **CHUNK_RULES,
    **MLP_RULES,
    "model.std": number(0.0, above=True),
    "model.learn_std": flag(),
    "model.std_bounds": sequence(number(0.0, above=True), 2),
}
MIXTURE_RULES: dict[str, Rule] = {**GAUSSIAN_RULES, "model.num_modes": integer(1)}


def network_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a Gaussian network and a mixture both take of their model's config."""
    names = ("obs_dim", "action_dim", "cond_steps", "horizon_steps", "std", "learn_std", "std_bounds")
    return {**model["mlp"], **{name: model[name] for name in names}}


@MODEL_REGISTRY.register("ebm_chunk_gaussian")
class ChunkGaussianModel(AveragedChunkModel):
    """The Gaussian network that a config asks for."""

    def __init__(self, **model: Any) -> None:
        super().__init__(GaussianMLP(**network_options(model)), model)


@MODEL_REGISTRY.register("ebm_chunk_mixture")
class ChunkMixtureModel(AveragedChunkModel):
    """The mixture network that a config asks for."""

    def __init__(self, **model: Any) -> None:
        super().__init__(GaussianMixtureMLP(num_modes=model["num_modes"], **network_options(model)), model)

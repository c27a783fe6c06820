"""Policies of DI-engine, one algorithm a file; importing the package registers all of them."""

from ding_ebm.policy import diffusion_bc, dppo, dppo_ebm, energy_model, gaussian_bc, gmm_bc, qgpo

__all__ = ["diffusion_bc", "dppo", "dppo_ebm", "energy_model", "gaussian_bc", "gmm_bc", "qgpo"]

"""Policies of DI-engine, one algorithm a file; importing the package registers all of them."""

from ding_ebm.policy import qgpo

__all__ = ["qgpo"]

"""What DI-engine's pipelines load from us beside policies; importing the package registers all of it."""

from ding_ebm.host import datasets, env, hooks

__all__ = ["datasets", "env", "hooks"]

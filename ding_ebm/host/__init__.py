"""What DI-engine's pipelines load from us beside policies; importing the package registers all of it."""

from ding_ebm.host import buffer, collector, datasets, env, hooks, vector_env

__all__ = ["buffer", "collector", "datasets", "env", "hooks", "vector_env"]

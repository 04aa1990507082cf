"""Multi-view diffusion for novel view synthesis in JAX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from escherjax.pipeline import Pipeline, load

__all__ = ["Pipeline", "load"]


def __getattr__(name: str):
    """Loads the pipeline on first use, so that commands can print help at once."""
    if name in __all__:
        from escherjax import pipeline

        return getattr(pipeline, name)
    if name in ("cameras", "cape", "metrics"):
        import importlib

        return importlib.import_module(f"escherjax.{name}")
    raise AttributeError(f"module 'escherjax' has no attribute {name!r}")

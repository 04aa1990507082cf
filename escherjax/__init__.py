"""Multi-view diffusion for novel view synthesis in JAX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from escherjax.sample.loading import load
    from escherjax.sample.pipeline import Pipeline

__all__ = ["Pipeline", "load"]

_HOME = {"Pipeline": "escherjax.sample.pipeline", "load": "escherjax.sample.loading"}


def __getattr__(name: str):
    """Loads the pipeline on first use, so that commands can print help at once."""
    import importlib

    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in ("cameras", "cape", "metrics"):
        return importlib.import_module(f"escherjax.{name}")
    raise AttributeError(f"module 'escherjax' has no attribute {name!r}")

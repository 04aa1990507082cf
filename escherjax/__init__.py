"""Multi-view diffusion for novel view synthesis in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from escherjax.data.inputs import read_inputs
    from escherjax.sample.loading import load
    from escherjax.sample.pipeline import Pipeline

__version__: str
__all__ = ["Pipeline", "__version__", "load", "read_inputs"]

_HOME = {
    "Pipeline": "escherjax.sample.pipeline",
    "load": "escherjax.sample.loading",
    "read_inputs": "escherjax.data.inputs",
}


def __getattr__(name: str) -> Any:
    """Imports what is named on first use, so that commands can print help at once."""
    import importlib
    import importlib.metadata

    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in ("cameras", "cape", "metrics"):
        return importlib.import_module(f"escherjax.{name}")
    if name == "__version__":
        return importlib.metadata.version("escherjax")
    raise AttributeError(f"module 'escherjax' has no attribute {name!r}")

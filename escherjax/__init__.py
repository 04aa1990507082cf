"""Multi-view diffusion for novel view synthesis in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from escherjax.data.inputs import read_inputs
    from escherjax.sample.loading import load
    from escherjax.sample.pipeline import Pipeline

    __version__: str

__all__ = ["Pipeline", "__version__", "load", "read_inputs"]

_HOMES = {
    "Pipeline": "escherjax.sample.pipeline",
    "load": "escherjax.sample.loading",
    "read_inputs": "escherjax.data.inputs",
}
_MODULES = ("cameras", "cape", "metrics")


def __getattr__(name: str) -> Any:
    """Imports the public names on first use, so that commands can print help at once."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"escherjax.{name}")
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'escherjax' has no attribute {name!r}")


def _version() -> str:
    """The installed version; "0+unknown" for a source folder that was never installed."""
    from importlib import metadata

    try:
        return metadata.version("escherjax")
    except metadata.PackageNotFoundError:
        return "0+unknown"

"""Metrics: arrays in, one value an item out. See docs/evaluation.md for what each one is."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from escherjax.metrics.consistency import view_consistency
    from escherjax.metrics.image import psnr, ssim
    from escherjax.metrics.lpips_weights import load_lpips
    from escherjax.metrics.perceptual import lpips

__all__ = ["load_lpips", "lpips", "psnr", "ssim", "view_consistency"]

_HOME = {
    "load_lpips": "lpips_weights",
    "lpips": "perceptual",
    "psnr": "image",
    "ssim": "image",
    "view_consistency": "consistency",
}


def __getattr__(name: str) -> Any:
    """Loads a metric on first use, so that commands in here can print help at once."""
    if name not in _HOME:
        raise AttributeError(f"module 'escherjax.metrics' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"escherjax.metrics.{_HOME[name]}"), name)

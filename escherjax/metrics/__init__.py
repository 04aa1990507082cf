"""Metrics: arrays in, one value an item out."""

from escherjax.metrics.image import psnr

__all__ = ["psnr"]

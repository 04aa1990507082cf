"""Scores of views: the metrics asked for, by the protocol's conventions, one value a view."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from escherjax.errors import UserError
from escherjax.evaluate.case_consistency import ConsistencyScorer
from escherjax.evaluate.protocol import Conventions

CONSISTENCY = "consistency"  # of a scene's views with each other, not of each with its truth
METRICS = ("psnr", "ssim", "lpips", CONSISTENCY)
_BLOCK = 16  # views scored at a time: one compiled program whatever the number of views

Metric = Callable[[Any, Any], Any]


class Scorer:
    """The metrics `names` under `conventions`, computed on the device.

    consistency: what scores the views of a case against each other, None if it is not among them.
    Raises UserError for names that are unknown, given twice, or none, for missing weights, and for
    a missing OpenCV.
    """

    def __init__(self, names: Sequence[str], conventions: Conventions):
        unknown = [name for name in names if name not in METRICS]
        if unknown or not names or len(set(names)) < len(names):
            raise UserError(
                f"metrics {', '.join(names) or '(none)'}: needed some of {', '.join(METRICS)}, "
                "each of them once."
            )
        self.consistency = ConsistencyScorer() if CONSISTENCY in names else None
        of_views = [name for name in names if name != CONSISTENCY]
        self._metrics = {name: _metric(name, conventions) for name in of_views}

    def __call__(self, views: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
        """Values [S] of each metric for views and truth [S, R, R, 3], both uint8."""
        missing = -len(views) % _BLOCK
        padding = ((0, missing), (0, 0), (0, 0), (0, 0))
        blocks = [
            np.split(np.pad(x, padding, "edge"), (len(x) + missing) // _BLOCK)
            for x in (views, truth)
        ]
        scores = {
            name: [metric(*pair) for pair in zip(*blocks, strict=True)]
            for name, metric in self._metrics.items()
        }
        return {name: np.concatenate(of)[: len(views)] for name, of in scores.items()}


def _metric(name: str, conventions: Conventions) -> Metric:
    """The function of two uint8 arrays [S, R, R, 3] -> [S]."""
    from escherjax import metrics

    if name == "psnr":
        return metrics.psnr
    if name == "ssim":
        return functools.partial(metrics.ssim, window=conventions.ssim.removesuffix("7"))
    try:
        weights = metrics.load_lpips(conventions.lpips)
    except UserError as error:
        raise UserError(f"{error} Or leave it out: --metrics psnr,ssim.") from error
    return functools.partial(metrics.lpips, weights=weights, batch_size=_BLOCK)

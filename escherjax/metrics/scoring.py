"""Scores views against the true views, beside copying the nearest reference.

Training's held-out figures and evaluation both come from here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from escherjax.errors import UserError

METRICS = ("psnr", "ssim", "lpips")
_BLOCK = 16  # views scored at a time: one compiled program whatever the number of views

Metric = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Conventions:
    """How pictures are scored."""

    psnr: str = "uint8"  # peak 255 over all pixels and channels of a view, as cv2.PSNR
    ssim: str = "uniform7"  # scikit-image's defaults: 7 x 7 flat window, sample covariance
    lpips: str = "alex"  # version 0.1 on [-1, 1]
    prediction: str = "floor"  # how samples become uint8 first: "floor" or "nearest"
    average: str = "over a scene's scored views, then over scenes"  # the order of means

    def to_uint8(self, views: np.ndarray) -> np.ndarray:
        """Predictions [..., R, R, 3] in [0, 1] (clipped) as the uint8 that is scored."""
        levels = np.clip(np.asarray(views, np.float32), 0, 1) * np.float32(255)
        return (levels if self.prediction == "floor" else np.round(levels)).astype(np.uint8)


class ViewScores(NamedTuple):
    """Values [S] by metric of the views of one scene and of what stands beside them."""

    samples: dict[str, np.ndarray]
    nearest_reference: dict[str, np.ndarray]  # the reference with the nearest camera, copied


class Scorer:
    """Computes the metrics `names` under `conventions` on the device.

    Args:
      names: some of METRICS, each once.
      conventions: how pictures are scored.

    Raises:
      UserError: for unknown or repeated names and for missing LPIPS weights.
    """

    def __init__(self, names: Sequence[str], conventions: Conventions = Conventions()):
        check_names(names, METRICS)
        self._metrics = {name: _metric(name, conventions) for name in names}

    def __call__(self, views: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
        """Scores views against the truth.

        Args:
          views: [S, R, R, 3] uint8, or floating point in [0, 1].
          truth: the true views, of the same shape and type.

        Returns:
          The values [S] of each metric.
        """
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

    def beside_nearest(
        self,
        views: np.ndarray,
        truth: np.ndarray,
        references: np.ndarray,
        reference_c2w: np.ndarray,
        target_c2w: np.ndarray,
    ) -> ViewScores:
        """Scores views of one scene, and copying the reference that stands nearest to each.

        Args:
          views: [S, R, R, 3] uint8, or floating point in [0, 1].
          truth: the true views, of the same shape and type.
          references: [N, R, R, 3], of the same type.
          reference_c2w: [N, 4, 4] camera-to-world.
          target_c2w: [S, 4, 4] camera-to-world of the views.
        """
        from escherjax.cameras import nearest_reference

        copied = references[nearest_reference(reference_c2w, target_c2w)]
        return ViewScores(self(views, truth), self(copied, truth))


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Raises UserError unless each of `names` is one of `known` and none is repeated."""
    if set(names) - set(known) or len(set(names)) < len(names):
        raise UserError(
            f"metrics must be some of {', '.join(known)}, each of them once, got "
            f"{', '.join(names)}."
        )


def _metric(name: str, conventions: Conventions) -> Metric:
    """The function of two arrays [S, R, R, 3] -> [S]."""
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

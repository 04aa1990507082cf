"""How well the views of a case fit each other, beside how well the true views of its cameras do.

See `metrics.consistency`. The first needs no truth; where there is truth, the second says what the
matcher makes of right pictures from the same cameras, which is what the first is to be read by.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from escherjax.evaluate.protocol import Case
from escherjax.metrics import consistency, epipolar
from escherjax.reports.results import SAMPLES, TRUE_VIEWS, Record

MAX_DISTANCE, MIN_MATCHES = 2.0, 10  # TSED's, in pixels of the views, as published for 256
VALUES = ("tsed", "distance", "track_error", "matches_per_pair")


def describe() -> dict[str, Any]:
    """What the values depend on, for summary.json."""
    return {
        "max_distance": MAX_DISTANCE,
        "min_matches": MIN_MATCHES,
        "pairs": "each view and the two nearest to it",
        "views": "targets that are scored; all where none is",
    }


class ConsistencyScorer:
    """Remembers what true views get, which are the same for every number of references.

    Raises UserError if OpenCV is missing.
    """

    def __init__(self) -> None:
        epipolar.load_opencv()
        self._known: dict[bytes, dict[str, Any]] = {}

    def __call__(self, case: Case, views: np.ndarray, K: np.ndarray) -> Record:
        """The record of a case; views: [M, R, R, 3] uint8; K: [M, 3, 3] in their pixels."""
        chosen = case.scored if len(case.scored) else np.arange(len(views))
        c2w, K = case.target_c2w[chosen], K[chosen]
        true_values = None
        if case.truth is not None:
            truth = np.ascontiguousarray(case.truth[chosen])
            key = hashlib.sha256(truth.tobytes() + c2w.tobytes() + K.tobytes()).digest()
            if key not in self._known:
                self._known[key] = _values(truth, c2w, K)
            true_values = self._known[key]
        return {
            "scene": case.scene_id,
            "num_references": case.num_references,
            SAMPLES: _values(views[chosen], c2w, K),
            TRUE_VIEWS: true_values,
        }


def _values(images: np.ndarray, c2w: np.ndarray, K: np.ndarray) -> dict[str, Any]:
    found = consistency.view_consistency(
        images, c2w, K, consistency.nearest_pairs(c2w), MAX_DISTANCE, MIN_MATCHES
    )
    return {
        "tsed": _rounded(found.tsed),
        "distance": _rounded(found.median_distance),
        "track_error": _rounded(found.median_track_error),
        "matches_per_pair": _rounded(found.num_matches.mean() if len(found.pairs) else math.nan),
        "num_pairs": len(found.pairs),
        "num_tracks": len(found.track_error),
    }


def _rounded(value: float) -> float | None:
    """None where there is nothing to measure, or the points lie behind the cameras."""
    return float(f"{value:.7g}") if math.isfinite(value) else None

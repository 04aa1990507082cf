"""Records of a case: scores of its views, and how well they fit each other.

Consistency (see `metrics.consistency`) needs no truth. Where there is truth, the same values of the
true views say what the matcher makes of right pictures from the same cameras.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from escherjax.errors import UserError
from escherjax.evaluate.protocol import Case
from escherjax.metrics import consistency, epipolar
from escherjax.metrics.scoring import METRICS, Conventions, Scorer, check_names
from escherjax.reports import results
from escherjax.reports.results import CONSISTENCY, SAMPLES, TRUE_VIEWS, Record

MAX_DISTANCE, MIN_MATCHES = 2.0, 10  # TSED's, in pixels of the views, as published for 256


class CaseScorer:
    """Scores cases by the metrics `names` under a protocol's conventions.

    Raises UserError for no names, unknown or repeated ones, for missing LPIPS weights, and if
    consistency is asked for without OpenCV.
    """

    def __init__(self, names: Sequence[str], conventions: Conventions):
        known = (*METRICS, CONSISTENCY)
        if not names:
            raise UserError(f"metrics must be some of {', '.join(known)}, got none.")
        check_names(names, known)
        self.has_consistency = CONSISTENCY in names
        if self.has_consistency:
            epipolar.load_opencv()
        self._scorer = Scorer([name for name in names if name != CONSISTENCY], conventions)
        # Values of true views, which are the same for every number of references.
        self._known: dict[bytes, dict[str, Any]] = {}

    def scores(self, case: Case, views: np.ndarray) -> list[Record]:
        """One record for each method and scored target; views: [M, R, R, 3] uint8.

        Where no target is scored there is one record for each target, without metrics.
        """
        targets: np.ndarray = case.scored
        of_methods: Sequence[dict[str, np.ndarray]]
        if case.truth is None or not len(targets):
            targets = np.arange(len(views))
            of_methods = [{} for _ in results.METHODS]
        else:
            of_methods = self._scorer.beside_nearest(
                views[targets],
                case.truth[targets],
                case.reference_images,
                case.reference_c2w,
                case.target_c2w[targets],
            )
        return [
            {
                "scene": case.scene_id,
                "num_references": case.num_references,
                "method": method,
                "view": int(view),
                "num_views": len(targets),
                **{name: float(f"{scores[row]:.7g}") for name, scores in values.items()},
            }
            for method, values in zip(results.METHODS, of_methods, strict=True)
            for row, view in enumerate(targets)
        ]

    def consistency(self, case: Case, views: np.ndarray, K: np.ndarray) -> Record:
        """The consistency of a case; views: [M, R, R, 3] uint8; K: [M, 3, 3] in their pixels."""
        chosen = case.scored if len(case.scored) else np.arange(len(views))
        c2w, K = case.target_c2w[chosen], K[chosen]
        true_values = None
        if case.truth is not None:
            truth = np.ascontiguousarray(case.truth[chosen])
            key = hashlib.sha256(truth.tobytes() + c2w.tobytes() + K.tobytes()).digest()
            if key not in self._known:
                self._known[key] = _consistency(truth, c2w, K)
            true_values = self._known[key]
        return {
            "scene": case.scene_id,
            "num_references": case.num_references,
            SAMPLES: _consistency(views[chosen], c2w, K),
            TRUE_VIEWS: true_values,
        }


def describe_consistency() -> dict[str, Any]:
    """What the values of consistency depend on, for summary.json."""
    return {
        "max_distance": MAX_DISTANCE,
        "min_matches": MIN_MATCHES,
        "pairs": "each view and the two nearest to it",
        "views": "targets that are scored; all where none is",
    }


def _consistency(images: np.ndarray, c2w: np.ndarray, K: np.ndarray) -> dict[str, Any]:
    found = consistency.view_consistency(
        images, c2w, K, consistency.nearest_pairs(c2w), MAX_DISTANCE, MIN_MATCHES
    )
    values = (  # in the order of results.CONSISTENCY_VALUES
        found.tsed,
        found.median_distance,
        found.median_track_error,
        found.num_matches.mean() if len(found.pairs) else math.nan,
    )
    return {
        # None where there is nothing to measure, or the points lie behind the cameras
        **{
            name: float(f"{value:.7g}") if math.isfinite(value) else None
            for name, value in zip(results.CONSISTENCY_VALUES, values, strict=True)
        },
        "num_pairs": len(found.pairs),
        "num_tracks": len(found.track_error),
    }

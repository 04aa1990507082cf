"""Do poses agree with pictures? Epipolar distances of SIFT matches between neighbouring views.

A right pose puts each match on the epipolar line of its partner, to about a pixel; a wrong one, or
a wrong convention, does not. It needs texture: views with too few matches have no answer, and
sides that look alike give a pair or two with matches that no camera explains. So one pair is no
evidence; a verdict is given where several views agree on it.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from escherjax.data import images
from escherjax.data.shards import Scene
from escherjax.metrics.epipolar import (
    Features,
    camera_distances,
    fundamental_matrix,
    load_opencv,
    mutual_matches,
    sift,
    symmetric_distance,
)

# Of a pair. Any 8 agree with some epipolar geometry, and sides of flat-coloured objects that look
# alike gave up to 22; true neighbours of textured objects have 24 to 120.
MIN_MATCHES = 24
MIN_VIEWS, MIN_SHARE = 3, 1 / 3  # views to be measured before anything is said of a scene
MIN_PAIRS = 2  # to be measured before anything is said of a view
RANSAC_PIXELS = 1.5
ALL_PAIRS_UP_TO = 12  # views
NEIGHBOURS = 4
SCENE_LIMIT = 0.015  # of the longer side: above it, the scene as a whole does not fit
VIEW_LIMIT, VIEW_FACTOR = 0.01, 3.0  # of the longer side, and times the scene's median


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Epipolar check of one scene.

    distance: [V] pixels, NaN where there are too few matches; matches: [V] int, of all pairs.
    scene_warning: what to say where the scene as a whole does not fit, else None.
    outliers: views whose distance stands out in a scene that fits otherwise.
    """

    distance: np.ndarray
    matches: np.ndarray
    scene_warning: str | None
    outliers: list[int]


def check_scene(scene: Scene) -> Agreement:
    """Matches the views of a valid scene and measures how well its cameras explain the matches.

    Of each pair the median symmetric point-to-epipolar-line distance counts, of each view the
    median over its pairs. Nothing is said against a scene of which less than a third of the views,
    or less than three, could be measured. Raises UserError if OpenCV is missing.
    """
    cv2 = load_opencv()
    features = [_features(cv2, data) for data in scene.images]
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    medians: list[list[float]] = [[] for _ in range(scene.num_views)]
    matches = np.zeros(scene.num_views, int)
    for first, second in neighbour_pairs(scene.c2w):
        pair = verified_matches(cv2, matcher, features[first], features[second])
        matches[[first, second]] += len(pair[0])
        if len(pair[0]) < MIN_MATCHES:
            continue
        fundamental = fundamental_matrix(scene.c2w[[first, second]], scene.K[[first, second]])
        median = float(np.median(symmetric_distance(*pair, fundamental)))
        medians[first].append(median)
        medians[second].append(median)
    distance = np.array([np.median(values) if values else np.nan for values in medians])
    longer = max(scene.width, scene.height)
    measured = int(np.isfinite(distance).sum())
    if measured < max(MIN_VIEWS, MIN_SHARE * scene.num_views):
        return Agreement(distance, matches, None, [])
    scene_median = float(np.nanmedian(distance))
    misfits = int((distance > SCENE_LIMIT * longer).sum())
    if scene_median > SCENE_LIMIT * longer and misfits >= MIN_VIEWS:
        warning = (
            f"median epipolar distance {scene_median:.1f} px of pictures {longer} px long, over "
            f"{measured} of {scene.num_views} views that could be measured: the cameras do not "
            "explain the pictures (axes, order of views, or intrinsics)."
        )
        return Agreement(distance, matches, warning, [])
    limit = max(VIEW_LIMIT * longer, VIEW_FACTOR * scene_median)
    outliers = [
        view
        for view, values in enumerate(medians)
        if len(values) >= MIN_PAIRS and 2 * np.count_nonzero(np.array(values) > limit) > len(values)
    ]
    return Agreement(distance, matches, None, outliers)


def neighbour_pairs(c2w: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of views worth matching, sorted: all of few views, else near cameras and near numbers.

    Near numbers as well, because a wrong pose has wrong neighbours. c2w: [V, 4, 4].
    """
    views = len(c2w)
    if views <= ALL_PAIRS_UP_TO:
        return list(itertools.combinations(range(views), 2))
    nearest = np.argsort(camera_distances(c2w), axis=1)[:, :NEIGHBOURS]
    pairs = {
        (min(view, other), max(view, other))
        for view in range(views)
        for other in nearest[view].tolist()
    }
    pairs |= {(view, view + step) for step in (1, 2) for view in range(views - step)}
    return sorted(pairs)


def verified_matches(
    cv2: Any, matcher: Any, first: Features, second: Features
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [P, 2] of both views of the matches that fit one epipolar geometry, whichever it is.

    Matches are mutual and pass the ratio test. The geometry is estimated from them alone, never
    from the cameras: where less than half agree on one, the pair shows different things and none
    is returned.
    """
    nothing = np.zeros((0, 2)), np.zeros((0, 2))
    good = mutual_matches(matcher, first, second)
    if len(good) < MIN_MATCHES:
        return nothing
    pixels = first[0][good[:, 0]], second[0][good[:, 1]]
    _, agree = cv2.findFundamentalMat(*pixels, cv2.FM_RANSAC, RANSAC_PIXELS, 0.999)
    if agree is None or 2 * np.count_nonzero(agree) < len(good):
        return nothing
    fits = agree[:, 0] > 0
    return pixels[0][fits], pixels[1][fits]


def _features(cv2: Any, data: bytes) -> Features:
    """Features of one encoded picture, over white."""
    return sift(cv2, images.on_background(images.decode_image(data, "picture"), images.WHITE))

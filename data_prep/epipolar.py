"""Do poses agree with pictures? Epipolar distances of SIFT matches between neighbouring views.

A right pose puts each match on the epipolar line of its partner, to about a pixel; a wrong one, or
a wrong convention, does not. It needs texture: views with too few matches have no answer.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.data import images
from escherjax.data.records import Scene
from escherjax.errors import UserError

MIN_MATCHES = 16  # of a pair; any 8 agree with some epipolar geometry, so few say nothing
RANSAC_PIXELS = 1.5
ALL_PAIRS_UP_TO = 12  # views
NEIGHBOURS = 4
RATIO = 0.75  # Lowe's ratio test
SCENE_LIMIT = 0.015  # of the longer side: above it, the scene as a whole does not fit
VIEW_LIMIT, VIEW_FACTOR = 0.01, 3.0  # of the longer side, and times the scene's median

# Pixels [P, 2] and descriptors [P, 128] float32 of a picture; None where it has no features.
Features = tuple[np.ndarray, np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Epipolar check of one scene.

    distance: [V] pixels, NaN where there are too few matches; matches: [V] int, of all pairs.
    scene_warning: what to say where the scene as a whole does not fit, else None.
    outliers: views whose distance stands out from the others'.
    """

    distance: np.ndarray
    matches: np.ndarray
    scene_warning: str | None
    outliers: list[int]


def check_scene(scene: Scene) -> Agreement:
    """Matches the views of a valid scene and measures how well its cameras explain the matches.

    Of each pair the median symmetric point-to-epipolar-line distance counts, of each view the
    median over its pairs. Raises UserError if OpenCV is missing.
    """
    cv2 = load_opencv()
    features = [_sift(cv2, data) for data in scene.images]
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
    known = distance[np.isfinite(distance)]
    if not len(known):
        return Agreement(distance, matches, None, [])
    scene_median, longer = float(np.median(known)), max(scene.width, scene.height)
    warning = None
    if scene_median > SCENE_LIMIT * longer:
        warning = (
            f"median epipolar distance {scene_median:.1f} px of pictures {longer} px long: the "
            "cameras do not explain the pictures (axes, order of views, or intrinsics)."
        )
    limit = max(VIEW_LIMIT * longer, VIEW_FACTOR * scene_median)
    return Agreement(distance, matches, warning, np.flatnonzero(distance > limit).tolist())


def load_opencv() -> Any:
    """The cv2 module. Raises UserError naming the extra to install where it is missing."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"the epipolar check needs OpenCV ({error}); pip install 'escherjax[prep]'."
        ) from error
    return cv2


def neighbour_pairs(c2w: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of views worth matching, sorted: all of few views, else near cameras and near numbers.

    Near numbers as well, because a wrong pose has wrong neighbours. c2w: [V, 4, 4].
    """
    views = len(c2w)
    if views <= ALL_PAIRS_UP_TO:
        return list(itertools.combinations(range(views), 2))
    position, forward = c2w[:, :3, 3], c2w[:, :3, 2]
    apart = np.linalg.norm(position[:, None] - position[None], axis=-1)
    apart = apart / max(float(np.median(apart)), 1e-9) + 1 - forward @ forward.T
    np.fill_diagonal(apart, np.inf)
    nearest = np.argsort(apart, axis=1)[:, :NEIGHBOURS]
    pairs = {tuple(sorted((view, int(other)))) for view in range(views) for other in nearest[view]}
    pairs |= {(view, view + step) for step in (1, 2) for view in range(views - step)}
    return sorted(pairs)


def fundamental_matrix(c2w: np.ndarray, K: np.ndarray) -> np.ndarray:
    """F [3, 3] with x_1^T F x_0 = 0 for homogeneous pixels of two cameras, [2, 4, 4], [2, 3, 3]."""
    c2w, K = c2w.astype(np.float64), K.astype(np.float64)
    second_from_first = cameras.w2c_from_c2w(c2w[1]) @ c2w[0]
    x, y, z = second_from_first[:3, 3]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.linalg.inv(K[1]).T @ cross @ second_from_first[:3, :3] @ np.linalg.inv(K[0])


def symmetric_distance(
    first: np.ndarray, second: np.ndarray, fundamental: np.ndarray
) -> np.ndarray:
    """Mean distance in pixels of each match from its two epipolar lines; pixels [P, 2] -> [P]."""
    first, second = (
        np.pad(points, ((0, 0), (0, 1)), constant_values=1) for points in (first, second)
    )
    lines_second, lines_first = first @ fundamental.T, second @ fundamental
    product = np.abs((second * lines_second).sum(-1))
    norms = [np.linalg.norm(lines[:, :2], axis=-1) for lines in (lines_first, lines_second)]
    return product * (1 / np.maximum(norms[0], 1e-12) + 1 / np.maximum(norms[1], 1e-12)) / 2


def verified_matches(
    cv2, matcher, first: Features, second: Features
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [P, 2] of both views of the matches that fit one epipolar geometry, whichever it is.

    Matches are mutual and pass the ratio test. The geometry is estimated from them alone, never
    from the cameras: where less than half agree on one, the pair shows different things and none
    is returned.
    """
    nothing = np.zeros((0, 2)), np.zeros((0, 2))
    if any(descriptors is None or len(descriptors) < 2 for _, descriptors in (first, second)):
        return nothing
    forward = matcher.knnMatch(first[1], second[1], k=2)
    backward = {m.queryIdx: m.trainIdx for m in matcher.match(second[1], first[1])}
    good = [
        a for a, b in forward
        if a.distance < RATIO * b.distance and backward[a.trainIdx] == a.queryIdx
    ]  # fmt: skip
    if len(good) < MIN_MATCHES:
        return nothing
    pixels = first[0][[m.queryIdx for m in good]], second[0][[m.trainIdx for m in good]]
    _, agree = cv2.findFundamentalMat(*pixels, cv2.FM_RANSAC, RANSAC_PIXELS, 0.999)
    if agree is None or 2 * np.count_nonzero(agree) < len(good):
        return nothing
    return tuple(points[agree[:, 0] > 0] for points in pixels)


def _sift(cv2, data: bytes) -> Features:
    """Features of one encoded picture, over white."""
    picture = images.on_background(images.decode_image(data, "picture"), images.WHITE)
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    points, descriptors = cv2.SIFT_create().detectAndCompute(gray, None)
    # OpenCV counts from the centre of the first pixel, cameras.py from its corner
    pixels = np.array([point.pt for point in points], np.float64).reshape(-1, 2) + 0.5
    return pixels, descriptors

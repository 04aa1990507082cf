"""Two views of one scene: matches between them, and how far these are from their epipolar lines."""

from __future__ import annotations

from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.errors import UserError

RATIO = 0.75  # Lowe's ratio test

# Pixels [P, 2] and descriptors [P, 128] float32 of a picture; None where it has no features.
Features = tuple[np.ndarray, np.ndarray | None]


def load_opencv() -> Any:
    """The cv2 module. Raises UserError naming the extra to install where it is missing."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"matching views needs OpenCV ({error}); pip install 'escherjax[prep]'."
        ) from error
    return cv2


def sift(cv2: Any, picture: np.ndarray) -> Features:
    """SIFT features of a picture, uint8 RGB [H, W, 3]."""
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    points, descriptors = cv2.SIFT_create().detectAndCompute(gray, None)
    # OpenCV counts from the centre of the first pixel, cameras.py from its corner
    pixels = np.array([point.pt for point in points], np.float64).reshape(-1, 2) + 0.5
    return pixels, descriptors


def mutual_matches(matcher: Any, first: Features, second: Features) -> np.ndarray:
    """Pairs of features [P, 2] int that are nearest to each other and pass the ratio test.

    matcher: cv2.BFMatcher(cv2.NORM_L2). Nothing is known of the cameras.
    """
    if any(descriptors is None or len(descriptors) < 2 for _, descriptors in (first, second)):
        return np.zeros((0, 2), int)
    forward = matcher.knnMatch(first[1], second[1], k=2)
    backward = {m.queryIdx: m.trainIdx for m in matcher.match(second[1], first[1])}
    good = [
        (a.queryIdx, a.trainIdx)
        for a, b in forward
        if a.distance < RATIO * b.distance and backward[a.trainIdx] == a.queryIdx
    ]
    return np.array(good, int).reshape(-1, 2)


def camera_distances(c2w: np.ndarray) -> np.ndarray:
    """How far cameras are from each other, [V, V]: by place, in units of the median, and by view.

    c2w: [V, 4, 4]. The diagonal is infinite.
    """
    position, forward = c2w[:, :3, 3], c2w[:, :3, 2]
    apart = np.linalg.norm(position[:, None] - position[None], axis=-1)
    apart = apart / max(float(np.median(apart)), 1e-9) + 1 - forward @ forward.T
    np.fill_diagonal(apart, np.inf)
    return apart


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

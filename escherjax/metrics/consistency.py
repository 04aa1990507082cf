"""Do views of one scene show one scene? Needs their cameras, no ground truth.

Features are matched between views without knowing the cameras, and two things are asked of the
matches. Of a pair: is a feature on the epipolar line of its partner (symmetric epipolar distance,
and TSED, the share of pairs that pass; Yu et al., "Long-Term Photometric Consistent Novel View
Synthesis with Diffusion Models", ICCV 2023, arXiv 2304.10700)? That does not see errors along the
line. Of features that three or more views share: is there one point in space that all of them
show (reprojection error, as in structure from motion)?

Both need texture: blurred or plain views have few matches, which TSED counts against them. So read
the numbers beside those of true views of the same cameras. It runs on the host, by OpenCV.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from escherjax import cameras
from escherjax.errors import UserError, listed
from escherjax.metrics import epipolar

_MIN_BASELINE = 1e-6  # of the cameras' extent; below it a pair has no epipolar lines
_MIN_TRACK = 3  # views; two always meet closer than their epipolar distance says


@dataclasses.dataclass(frozen=True)
class Consistency:
    """What the matches of one scene say.

    pairs: [P, 2] int, views compared; num_matches: [P] int; distance: [P] pixels, the median
    symmetric epipolar distance of the matches, NaN without matches. Pairs whose cameras stand on
    one point are left out: they have no epipolar lines.
    tsed: share of the pairs with enough matches and a median distance below the limit, NaN
    without pairs. median_distance: median of `distance` over pairs with enough matches, NaN
    without.
    track_error: [T] pixels, root mean square reprojection error of each feature that three or more
    views share; inf where the point would lie behind one of them. median_track_error: its median,
    NaN without tracks.
    """

    pairs: np.ndarray
    num_matches: np.ndarray
    distance: np.ndarray
    tsed: float
    median_distance: float
    track_error: np.ndarray
    median_track_error: float


def view_consistency(
    images: np.ndarray,
    c2w: np.ndarray,
    K: np.ndarray,
    pairs: Iterable[tuple[int, int]] | None = None,
    max_distance: float = 2.0,
    min_matches: int = 10,
) -> Consistency:
    """Measures how well views of one scene agree with each other under their cameras.

    images: [V, H, W, 3] uint8, over one background; c2w: [V, 4, 4], OpenCV axes; K: [V, 3, 3] or
    [3, 3] in pixels. pairs: views to compare; None for each view and the next, as along a path;
    `nearest_pairs` suits views in no order. max_distance, in pixels, and min_matches are TSED's
    T_error and T_matches, with the values of the paper, which has 256 x 256 pixels: state both
    and the resolution with a number.
    Raises UserError for inputs that do not fit together, or if OpenCV is missing.
    """
    images, c2w, K = np.asarray(images), np.asarray(c2w), np.asarray(K)
    if K.ndim == 2:
        K = np.broadcast_to(K, (len(images), *K.shape))
    if pairs is None:
        pairs = [(view, view + 1) for view in range(len(images) - 1)]
    wanted = np.array(list(pairs), int).reshape(-1, 2)
    _check(images, c2w, K, wanted)
    cv2 = epipolar.load_opencv()
    features = [epipolar.sift(cv2, image) for image in images]
    matcher = cv2.BFMatcher(cv2.NORM_L2)

    position = c2w[:, :3, 3].astype(np.float64)
    extent = np.linalg.norm(position - position.mean(0), axis=-1).max() if len(position) else 0
    apart = np.linalg.norm(position[wanted[:, 0]] - position[wanted[:, 1]], axis=-1)
    wanted = wanted[apart > _MIN_BASELINE * extent]
    distance, matches = np.full(len(wanted), np.nan), []
    for index, (first, second) in enumerate(wanted):
        found = epipolar.mutual_matches(matcher, features[first], features[second])
        matches.append(found)
        if len(found):
            distance[index] = np.median(
                epipolar.symmetric_distance(
                    features[first][0][found[:, 0]],
                    features[second][0][found[:, 1]],
                    epipolar.fundamental_matrix(c2w[[first, second]], K[[first, second]]),
                )
            )
    num_matches = np.array([len(found) for found in matches], int)
    enough = num_matches >= min_matches
    passed = enough & (distance < max_distance)
    tracks = _tracks(wanted, matches)
    errors = np.array(
        [
            _reprojection_error(
                c2w[views],
                K[views],
                np.stack([features[v][0][i] for v, i in zip(views, indices, strict=True)]),
            )
            for views, indices in tracks
        ]
    )
    return Consistency(
        pairs=wanted,
        num_matches=num_matches,
        distance=distance,
        tsed=float(passed.mean()) if len(wanted) else float("nan"),
        median_distance=_median(distance[enough]),
        track_error=errors,
        median_track_error=_median(errors),
    )


def nearest_pairs(c2w: np.ndarray) -> list[tuple[int, int]]:
    """Each view with the two nearest to it, by place and direction, each pair once, sorted.

    c2w: [V, 4, 4]. Two, so that features can be followed through three views.
    """
    nearest = np.argsort(epipolar.camera_distances(np.asarray(c2w)), axis=1)[:, :2]
    views = range(len(c2w))
    pairs = {(min(v, n), max(v, n)) for v in views for n in nearest[v].tolist() if n != v}
    return sorted(pairs)


def _check(images: np.ndarray, c2w: np.ndarray, K: np.ndarray, pairs: np.ndarray) -> None:
    problems = []
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        problems.append(f"images must be uint8 [V, H, W, 3], got {images.dtype} {images.shape}.")
    for name, array, shape in (("c2w", c2w, (4, 4)), ("K", K, (3, 3))):
        if array.shape != (len(images), *shape):
            problems.append(f"{name} must have shape {(len(images), *shape)}, got {array.shape}.")
    if not problems:
        problems += [text for _, _, text in cameras.pose_faults(c2w)]
    outside = [pair for pair in pairs.tolist() if not 0 <= min(pair) < max(pair) < len(images)]
    if outside:
        problems.append(
            f"pairs {outside[:5]} are no two different views out of 0..{len(images) - 1}."
        )
    if problems:
        raise UserError(f"view_consistency: {listed(problems)}")


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _tracks(pairs: np.ndarray, matches: list[np.ndarray]) -> list[tuple[list[int], list[int]]]:
    """Features that at least three views share: (views, index of the feature in each), sorted.

    Matches are chained through all pairs; chains that hold two features of one view contradict
    themselves and are left out.
    """
    parents: dict[tuple[int, int], tuple[int, int]] = {}

    def root(node: tuple[int, int]) -> tuple[int, int]:
        parents.setdefault(node, node)
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for (first, second), found in zip(pairs.tolist(), matches, strict=True):
        for one, other in found.tolist():
            parents[root((first, one))] = root((second, other))
    chains: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for node in sorted(parents):
        chains.setdefault(root(node), []).append(node)
    tracks = []
    for chain in chains.values():
        views = [view for view, _ in chain]
        if len(chain) >= _MIN_TRACK and len(set(views)) == len(views):
            tracks.append((views, [index for _, index in chain]))
    return tracks


def _reprojection_error(c2w: np.ndarray, K: np.ndarray, pixels: np.ndarray) -> float:
    """Root mean square distance in pixels between `pixels` [V, 2] and the point they agree on best.

    The point is the linear triangulation of all views (Hartley and Zisserman, Multiple View
    Geometry, 2nd edition, 12.2) in normalised coordinates; inf if it lies behind a camera.
    """
    K, w2c = K.astype(np.float64), cameras.w2c_from_c2w(c2w.astype(np.float64))
    rays = np.linalg.solve(K, np.pad(pixels, ((0, 0), (0, 1)), constant_values=1)[..., None])
    x, y = rays[:, 0], rays[:, 1]  # [V, 1] each, rays[:, 2] being 1
    rows = np.concatenate([x * w2c[:, 2] - w2c[:, 0], y * w2c[:, 2] - w2c[:, 1]])  # [2V, 4]
    point = np.linalg.svd(rows)[2][-1]
    point = point * np.sign(point[3] or 1.0)
    seen = (K @ w2c[:, :3] @ point).reshape(-1, 3)
    if not (seen[:, 2] > 0).all():
        return float("inf")
    error = seen[:, :2] / seen[:, 2:] - pixels
    return float(np.sqrt(np.mean(np.sum(error**2, -1))))

"""Smooth camera paths through given cameras.

A camera path is a Catmull-Rom spline with centripetal knots (Yuksel, Schaefer, Keyser 2011,
"Parameterization and applications of Catmull-Rom curves"), evaluated by the pyramid of Barry and
Goldman (1988). The pyramid blends two points at a time, so positions take it with straight lines
and rotations, as quaternions, with great arcs (Schlag 1991, "Using geometric constructions to
interpolate orientation with quaternions").
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from escherjax import cameras, quaternions
from escherjax.errors import UserError, listed

_SAMPLES_PER_SEGMENT = 64  # at which the length of a path is measured

Blend = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def spline(keyframes: np.ndarray, num_views: int, closed: bool = False) -> np.ndarray:
    """A path at constant speed through given cameras, c2w [num_views, 4, 4] float32.

    keyframes: c2w [K, 4, 4], K >= 2, in the order of the path. closed: the path leads on from the
    last camera to the first, and the views do not repeat it; else first and last view are the first
    and last camera. Speed counts a move and a turn alike (`camera_distances`); with few views the
    path passes its cameras between two of them.
    Raises UserError as `interpolate` does, and for num_views < 1.
    """
    if num_views < 1:
        raise UserError(f"a path of {num_views} views; needed at least 1.")
    num_segments = _check(keyframes, closed)
    dense = np.linspace(0, num_segments, num_segments * _SAMPLES_PER_SEGMENT + 1)
    steps = camera_distances(interpolate(keyframes, dense, closed), _reach(keyframes))
    return interpolate(keyframes, equal_steps(dense, steps, num_views, closed), closed).astype(
        np.float32
    )


def interpolate(keyframes: np.ndarray, at: np.ndarray, closed: bool = False) -> np.ndarray:
    """Cameras of the spline, c2w [M, 4, 4] float64; at k it passes camera k.

    keyframes: c2w [K, 4, 4]; at: [M] in [0, K - 1], or in [0, K] for a closed path, K being camera
    0 again. Raises UserError for fewer than two cameras, poses that are not rigid, and cameras
    that are equal to the one before.
    """
    num_segments = _check(keyframes, closed)
    keyframes = np.asarray(keyframes, np.float64)
    count = len(keyframes)
    positions, turning = keyframes[:, :3, 3], quaternions.from_rotations(keyframes[:, :3, :3])
    at = np.asarray(at, np.float64)
    segment = np.clip(np.floor(at).astype(int), 0, num_segments - 1)
    around = segment[:, None] + np.arange(-1, 3)  # [M, 4]: the cameras about each segment
    if closed:
        index = around % count
        points, turns = positions[index], _aligned(turning[index])
    else:
        # Beyond an end the path goes on as it came: the neighbour, mirrored at the end.
        inner = np.clip(around, 0, count - 1)
        points, turns = positions[inner], _aligned(turning[inner])
        for side, end, neighbour in ((0, 1, 2), (3, 2, 1)):
            outside = (around[:, side] != inner[:, side])[:, None]
            mirrored = 2 * points[:, end] - points[:, neighbour]
            points[:, side] = np.where(outside, mirrored, points[:, side])
            back = quaternions.slerp(turns[:, neighbour], turns[:, end], np.full(len(at), 2.0))
            turns[:, side] = np.where(outside, back, turns[:, side])
    reach = _reach(keyframes)
    moves = np.linalg.norm(np.diff(points, axis=1), axis=-1)
    angles = 2 * np.arccos(np.clip(np.abs((turns[:, 1:] * turns[:, :-1]).sum(-1)), 0, 1))
    knots = np.cumsum(np.sqrt(np.hypot(moves, reach * angles)), axis=1)  # centripetal
    knots = np.concatenate([np.zeros((len(at), 1)), knots], axis=1)
    time = knots[:, 1] + (at - segment) * (knots[:, 2] - knots[:, 1])
    c2w = np.zeros((len(at), 4, 4))
    c2w[:, :3, :3] = quaternions.to_rotations(_pyramid(turns, knots, time, quaternions.slerp))
    c2w[:, :3, 3] = _pyramid(points, knots, time, _lerp)
    c2w[:, 3, 3] = 1
    return c2w


def equal_steps(at: np.ndarray, steps: np.ndarray, count: int, closed: bool) -> np.ndarray:
    """Parameters [count] that cut a path into pieces of equal length.

    at: [D] parameters of a dense sampling; steps: [D - 1] lengths between its points. closed: the
    end of the path is its start, which is not repeated; else both ends are among the parameters.
    """
    length = np.concatenate([[0.0], np.cumsum(steps)])
    pieces = count if closed else max(count - 1, 1)
    return np.interp(length[-1] * np.arange(count) / pieces, length, at)


def camera_distances(c2w: np.ndarray, reach: float) -> np.ndarray:
    """How far each camera is from the one before: [V, 4, 4] -> [V - 1].

    sqrt(move^2 + (reach * angle of turn)^2): a turn counts as far as it moves what lies `reach`
    before the camera.
    """
    moves = np.linalg.norm(np.diff(c2w[:, :3, 3], axis=0), axis=-1)
    relative = np.swapaxes(c2w[:-1, :3, :3], -1, -2) @ c2w[1:, :3, :3]
    # |R - I|_F = 2 sqrt(2) sin(angle / 2), which keeps its digits where the trace loses them.
    sine = np.linalg.norm(relative - np.eye(3), axis=(-2, -1)) / np.sqrt(8)
    return np.hypot(moves, reach * 2 * np.arcsin(np.clip(sine, 0, 1)))


def _check(keyframes: np.ndarray, closed: bool) -> int:
    """The number of segments of the path."""
    keyframes = np.asarray(keyframes, np.float64)
    cameras.check_poses(keyframes, "spline")
    if keyframes.ndim != 3 or len(keyframes) < 2:
        raise UserError(
            f"a spline through cameras of shape {keyframes.shape}; needed two cameras at least, "
            "[K, 4, 4]. Name more references, or choose another path."
        )
    ring = np.concatenate([keyframes, keyframes[:1]]) if closed else keyframes
    reach = _reach(keyframes)
    same = camera_distances(ring, reach) <= 1e-6 * reach
    problems = [
        f"camera {(i + 1) % len(keyframes)} of the spline is camera {i} again; leave one out."
        for i in np.flatnonzero(same).tolist()
    ]
    if problems:
        raise UserError(listed(problems))
    return len(ring) - 1


def _reach(keyframes: np.ndarray) -> float:
    """Mean distance of the cameras from the origin, about which the scene lies."""
    return float(np.linalg.norm(keyframes[:, :3, 3], axis=-1).mean()) or 1.0


def _aligned(rows: np.ndarray) -> np.ndarray:
    """[M, 4, 4] rows of quaternions, each with the sign that is nearest to the one before."""
    aligned = rows.copy()
    for i in range(1, aligned.shape[1]):
        opposite = (aligned[:, i] * aligned[:, i - 1]).sum(-1, keepdims=True) < 0
        aligned[:, i] = np.where(opposite, -aligned[:, i], aligned[:, i])
    return aligned


def _pyramid(points: np.ndarray, knots: np.ndarray, time: np.ndarray, blend: Blend) -> np.ndarray:
    """Barry and Goldman's: points [M, 4, D] at knots [M, 4] -> the curve at time [M], [M, D]."""

    def between(a: np.ndarray, b: np.ndarray, first: int, last: int) -> np.ndarray:
        share = (time - knots[:, first]) / (knots[:, last] - knots[:, first])
        return blend(a, b, share)

    a1, a2, a3 = (between(points[:, i], points[:, i + 1], i, i + 1) for i in range(3))
    return between(between(a1, a2, 0, 2), between(a2, a3, 1, 3), 1, 2)


def _lerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    return a + share[:, None] * (b - a)

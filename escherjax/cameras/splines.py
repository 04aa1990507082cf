"""Smooth camera paths through given cameras (keyframes).

A camera path is a Catmull-Rom spline with centripetal knots (Yuksel, Schaefer, Keyser 2011,
"Parameterization and applications of Catmull-Rom curves"), evaluated by the pyramid of Barry and
Goldman (1988). The pyramid blends two points at a time, so positions take it with straight lines
and rotations, as quaternions, and directions with great arcs (Schlag 1991, "Using geometric
constructions to interpolate orientation with quaternions").
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial.transform import Rotation

from escherjax.cameras import poses
from escherjax.errors import UserError, listed

_SAMPLES_PER_SEGMENT = 64  # at which the length of a path is measured

Blend = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def spline(
    keyframes: np.ndarray, num_views: int, closed: bool = False, straight: bool = False
) -> np.ndarray:
    """A path at constant speed through given cameras.

    Speed counts a move and a turn alike (`camera_distances`); with few views the path passes its
    keyframes between two of them.

    Args:
        keyframes: c2w [K, 4, 4], K >= 2, in the order of the path.
        num_views: at least 1.
        closed: whether the path leads on from the last keyframe to the first, which is not
            repeated; else the first and last view are the first and last keyframe.
        straight: see `interpolate`.

    Returns:
        c2w [num_views, 4, 4] float32.

    Raises:
        UserError: As `interpolate`, and for num_views < 1.
    """
    if num_views < 1:
        raise UserError(f"num_views must be at least 1, got a path of {num_views} views.")
    num_segments = _check(keyframes, closed, straight)
    dense = np.linspace(0, num_segments, num_segments * _SAMPLES_PER_SEGMENT + 1)
    steps = camera_distances(interpolate(keyframes, dense, closed, straight), _reach(keyframes))
    at = equal_steps(dense, steps, num_views, closed)
    return interpolate(keyframes, at, closed, straight).astype(np.float32)


def interpolate(
    keyframes: np.ndarray, at: np.ndarray, closed: bool = False, straight: bool = False
) -> np.ndarray:
    """Cameras of the spline at given parameters; at k it passes keyframe k.

    The path leads around the origin: what is smooth are directions from it, logarithms of
    distances, and rotations relative to cameras that look at it with z up.

    Args:
        keyframes: c2w [K, 4, 4].
        at: [M] in [0, K - 1], or in [0, K] on a closed path, K being keyframe 0 again.
        closed: see `spline`.
        straight: whether positions and rotations themselves are smooth instead, as for a walk
            through a room.

    Returns:
        c2w [M, 4, 4] float64.

    Raises:
        UserError: Fewer than two keyframes, poses that are not rigid, a keyframe equal to the one
            before; unless straight also one at the origin, and neighbours opposite each other.
    """
    num_segments = _check(keyframes, closed, straight)
    keyframes, at = np.asarray(keyframes, np.float64), np.asarray(at, np.float64)
    segment = np.clip(np.floor(at).astype(int), 0, num_segments - 1)
    near = segment[:, None] + np.arange(-1, 2)  # the segment of each view and its neighbours
    near = near % num_segments if closed else np.clip(near, 0, num_segments - 1)
    lengths = camera_distances(_ring(keyframes, closed), _reach(keyframes))
    knots = np.concatenate(
        [np.zeros((len(at), 1)), np.cumsum(np.sqrt(lengths)[near], axis=1)], axis=1
    )  # [M, 4], centripetal
    time = knots[:, 1] + (at - segment) * (knots[:, 2] - knots[:, 1])

    def curve(values: np.ndarray, blend: Blend, is_quaternion: bool = False) -> np.ndarray:
        points = _around_segment(values, segment, closed, blend, is_quaternion)
        return _pyramid(points, knots, time, blend)

    def turns(rotations: np.ndarray) -> np.ndarray:
        quaternions = Rotation.from_matrix(rotations).as_quat()
        return Rotation.from_quat(curve(quaternions, _slerp, is_quaternion=True)).as_matrix()

    positions, rotations = keyframes[:, :3, 3], keyframes[:, :3, :3]
    c2w = np.tile(np.eye(4), (len(at), 1, 1))
    if straight:
        c2w[:, :3, 3] = curve(positions, _lerp)
        c2w[:, :3, :3] = turns(rotations)
        return c2w
    radii = np.linalg.norm(positions, axis=1, keepdims=True)
    c2w[:, :3, 3] = np.exp(curve(np.log(radii), _lerp)) * curve(positions / radii, _slerp)
    level = poses.look_at(positions)[:, :3, :3]
    deviations = turns(level.swapaxes(1, 2) @ rotations)
    c2w[:, :3, :3] = poses.look_at(c2w[:, :3, 3])[:, :3, :3] @ deviations
    return c2w


def equal_steps(at: np.ndarray, steps: np.ndarray, count: int, closed: bool) -> np.ndarray:
    """Parameters [count] that cut a path into pieces of equal length.

    at: [D] parameters of a dense sampling; steps: [D - 1] lengths between its points; closed: the
    end of the path is its start, which is not repeated, else both ends are among the parameters.
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
    turns = Rotation.from_matrix(c2w[:, :3, :3])
    return np.hypot(moves, reach * (turns[:-1].inv() * turns[1:]).magnitude())


def _check(keyframes: np.ndarray, closed: bool, straight: bool) -> int:
    """The number of segments of the path."""
    keyframes = np.asarray(keyframes, np.float64)
    poses.check_poses(keyframes, "spline")
    count = len(keyframes)
    if keyframes.ndim != 3 or count < 2:
        raise UserError(
            f"a spline must have two cameras at least, [K, 4, 4], got {keyframes.shape}. Name more "
            "references, or choose another path."
        )
    ring, reach = _ring(keyframes, closed), _reach(keyframes)
    same = camera_distances(ring, reach) <= 1e-6 * reach
    problems = [
        f"camera {(i + 1) % count} of the spline is camera {i} again; leave one out."
        for i in np.flatnonzero(same).tolist()
    ]
    radii = np.linalg.norm(ring[:, :3, 3], axis=1, keepdims=True)
    if not straight:
        problems += [
            f"camera {i} of the spline stands at the origin, around which the path leads; move it, "
            "or make a straight spline (--straight)."
            for i in np.flatnonzero(radii[:count, 0] <= 1e-6 * reach).tolist()
        ]
        directions = ring[:, :3, 3] / np.maximum(radii, 1e-12)
        opposite = (directions[1:] * directions[:-1]).sum(-1) < -np.cos(1e-3)
        problems += [
            f"cameras {i} and {(i + 1) % count} of the spline are opposite each other, so that no "
            "way around the origin is the shortest; put one between, or make a straight spline "
            "(--straight)."
            for i in np.flatnonzero(opposite).tolist()
        ]
    if problems:
        raise UserError(listed(problems))
    return len(ring) - 1


def _ring(keyframes: np.ndarray, closed: bool) -> np.ndarray:
    """The cameras at the ends of all segments, in order."""
    return np.concatenate([keyframes, keyframes[:1]]) if closed else keyframes


def _reach(keyframes: np.ndarray) -> float:
    """Mean distance of the cameras from the origin, about which the scene lies."""
    return float(np.linalg.norm(keyframes[:, :3, 3], axis=-1).mean()) or 1.0


def _around_segment(
    values: np.ndarray, segment: np.ndarray, closed: bool, blend: Blend, is_quaternion: bool
) -> np.ndarray:
    """What two cameras before and two behind each view have, [K, D] and [M] -> [M, 4, D].

    Beyond the ends of an open path stands the camera next to the end, mirrored at it.
    Quaternions take the sign that is nearest to the one before.
    """
    count = len(values)
    index = segment[:, None] + np.arange(-1, 3)
    points = values[index % count if closed else np.clip(index, 0, count - 1)]
    for i in range(1, 4) if is_quaternion else ():
        opposite = (points[:, i] * points[:, i - 1]).sum(-1, keepdims=True) < 0
        points[:, i] = np.where(opposite, -points[:, i], points[:, i])
    if not closed:
        for side, end, neighbour in ((0, 1, 2), (3, 2, 1)):
            outside = (index[:, side] < 0) | (index[:, side] >= count)
            mirrored = blend(points[:, neighbour], points[:, end], np.full(len(segment), 2.0))
            points[:, side] = np.where(outside[:, None], mirrored, points[:, side])
    return points


def _pyramid(points: np.ndarray, knots: np.ndarray, time: np.ndarray, blend: Blend) -> np.ndarray:
    """Barry and Goldman's: points [M, 4, D] at knots [M, 4] -> the curve at time [M], [M, D]."""

    def between(a: np.ndarray, b: np.ndarray, first: int, last: int) -> np.ndarray:
        share = (time - knots[:, first]) / (knots[:, last] - knots[:, first])
        return blend(a, b, share)

    a1, a2, a3 = (between(points[:, i], points[:, i + 1], i, i + 1) for i in range(3))
    return between(between(a1, a2, 0, 2), between(a2, a3, 1, 3), 1, 2)


def _lerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    return a + share[:, None] * (b - a)


def _slerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """On the great arc from a to b, unit vectors [M, D]; beyond them where share is not in [0, 1].

    share: [M]. Callers keep out a = -b, which have no one arc. Not scipy's Slerp: the spline also
    extrapolates, blends directions, and takes another pair of ends for every view.
    """
    cosine = (a * b).sum(-1)
    angle = np.arctan2(np.linalg.norm(b - cosine[:, None] * a, axis=-1), cosine)
    near = angle < 1e-9
    sine = np.where(near, 1.0, np.sin(angle))
    first = np.where(near, 1 - share, np.sin((1 - share) * angle) / sine)
    second = np.where(near, share, np.sin(share * angle) / sine)
    blended = first[:, None] * a + second[:, None] * b
    return blended / np.linalg.norm(blended, axis=-1, keepdims=True)

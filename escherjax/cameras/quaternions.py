"""Rotations as unit quaternions (w, x, y, z), for paths and for files that want them."""

from __future__ import annotations

import numpy as np


def from_rotations(rotations: np.ndarray) -> np.ndarray:
    """Unit quaternions (w, x, y, z) of rotation matrices, [V, 3, 3] -> [V, 4], w >= 0.

    The eigenvector of the largest eigenvalue of Bar-Itzhack's matrix (2000, "New method for
    extracting the quaternion from a rotation matrix"), exact for every angle.
    """
    r = np.asarray(rotations, np.float64)
    matrix = np.zeros((len(r), 4, 4))
    matrix[:, 0, 0] = r[:, 0, 0] + r[:, 1, 1] + r[:, 2, 2]
    vector = np.stack([r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]])
    matrix[:, 0, 1:] = matrix[:, 1:, 0] = vector.T
    matrix[:, 1:, 1:] = r + r.swapaxes(1, 2) - matrix[:, :1, :1] * np.eye(3)
    found = np.linalg.eigh(matrix)[1][..., -1]
    return np.where(found[:, :1] < 0, -found, found)


def to_rotations(unit: np.ndarray) -> np.ndarray:
    """Rotation matrices of unit quaternions (w, x, y, z), [V, 4] -> [V, 3, 3]."""
    w, x, y, z = unit.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def slerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """On the great arc from a to b, unit vectors [M, D]; beyond them where share is not in [0, 1].

    share: [M]. Raises nothing where a = -b, which have no one arc: the caller keeps them out.
    """
    cosine = (a * b).sum(-1)
    angle = np.arctan2(np.linalg.norm(b - cosine[:, None] * a, axis=-1), cosine)
    near = angle < 1e-9
    sine = np.where(near, 1.0, np.sin(angle))
    first = np.where(near, 1 - share, np.sin((1 - share) * angle) / sine)
    second = np.where(near, share, np.sin(share * angle) / sine)
    blended = first[:, None] * a + second[:, None] * b
    return blended / np.linalg.norm(blended, axis=-1, keepdims=True)

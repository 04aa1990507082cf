"""Cameras added to few targets, since views come out better when more are drawn with them."""

from __future__ import annotations

import numpy as np

# Mean squared sine between optical axes and their common direction: a degree of spread.
_MIN_SPREAD_OF_AXES = 3e-4


def extra_cameras(reference_c2w: np.ndarray, target_c2w: np.ndarray, count: int) -> np.ndarray:
    """`count` cameras near the targets, to be drawn with them and dropped.

    Quality grows with the number of views drawn together up to about 15 (EscherNet, arXiv
    2402.03908, figure 8). The cameras are the targets themselves in turn, moved by 10 degrees to
    one side, by 10 to the other, by 20, ... about the vertical (z) through the point that all
    cameras, references too, look at most nearly. Where all look one way there is no such point,
    and the targets are repeated where they are.
    reference_c2w: [N, 4, 4]; target_c2w: [M, 4, 4]. Returns [count, 4, 4] float32.
    """
    seen = np.concatenate([reference_c2w, target_c2w]).astype(np.float64)
    axes, centres = seen[:, :3, 2], seen[:, :3, 3]
    projectors = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    extra = target_c2w[np.arange(count) % len(target_c2w)].astype(np.float64)
    if np.linalg.eigvalsh(projectors.mean(0))[0] < _MIN_SPREAD_OF_AXES:
        return extra.astype(np.float32)
    focus = np.linalg.solve(projectors.sum(0), (projectors @ centres[..., None]).sum(0))[:, 0]
    rounds = np.arange(count) // len(target_c2w)  # 0, 1, 2, ...: +10, -10, +20, ... degrees
    angles = np.radians(10.0) * (rounds // 2 + 1) * np.where(rounds % 2, -1, 1)
    turns = np.tile(np.eye(3), (count, 1, 1))
    turns[:, 0, 0] = turns[:, 1, 1] = np.cos(angles)
    turns[:, 1, 0], turns[:, 0, 1] = np.sin(angles), -np.sin(angles)
    extra[:, :3, 3] -= focus
    extra[:, :3] = turns @ extra[:, :3]
    extra[:, :3, 3] += focus
    return extra.astype(np.float32)

"""Worlds of any origin, orientation and scale, moved to stand z up about the origin."""

from __future__ import annotations

from typing import Any

import numpy as np

from escherjax.errors import UserError


def normalize_scene(
    c2w: np.ndarray, radius: float = 1.5, recenter: bool = False
) -> tuple[np.ndarray, float, np.ndarray]:
    """Moves and scales a scene so that its farthest camera stands `radius` from the origin.

    Args:
        c2w: [V, 4, 4] camera-to-world.
        radius: above 0.
        recenter: whether to move the point nearest to all optical axes to the origin first.

    Returns:
        (c2w [V, 4, 4] of the same dtype, scale, center [3]), where x_new = scale * (x - center).

    Raises:
        UserError: All cameras stand on one point, or the radius is not positive.
    """
    if not (np.isfinite(radius) and radius > 0):
        raise UserError(
            f"radius (--max-radius) must be positive, the farthest camera's distance from the "
            f"origin; got {radius}."
        )
    positions, forward = c2w[:, :3, 3].astype(np.float64), c2w[:, :3, 2].astype(np.float64)
    center = np.zeros(3)
    if recenter:
        # Least squares: sum over cameras of the squared distance to the axis, (I - d d^T)(x - p).
        projectors = np.eye(3) - forward[:, :, None] * forward[:, None, :]
        right_side = (projectors @ positions[..., None]).sum(0)[:, 0]
        center = np.linalg.lstsq(projectors.sum(0), right_side, rcond=None)[0]
    distance = float(np.linalg.norm(positions - center, axis=-1).max())
    if distance == 0:
        raise UserError("normalize_scene: every camera stands on the scene's centre; no scale.")
    scale = radius / distance
    moved = c2w.copy()
    moved[:, :3, 3] = scale * (positions - center)
    return moved, scale, center


def upright_scene(c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turns a world of unknown orientation so that the cameras' common up becomes +z.

    Up is the direction u that is closest to level for all image rows and to the images' mean up m:
    least squares of (x_i . u)^2, averaged over the cameras' x axes, + 0.01 |u - m|^2. Around an
    object the rows decide; where all cameras look one way they cannot, and the mean up does.

    Args:
        c2w: [V, 4, 4] camera-to-world, OpenCV axes.

    Returns:
        (c2w [V, 4, 4] of the same dtype, rotation [3, 3] float64), where x_new = rotation @ x.

    Raises:
        UserError: The cameras have no common up.
    """
    axes = c2w[:, :3, :3].astype(np.float64)
    right, mean_up = axes[:, :, 0], -axes[:, :, 1].mean(0)
    rows = right.T @ right / len(right)
    up = np.linalg.solve(rows + 0.01 * np.eye(3), 0.01 * mean_up)
    length = float(np.linalg.norm(up))
    if not length > 1e-3:
        raise UserError(
            "upright_scene: the images' up directions cancel out; turn the pictures upright, or "
            "keep the world's own up."
        )
    # The rotation about the axis that both share takes `up` to +z and turns nothing else.
    x, y, z = up / length
    if z < -1 + 1e-9:
        rotation = np.diag([1.0, -1.0, -1.0])
    else:
        cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])  # of up x e_z
        rotation = np.eye(3) + cross + cross @ cross / (1 + z)
    turned = c2w.copy()
    turned[:, :3] = rotation @ c2w[:, :3].astype(np.float64)
    return turned, rotation


def normalize_poses(
    c2w: np.ndarray, radius: float | None = 1.5, recenter: bool = True, upright: bool = True
) -> tuple[np.ndarray, dict[str, Any]]:
    """Gives an arbitrary world an up direction, an origin and a scale.

    Args:
        c2w: [V, 4, 4] camera-to-world, OpenCV axes.
        radius: see `normalize_scene`; None keeps origin and scale.
        recenter: see `normalize_scene`.
        upright: whether world z becomes the cameras' common up (`upright_scene`).

    Returns:
        (c2w [V, 4, 4], {"rotation" [3][3], "center" [3], "scale"}), where
        x_new = scale * (rotation @ x - center).

    Raises:
        UserError: See `normalize_scene` and `upright_scene`.
    """
    rotation, scale, center = np.eye(3), 1.0, np.zeros(3)
    if upright:
        c2w, rotation = upright_scene(c2w)
    if radius is not None:
        c2w, scale, center = normalize_scene(c2w, radius, recenter)
    return c2w, {"rotation": rotation.tolist(), "center": center.tolist(), "scale": scale}

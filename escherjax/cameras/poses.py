"""Poses and intrinsics: one convention inside, named conversions at the border.

Inside escherjax a camera is a camera-to-world matrix `c2w` with OpenCV axes, in a world whose
z axis points up, and optionally an intrinsics matrix `K` in pixels of the stated image size:

        world            camera (OpenCV)        pixels
          z                    z (forward)       (0, 0) ----> u
          |                   /                     |
          |                  /                      v      pixel (i, j) covers
          o----- y          o----- x                       [j, j+1) x [i, i+1)
         /                  |
        x                   y (down)

    x_world = c2w @ [x_cam, 1],   u = fx * x / z + cx,   v = fy * y / z + cy

Pixel centres lie at half-integers, so that resizing an image by s multiplies K's first two rows
by s. Functions take NumPy or JAX arrays with any leading axes and return the same kind; this file
imports no JAX, so that users of PyTorch need none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from escherjax.errors import UserError

# Field of view of Zero-1-to-3's renders, on which EscherNet was trained: 35 mm lens, 32 mm sensor.
PUBLISHED_FOV_DEG = math.degrees(2 * math.atan(16 / 35))

Array = Any  # numpy.ndarray or jax.Array: every function here takes both


def opengl_from_opencv(c2w: Array) -> Array:
    """Renames camera axes: OpenCV (x right, y down, z forward) to OpenGL (x right, y up, z back).

    The camera does not move, so columns change sign and rows never do; flipping rows would turn
    the world. Its own inverse.

    Args:
        c2w: [..., 4, 4] camera-to-world, OpenCV axes.

    Returns:
        [..., 4, 4] camera-to-world, OpenGL axes.
    """
    return c2w * _constant(c2w, [1.0, -1.0, -1.0, 1.0])  # scales columns


def opencv_from_opengl(c2w: Array) -> Array:
    """Renames camera axes from OpenGL (also Blender's) to OpenCV; see `opengl_from_opencv`.

    Args:
        c2w: [..., 4, 4] camera-to-world, OpenGL axes.

    Returns:
        [..., 4, 4] camera-to-world, OpenCV axes.
    """
    return opengl_from_opencv(c2w)


def rigid_inverse(matrix: Array) -> Array:
    """Inverts rigid transforms in closed form: [R t; 0 1] to [R^T -R^T t; 0 1].

    Args:
        matrix: [..., 4, 4], rotation and translation only (see `check_poses`).

    Returns:
        [..., 4, 4] of the same dtype.
    """
    xp = _namespace(matrix)
    rotation = xp.swapaxes(matrix[..., :3, :3], -1, -2)
    translation = -(rotation * matrix[..., None, :3, 3]).sum(-1)
    top = xp.concatenate([rotation, translation[..., None]], axis=-1)  # [..., 3, 4]
    return xp.concatenate([top, matrix[..., 3:, :]], axis=-2)


def c2w_from_w2c(w2c: Array) -> Array:
    """Camera-to-world from world-to-camera; axes are kept.

    Args:
        w2c: [..., 4, 4], or [..., 3, 4] without the last row.

    Returns:
        [..., 4, 4] camera-to-world.
    """
    return rigid_inverse(_with_last_row(w2c) if w2c.shape[-2] == 3 else w2c)


def w2c_from_c2w(c2w: Array) -> Array:
    """World-to-camera from camera-to-world, [..., 4, 4]; axes are kept."""
    return rigid_inverse(c2w)


def look_at(position: Array, target: Array | None = None, up: Array | None = None) -> Array:
    """Poses that look from `position` at `target`, with images upright along `up`.

    Looking exactly along `up`, the image's up direction is world +y instead.

    Args:
        position: [..., 3] camera centres.
        target: [..., 3] points in the middle of the images; None is the origin.
        up: [..., 3] directions; None is +z.

    Returns:
        c2w [..., 4, 4], OpenCV axes, of the dtype of `position`.

    Raises:
        UserError: A position equals its target (checked for NumPy arrays only).
    """
    xp = _namespace(position)
    direction = (0.0 if target is None else target) - position
    if xp is np and not np.all(np.linalg.norm(direction, axis=-1) > 0):
        raise UserError("look_at: a camera stands at its own target; move one of them.")
    forward = _normalize(direction)
    up = _constant(position, [0.0, 0.0, 1.0]) if up is None else up
    right = xp.cross(forward, xp.broadcast_to(up, forward.shape))
    y_axis = xp.broadcast_to(_constant(position, [0.0, 1.0, 0.0]), forward.shape)
    parallel = (right * right).sum(-1, keepdims=True) < 1e-12
    right = _normalize(xp.where(parallel, xp.cross(forward, y_axis), right))
    axes = [right, xp.cross(forward, right), forward, position]  # x, y (down), z, centre
    return _with_last_row(xp.stack(axes, axis=-1))


def from_spherical(polar_rad: Array, azimuth_rad: Array, radius: Array) -> Array:
    """Poses on a sphere about the origin, looking at it.

    Args:
        polar_rad: [...] angle from +z, in [0, pi].
        azimuth_rad: [...] angle from +x towards +y.
        radius: [...] distance from the origin, above 0.

    Returns:
        c2w [..., 4, 4] float32, OpenCV axes.
    """
    xp = _namespace(polar_rad, azimuth_rad, radius)
    polar, azimuth, distance = xp.broadcast_arrays(
        *(xp.asarray(x, dtype=xp.float32) for x in (polar_rad, azimuth_rad, radius))
    )
    direction = xp.stack(
        [xp.sin(polar) * xp.cos(azimuth), xp.sin(polar) * xp.sin(azimuth), xp.cos(polar)], axis=-1
    )
    return look_at(distance[..., None] * direction)


def to_spherical(c2w: Array) -> tuple[Array, Array, Array]:
    """Spherical coordinates of camera centres about the origin.

    Args:
        c2w: [..., 4, 4] camera-to-world.

    Returns:
        (polar_rad in [0, pi], azimuth_rad in [-pi, pi], radius), each [...].
    """
    xp = _namespace(c2w)
    x, y, z = c2w[..., 0, 3], c2w[..., 1, 3], c2w[..., 2, 3]
    polar = xp.arctan2(xp.sqrt(x * x + y * y), z)
    return polar, xp.arctan2(y, x), xp.sqrt(x * x + y * y + z * z)


def project(points: Array, c2w: Array, K: Array) -> tuple[Array, Array]:
    """Pixels and depths of world points, in one camera for each set of points.

    Args:
        points: [..., P, 3] in the world.
        c2w: [..., 4, 4] camera-to-world, OpenCV axes.
        K: [..., 3, 3] in pixels.

    Returns:
        (pixels [..., P, 2] as (u, v), depth [..., P] along z); visible points have depth > 0.
    """
    xp = _namespace(c2w)
    w2c = w2c_from_c2w(c2w)
    camera = points @ xp.swapaxes(w2c[..., :3, :3], -1, -2) + w2c[..., None, :3, 3]
    homogeneous = camera @ xp.swapaxes(K, -1, -2)  # [..., P, 3]
    return homogeneous[..., :2] / homogeneous[..., 2:], camera[..., 2]


def intrinsics_from_fov(fov_x_rad: float, width: float, height: float) -> np.ndarray:
    """Intrinsics of square pixels with the principal point in the middle.

    Args:
        fov_x_rad: horizontal field of view.
        width: of the image, in pixels.
        height: of the image, in pixels.

    Returns:
        K [3, 3] float32.
    """
    focal = 0.5 * width / np.tan(0.5 * fov_x_rad)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)


def resize_intrinsics(K: Array, scale_x: float, scale_y: float) -> Array:
    """Intrinsics after an image was resized, corners kept on corners.

    Args:
        K: [..., 3, 3] in pixels before.
        scale_x: new width over old.
        scale_y: new height over old.

    Returns:
        K [..., 3, 3] in pixels after.
    """
    return K * _constant(K, [[scale_x], [scale_y], [1.0]])


def crop_intrinsics(K: Array, left: float, top: float) -> Array:
    """Intrinsics after columns and rows were cut off an image.

    Args:
        K: [..., 3, 3] in pixels before.
        left: columns cut off at the left; negative where some were added.
        top: rows cut off at the top; negative where some were added.

    Returns:
        K [..., 3, 3] in pixels after.
    """
    return K - _constant(K, [[0, 0, left], [0, 0, top], [0, 0, 0]])


def nearest_reference(reference_c2w: np.ndarray, target_c2w: np.ndarray) -> np.ndarray:
    """The reference whose camera centre lies nearest to each target's, the first of equals.

    Args:
        reference_c2w: [..., N, 4, 4] camera-to-world.
        target_c2w: [..., M, 4, 4] camera-to-world.

    Returns:
        Indices [..., M] in [0, N).
    """
    refs, targets = reference_c2w[..., :3, 3], target_c2w[..., :3, 3]
    distance = np.linalg.norm(targets[..., :, None, :] - refs[..., None, :, :], axis=-1)
    return distance.argmin(axis=-1)  # [..., M]


def pose_faults(c2w: np.ndarray, tolerance: float = 1e-3) -> list[tuple[int, str, str]]:
    """Everything that keeps matrices from being finite right-handed rigid transforms.

    Args:
        c2w: [V, 4, 4].
        tolerance: on R R^T = I, elementwise.

    Returns:
        (view, kind, text) in order of the views, at most one each; kind is "not finite",
        "not rigid", "mirrored" or "last row".
    """
    c2w = np.asarray(c2w, np.float64)
    finite = np.isfinite(c2w).all((1, 2))
    safe = np.where(finite[:, None, None], c2w, np.eye(4))
    rotation = safe[:, :3, :3]
    determinants = np.linalg.det(rotation)
    errors = np.abs(rotation @ rotation.swapaxes(1, 2) - np.eye(3)).max((1, 2))
    rigid = (errors <= tolerance) & (np.abs(determinants) >= 0.5)
    last_row = np.abs(safe[:, 3] - [0, 0, 0, 1]).max(1) <= 1e-6
    faults = []
    for view in np.flatnonzero(~(finite & rigid & (determinants > 0) & last_row)).tolist():
        determinant = f"{determinants[view]:.3g}"
        if not finite[view]:
            kind, text = "not finite", "holds NaN or infinity; remove the view or mend its pose."
        elif not rigid[view]:
            kind = "not rigid"
            text = (
                f"is not rigid: |R R^T - I| = {errors[view]:.3g}, det R = {determinant}; must be a "
                "rotation and a translation. Take scale and shear out of the matrix."
            )
        elif determinants[view] < 0:
            kind = "mirrored"
            text = (
                f"is mirrored: det R must be +1, got {determinant}. An axis was flipped alone: "
                "flip two, as in cameras.opengl_from_opencv."
            )
        else:
            kind = "last row"
            text = f"must have last row [0, 0, 0, 1], got {c2w[view, 3].tolist()}."
        faults.append((view, kind, f"pose of view {view} {text}"))
    return faults


def check_poses(c2w: np.ndarray, name: str, tolerance: float = 1e-3) -> None:
    """Raises UserError unless every matrix is a finite rigid transform, right-handed.

    Args:
        c2w: [..., 4, 4].
        name: whose cameras they are, for the message.
        tolerance: see `pose_faults`.

    Raises:
        UserError: Names the first bad view and what is wrong with it.
    """
    c2w = np.asarray(c2w)
    if c2w.ndim < 2 or c2w.shape[-2:] != (4, 4):
        raise UserError(
            f"{name}: poses must have shape [..., 4, 4] camera-to-world, got {c2w.shape}"
        )
    for _, _, text in pose_faults(c2w.reshape(-1, 4, 4), tolerance):
        raise UserError(f"{name}: {text}")


def intrinsics_faults(K: np.ndarray) -> list[tuple[int, str]]:
    """The intrinsics that no camera has: (view, text), for K [V, 3, 3], in order of the views."""
    usable = np.isfinite(K).all((1, 2)) & (K[:, [0, 1], [0, 1]] > 0).all(1)
    needed = "must be finite with positive focal lengths"
    return [
        (view, f"intrinsics of view {view} {needed}, got {K[view].tolist()}.")
        for view in np.flatnonzero(~usable).tolist()
    ]


def _namespace(*arrays: Array) -> Any:
    """jax.numpy if one of the arrays is JAX's, else numpy."""
    for array in arrays:
        if hasattr(array, "__array_namespace__") and not isinstance(array, np.ndarray | np.generic):
            return array.__array_namespace__()
    return np


def _constant(like: Array, values: Any) -> Array:
    """Values as an array of the kind, dtype and number of axes of another.

    The axes are spelled out, as JAX may be set to refuse arrays of unequal ranks.
    """
    array = _namespace(like).asarray(values, dtype=like.dtype)
    return array.reshape((1,) * (like.ndim - array.ndim) + array.shape)


def _with_last_row(matrix: Array) -> Array:
    """Appends the row [0, 0, 0, 1] of a rigid transform: [..., 3, 4] -> [..., 4, 4]."""
    xp = _namespace(matrix)
    row = xp.broadcast_to(_constant(matrix, [[0.0, 0.0, 0.0, 1.0]]), (*matrix.shape[:-2], 1, 4))
    return xp.concatenate([matrix, row], axis=-2)


def _normalize(vector: Array) -> Array:
    return vector / _namespace(vector).sqrt((vector * vector).sum(-1, keepdims=True))

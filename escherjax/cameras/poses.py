"""Cameras: one convention inside, named conversions at the border.

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
by s. Functions take numpy or JAX arrays with any leading axes and answer in kind.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from escherjax.errors import UserError

Array = Any  # numpy.ndarray or jax.Array: every function here takes both


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cameras:
    """Posed pinhole cameras with leading batch and view axes.

    c2w: [..., 4, 4] float32, camera-to-world, OpenCV axes.
    K: [..., 3, 3] float32 in pixels, or None where intrinsics are unknown.
    """

    c2w: Array
    K: Array | None = None

    def __getitem__(self, index) -> Cameras:
        """Selects along the leading axes, as an array would; None adds one."""
        return Cameras(self.c2w[index], None if self.K is None else self.K[index])


def _namespace(array: Array):
    return jnp if isinstance(array, jax.Array) else np


def opengl_from_opencv(c2w: Array) -> Array:
    """Renames camera axes: OpenCV (x right, y down, z forward) to OpenGL (x right, y up, z back).

    The camera does not move, so columns change sign and rows never do; flipping rows would turn
    the world. c2w: [..., 4, 4]. Returns the same shape. Its own inverse.
    """
    signs = _namespace(c2w).asarray([[1.0, -1.0, -1.0, 1.0]], dtype=c2w.dtype)
    return c2w * signs.reshape((1,) * (c2w.ndim - 1) + (4,))  # scales columns


def opencv_from_opengl(c2w: Array) -> Array:
    """Renames camera axes from OpenGL (or Blender) to OpenCV; see `opengl_from_opencv`."""
    return opengl_from_opencv(c2w)


def rigid_inverse(matrix: Array) -> Array:
    """Inverts rigid transforms in closed form: [R t; 0 1] to [R^T -R^T t; 0 1].

    matrix: [..., 4, 4], rotation and translation only (see `check_poses`). Same shape and dtype.
    """
    xp = _namespace(matrix)
    rotation = xp.swapaxes(matrix[..., :3, :3], -1, -2)
    translation = -_rotate(rotation, matrix[..., :3, 3])
    top = xp.concatenate([rotation, translation[..., None]], axis=-1)  # [..., 3, 4]
    return xp.concatenate([top, matrix[..., 3:, :]], axis=-2)


def c2w_from_w2c(w2c: Array) -> Array:
    """Camera-to-world from world-to-camera, [..., 4, 4] or [..., 3, 4]; axes are kept."""
    xp = _namespace(w2c)
    if w2c.shape[-2] == 3:
        bottom = xp.zeros((*w2c.shape[:-2], 1, 4), w2c.dtype) + xp.asarray(
            [[0.0, 0.0, 0.0, 1.0]], dtype=w2c.dtype
        ).reshape((1,) * (w2c.ndim - 1) + (4,))
        w2c = xp.concatenate([w2c, bottom], axis=-2)
    return rigid_inverse(w2c)


def w2c_from_c2w(c2w: Array) -> Array:
    """World-to-camera from camera-to-world, [..., 4, 4]; axes are kept."""
    return rigid_inverse(c2w)


def look_at(position: Array, target: Array | None = None, up: Array | None = None) -> Array:
    """Poses that look from `position` at `target` (the origin), image upright along `up` (+z).

    position: [..., 3]; target, up: [..., 3] or None. Returns c2w [..., 4, 4], OpenCV axes.
    Looking exactly along `up`, the image's up direction is world +y instead.
    Raises UserError if position equals target.
    """
    xp = _namespace(position)
    dtype = position.dtype
    target = xp.zeros_like(position) if target is None else target
    up = _vector(xp, (0.0, 0.0, 1.0), position) if up is None else up
    direction = target - position
    if xp is np and not np.all(np.linalg.norm(direction, axis=-1) > 0):
        raise UserError("look_at: a camera stands at its own target; move one of them.")
    forward = _normalize(xp, direction)
    right = xp.cross(forward, xp.broadcast_to(up, forward.shape))
    fallback = xp.cross(forward, _vector(xp, (0.0, 1.0, 0.0), position))
    parallel = (right * right).sum(-1, keepdims=True) < 1e-12
    right = _normalize(xp, xp.where(parallel, fallback, right))
    down = xp.cross(forward, right)
    rotation = xp.stack([right, down, forward], axis=-1)  # columns are the camera's axes
    top = xp.concatenate([rotation, position[..., None]], axis=-1)
    bottom = xp.broadcast_to(
        xp.asarray([0.0, 0.0, 0.0, 1.0], dtype=dtype).reshape((1,) * (top.ndim - 1) + (4,)),
        (*top.shape[:-2], 1, 4),
    )
    return xp.concatenate([top, bottom], axis=-2)


def from_spherical(polar_rad: Array, azimuth_rad: Array, radius: Array) -> Array:
    """Poses on a sphere about the origin, looking at it.

    polar_rad: [...] from +z, in [0, pi]; azimuth_rad: [...] from +x towards +y; radius: [...] > 0.
    Returns c2w [..., 4, 4] float32, OpenCV axes.
    """
    xp = jnp if any(isinstance(x, jax.Array) for x in (polar_rad, azimuth_rad, radius)) else np
    polar, azimuth, distance = (
        xp.asarray(x, dtype=xp.float32) for x in (polar_rad, azimuth_rad, radius)
    )
    polar, azimuth, distance = xp.broadcast_arrays(polar, azimuth, distance)
    position = distance[..., None] * xp.stack(
        [xp.sin(polar) * xp.cos(azimuth), xp.sin(polar) * xp.sin(azimuth), xp.cos(polar)], axis=-1
    )
    return look_at(position)


def to_spherical(c2w: Array) -> tuple[Array, Array, Array]:
    """(polar_rad in [0, pi], azimuth_rad in [-pi, pi], radius) of camera centres, each [...]."""
    xp = _namespace(c2w)
    x, y, z = c2w[..., 0, 3], c2w[..., 1, 3], c2w[..., 2, 3]
    polar = xp.arctan2(xp.sqrt(x * x + y * y), z)
    return polar, xp.arctan2(y, x), xp.sqrt(x * x + y * y + z * z)


def project(points: Array, c2w: Array, K: Array) -> tuple[Array, Array]:
    """Pixels and depths of world points in one camera each.

    points: [..., P, 3]; c2w: [..., 4, 4]; K: [..., 3, 3].
    Returns (pixels [..., P, 2] as (u, v), depth [..., P] along z; visible points have depth > 0).
    """
    xp = _namespace(c2w)
    w2c = w2c_from_c2w(c2w)
    camera = points @ xp.swapaxes(w2c[..., :3, :3], -1, -2) + w2c[..., None, :3, 3]
    homogeneous = camera @ xp.swapaxes(K, -1, -2)  # [..., P, 3]
    return homogeneous[..., :2] / homogeneous[..., 2:], camera[..., 2]


def intrinsics_from_fov(fov_x_rad: float, width: float, height: float) -> np.ndarray:
    """K [3, 3] float32 of square pixels with horizontal field of view `fov_x_rad`, centred."""
    focal = 0.5 * width / np.tan(0.5 * fov_x_rad)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)


def resize_intrinsics(K: Array, scale_x: float, scale_y: float) -> Array:
    """K after the image was resized by (scale_x, scale_y), corners kept on corners."""
    scale = _namespace(K).asarray([[scale_x], [scale_y], [1.0]], dtype=K.dtype)
    return K * scale.reshape((1,) * (K.ndim - 2) + (3, 1))


def crop_intrinsics(K: Array, left: float, top: float) -> Array:
    """K after `left` columns and `top` rows were cut off (negative: padded on)."""
    shift = _namespace(K).asarray([[0, 0, left], [0, 0, top], [0, 0, 0]], dtype=K.dtype)
    return K - shift.reshape((1,) * (K.ndim - 2) + (3, 3))


def normalize_scene(
    c2w: np.ndarray, radius: float = 1.5, recenter: bool = False
) -> tuple[np.ndarray, float, np.ndarray]:
    """Moves and scales a scene so that its farthest camera stands `radius` from the origin.

    c2w: [V, 4, 4]. recenter: first move the point nearest to all optical axes to the origin.
    Returns (c2w [V, 4, 4] of the same dtype, scale, center [3]); x_new = scale * (x - center).
    Raises UserError if all cameras stand on one point, or for a radius that is not positive.
    """
    if not (np.isfinite(radius) and radius > 0):
        raise UserError(
            f"radius = {radius} (--max-radius); needed a positive number, the farthest camera's "
            "distance from the origin."
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


def nearest_reference(reference_c2w: np.ndarray, target_c2w: np.ndarray) -> np.ndarray:
    """The reference whose camera centre lies nearest to each target's, the first of equals.

    reference_c2w: [..., N, 4, 4]; target_c2w: [..., M, 4, 4]. Returns indices [..., M] in [0, N).
    """
    refs, targets = reference_c2w[..., :3, 3], target_c2w[..., :3, 3]
    distance = np.linalg.norm(targets[..., :, None, :] - refs[..., None, :, :], axis=-1)
    return distance.argmin(axis=-1)  # [..., M]


def pose_faults(c2w: np.ndarray, tolerance: float = 1e-3) -> list[tuple[int, str, str]]:
    """Everything that keeps matrices from being finite right-handed rigid transforms.

    c2w: [V, 4, 4]; tolerance on R R^T = I, elementwise. Returns (view, kind, text) in order of the
    views, at most one each; kind is "not finite", "not rigid", "mirrored" or "last row".
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
        determinant, error = determinants[view], errors[view]
        if not finite[view]:
            kind, text = "not finite", "holds NaN or infinity; remove the view or mend its pose."
        elif not rigid[view]:
            kind, text = (
                "not rigid",
                (
                    f"is not rigid: |R R^T - I| = {error:.3g}, det R = {determinant:.3g}; "
                    "needed a rotation and a translation. Take scale and shear out of the matrix."
                ),
            )
        elif determinant < 0:
            kind, text = (
                "mirrored",
                (
                    f"is mirrored (det R = {determinant:.3g}); needed det R = +1. An axis was "
                    "flipped alone: flip two, as in cameras.opengl_from_opencv."
                ),
            )
        else:
            kind, text = "last row", (f"has last row {c2w[view, 3].tolist()}; needed [0, 0, 0, 1].")
        faults.append((view, kind, f"pose of view {view} {text}"))
    return faults


def upright_scene(c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turns a world of unknown orientation so that the cameras' common up becomes +z.

    Up is the direction u that is closest to level for all image rows and to the images' mean up m:
    least squares of (x_i . u)^2, averaged over the cameras' x axes, + 0.01 |u - m|^2. Around an
    object the rows decide; where all cameras look one way they cannot, and the mean up does.
    c2w: [V, 4, 4], OpenCV axes. Returns (c2w [V, 4, 4] of the same dtype, rotation [3, 3] float64);
    x_new = rotation @ x. Raises UserError if the cameras have no common up.
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

    c2w: [V, 4, 4]. upright: world z becomes the cameras' common up (`upright_scene`);
    recenter and radius as in `normalize_scene`, radius None keeping origin and scale.
    Returns (c2w [V, 4, 4], {"rotation" [3][3], "center" [3], "scale"}), where
    x_new = scale * (rotation @ x - center).
    """
    rotation, scale, center = np.eye(3), 1.0, np.zeros(3)
    if upright:
        c2w, rotation = upright_scene(c2w)
    if radius is not None:
        c2w, scale, center = normalize_scene(c2w, radius, recenter)
    return c2w, {"rotation": rotation.tolist(), "center": center.tolist(), "scale": scale}


def check_poses(c2w: np.ndarray, name: str, tolerance: float = 1e-3) -> None:
    """Raises UserError unless every matrix is a finite rigid transform, right-handed.

    c2w: [..., 4, 4]; tolerance on R R^T = I, elementwise; `name` says whose cameras they are.
    """
    c2w = np.asarray(c2w)
    if c2w.ndim < 2 or c2w.shape[-2:] != (4, 4):
        raise UserError(f"{name}: poses have shape {c2w.shape}; needed [..., 4, 4] camera-to-world")
    for _, _, text in pose_faults(c2w.reshape(-1, 4, 4), tolerance):
        raise UserError(f"{name}: {text}")


def _rotate(rotation: Array, vector: Array) -> Array:
    return (rotation * vector[..., None, :]).sum(-1)


def _normalize(xp, vector: Array) -> Array:
    return vector / xp.sqrt((vector * vector).sum(-1, keepdims=True))


def _vector(xp, values: tuple[float, float, float], like: Array) -> Array:
    return xp.broadcast_to(
        xp.asarray(values, dtype=like.dtype).reshape((1,) * (like.ndim - 1) + (3,)), like.shape
    )

"""Camera Positional Encoding (CaPE): attention that sees relative cameras only.

EscherNet (arXiv 2402.03908), section 3.2. Queries and keys, never values, are turned by their
view's camera so that their product depends on the relative camera alone. The variants:

  6dof        Each group of four channels is a row vector. Query groups are multiplied by the
              inverse-transpose of the world-to-camera matrix P, key groups by P, so that
              logit = sum over groups of q (P_key P_query^-1)^T k^T   ("dual" form of eq. 8; the
              form of the published weights).
  4dof        Channel pairs are turned by one of the angles (polar, azimuth, log radius, 0). The
              FULL width, all heads together, is cut in four quarters, one an angle: with 8 heads,
              heads 0-1 see the polar angle only, and heads 6-7 no camera (the published weights).
  4dof_paper  The same rotations laid out as the paper prints them (eq. 6): every head's channels
              repeat blocks of eight, two for each of the four angles.
  none        Plain attention.

World-to-camera matrices here have OpenGL axes, which is what the published weights were trained
with; `poses` makes them from our `Cameras`. Everything about cameras stays float32: features are
turned in float32 and rounded once.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from escherjax import cameras as cameras_lib
from escherjax.cameras import Cameras
from escherjax.errors import UserError

VARIANTS = ("6dof", "4dof", "4dof_paper", "none")

# The range of camera distances that the 4DoF radius angle spans (Zero-1-to-3's renders).
MIN_RADIUS, MAX_RADIUS = 1.5, 2.2

Poses = Any  # a pytree of [B, V, ...] float32 arrays


def check_variant(name: str) -> str:
    """Returns `name` if it is a known variant; raises UserError listing them otherwise."""
    if name not in VARIANTS:
        raise UserError(f"cape must be one of {', '.join(VARIANTS)}, got {name!r}.")
    return name


def check_channels(name: str, num_heads: int, head_dim: int) -> None:
    """Raises UserError if a head width cannot carry the variant."""
    width, multiple, needed = {
        "6dof": (head_dim, 4, "head width divisible by 4"),
        "4dof": (num_heads * head_dim, 8, "heads * head width divisible by 8"),
        "4dof_paper": (head_dim, 8, "head width divisible by 8"),
        "none": (1, 1, ""),
    }[check_variant(name)]
    if width % multiple:
        raise UserError(
            f"cape = {name!r} needs {needed}, got {num_heads} heads of width {head_dim}. "
            "Change unet.block_channels or unet.num_heads."
        )


def poses(name: str, cameras: Cameras) -> Poses:
    """Computes what an encoding needs of each camera, once for all layers.

    Args:
        name: one of `VARIANTS`.
        cameras: c2w [B, V, 4, 4], OpenCV axes.

    Returns:
        A pytree of float32 arrays: for 6dof {"key": P, "query": P^-T}, each [B, V, 4, 4]; for 4dof
        {"angles": [B, V, 4]} in radians; for none an empty dict.

    Raises:
        UserError: for an unknown name.
    """
    check_variant(name)
    if name == "none":
        return {}
    c2w = cameras_lib.opengl_from_opencv(jnp.asarray(cameras.c2w, jnp.float32))
    if name == "6dof":
        # P^-1 is c2w itself, so its transpose needs no inversion.
        return {"key": cameras_lib.rigid_inverse(c2w), "query": jnp.swapaxes(c2w, -1, -2)}
    return {"angles": angles_4dof(c2w)}


def angles_4dof(c2w: jax.Array) -> jax.Array:
    """Computes the four angles of 4DoF CaPE.

    Args:
        c2w: [..., 4, 4] camera-to-world. Only positions count, so camera axes do not matter.

    Returns:
        (polar, azimuth, log radius, 0) in radians, [..., 4] float32; the radius is clipped to
        [1.5, 2.2] and its logarithm spread over [0, pi].
    """
    polar, azimuth, radius = cameras_lib.to_spherical(jnp.asarray(c2w, jnp.float32))
    log_low, log_high = jnp.log(jnp.float32(MIN_RADIUS)), jnp.log(jnp.float32(MAX_RADIUS))
    log_radius = jnp.log(jnp.clip(radius, MIN_RADIUS, MAX_RADIUS))
    radius_angle = jnp.pi * (log_radius - log_low) / (log_high - log_low)
    return jnp.stack([polar, azimuth, radius_angle, jnp.zeros_like(polar)], axis=-1)


def rotate_queries(name: str, q: jax.Array, query_poses: Poses) -> jax.Array:
    """Turns queries by their views' cameras.

    Args:
        name: one of `VARIANTS`.
        q: [B, V*T, heads, head_dim], view-major.
        query_poses: from `poses`, [B, V, ...].

    Returns:
        The turned queries, in the shape and dtype of q.
    """
    if name == "6dof":
        return _apply_matrices(q, query_poses["query"])
    return _rotate_4dof(name, q, query_poses)


def rotate_keys(name: str, k: jax.Array, key_poses: Poses) -> jax.Array:
    """Turns keys by their views' cameras; see `rotate_queries`."""
    if name == "6dof":
        return _apply_matrices(k, key_poses["key"])
    return _rotate_4dof(name, k, key_poses)


def encode_6dof(
    q: jax.Array, k: jax.Array, query_w2c: jax.Array, key_w2c: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Encodes queries and keys by CaPE 6DoF (arXiv 2402.03908, eq. 8, dual form).

    Args:
        q: [B, Vq*Tq, heads, head_dim], head_dim divisible by 4.
        k: [B, Vk*Tk, heads, head_dim].
        query_w2c: [B, Vq, 4, 4] rigid world-to-camera, in the axes that the weights expect (OpenGL
            for the published ones).
        key_w2c: [B, Vk, 4, 4], likewise.

    Returns:
        (q, k) turned, in their shapes and dtypes.
    """
    query = jnp.swapaxes(cameras_lib.rigid_inverse(jnp.asarray(query_w2c, jnp.float32)), -1, -2)
    return _apply_matrices(q, query), _apply_matrices(k, jnp.asarray(key_w2c, jnp.float32))


def encode_4dof(
    q: jax.Array,
    k: jax.Array,
    query_angles: jax.Array,
    key_angles: jax.Array,
    layout: str = "released",
) -> tuple[jax.Array, jax.Array]:
    """Encodes queries and keys by CaPE 4DoF (arXiv 2402.03908, eq. 6).

    Args:
        q: [B, Vq*Tq, heads, head_dim].
        k: [B, Vk*Tk, heads, head_dim].
        query_angles: [B, Vq, 4] radians, from `angles_4dof`.
        key_angles: [B, Vk, 4] radians.
        layout: "released" cuts the full width in four quarters (the published weights); "paper"
            repeats blocks of eight inside each head.

    Returns:
        (q, k) turned, in their shapes and dtypes.

    Raises:
        UserError: for another layout, or a width that cannot carry it.
    """
    names = {"released": "4dof", "paper": "4dof_paper"}
    if layout not in names:
        raise UserError(f"layout must be 'released' or 'paper', got {layout!r}.")
    name = names[layout]
    return (
        _rotate_4dof(name, q, {"angles": query_angles}),
        _rotate_4dof(name, k, {"angles": key_angles}),
    )


def _apply_matrices(x: jax.Array, matrices: jax.Array) -> jax.Array:
    """Multiplies each row vector of four channels by its view's matrix from the right.

    Written as four multiply-adds, which XLA fuses into one pass over x; a batched 4x4 product
    would cost several.
    """
    batch, num_views = matrices.shape[:2]
    check_channels("6dof", x.shape[-2], x.shape[-1])
    rows = x.reshape(batch, num_views, -1, x.shape[-2] * x.shape[-1] // 4, 4)  # [B, V, T, G, 4]
    rows = rows.astype(jnp.float32)
    matrices = matrices[:, :, None, None]  # [B, V, 1, 1, 4, 4]
    out = rows[..., 0:1] * matrices[..., 0, :]
    for i in range(1, 4):
        out = out + rows[..., i : i + 1] * matrices[..., i, :]
    return out.reshape(x.shape).astype(x.dtype)


def _rotate_4dof(name: str, x: jax.Array, view_poses: Poses) -> jax.Array:
    if name == "none":
        return x
    num_heads, head_dim = x.shape[-2:]
    check_channels(name, num_heads, head_dim)
    angles = jnp.asarray(view_poses["angles"], jnp.float32)
    batch, num_views = angles.shape[:2]
    num_pairs = num_heads * head_dim // 2
    if name == "4dof":
        angles = jnp.repeat(angles, num_pairs // 4, axis=-1)  # [B, V, pairs], quarter by quarter
    else:
        angles = jnp.tile(angles, (1, 1, num_pairs // 4))  # [B, V, pairs], block by block
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]  # [B, V, 1, pairs]
    pairs = x.reshape(batch, num_views, -1, num_pairs, 2).astype(jnp.float32)
    x0, x1 = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([x0 * cos - x1 * sin, x1 * cos + x0 * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)

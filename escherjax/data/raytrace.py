"""Traces rays through a few convex solids: exact cameras, exact silhouettes, patterned faces.

Every solid is one convex body in its own coordinates p = R^T (x - center) / half_size:

    |p_x|, |p_y|, |p_z| <= 1,    k (p_x^2 + p_y^2) + A p_z^2 + B p_z + C <= 0,    n.p <= h,

so boxes, balls, cylinders, cones, domes, and any of them cut by a plane, share one formula: a
ray enters each constraint at one distance and leaves it at another, and the solid is where all
intervals overlap. The constraint that is entered last gives the normal.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

Array = Any  # jax.Array, or numpy.ndarray before a program takes it

# (k, A, B, C) of the quadric. A box only needs one that contains the cube: a ball of radius 4.
BOX = (1.0, 1.0, 0.0, -16.0)
BALL = (1.0, 1.0, 0.0, -1.0)
CYLINDER = (1.0, 0.0, 0.0, -1.0)
CONE = (1.0, -0.25, 0.5, -0.25)  # apex at p_z = 1
DOME = (1.0, 0.0, 0.5, -0.5)  # paraboloid, apex at p_z = 1
NO_CUT = (0.0, 0.0, 1.0, 8.0)

FAR = 1e30  # the distance of what is not hit
BRIGHTNESS_STEPS = 40000.0  # of light 1; the brightest face has 1.17

PLAIN, CHECKER, STRIPES, DOTS, WAVES = range(5)


class Solids(NamedTuple):
    """S solids of one scene; leading axes may be added to all fields alike.

    Colours are linear RGB in [0, 1]. A face is the sign and axis of the largest component of the
    normal in the solid's coordinates, in the order -x, +x, -y, +y, -z, +z.
    """

    rotation: Array  # [S, 3, 3] world from local
    center: Array  # [S, 3]
    half_size: Array  # [S, 3]
    quadric: Array  # [S, 4] (k, A, B, C)
    cut: Array  # [S, 4] (n, h): the part with n.p > h is cut off
    face_colors: Array  # [S, 6, 3]
    pattern_color: Array  # [S, 3]
    pattern: Array  # [S] int32, PLAIN .. WAVES
    pattern_scale: Array  # [S] periods across the solid


class World(NamedTuple):
    """One scene: the first `count` of its solids are there; `light` points towards the sun."""

    solids: Solids  # fields [S, ...]
    count: Array  # [] int32
    light: Array  # [3] unit length


def _dot(a: Sequence[Array] | Array, b: Sequence[Array] | Array) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _tag(distance: Array, tag: int) -> Array:
    """Writes a small number into the last bits of distances: the winner of a max names itself."""
    bits = jax.lax.bitcast_convert_type(distance, jnp.int32)
    return jax.lax.bitcast_convert_type((bits & ~7) | tag, jnp.float32)


def _enter_solid(o: Sequence[Array], d: Sequence[Array], solid: Solids) -> Array:
    """Tagged distance at which rays o + t d (local) enter a solid; FAR if they miss it.

    The tag names the constraint that is entered last: 0, 1, 2 the slabs, 3 the cut, 4 the quadric.
    """
    near, far = jnp.full_like(d[0], -FAR), jnp.full_like(d[0], FAR)
    for axis in range(3):
        inverse = 1.0 / d[axis]
        middle, reach = -o[axis] * inverse, jnp.abs(inverse)
        near = jnp.maximum(near, _tag(middle - reach, axis))
        far = jnp.minimum(far, middle + reach)

    plane = solid.cut[:3]
    slope = _dot(plane, d)
    crossing = (solid.cut[3] - _dot(plane, o)) / slope
    near = jnp.maximum(near, _tag(jnp.where(slope < 0, crossing, -FAR), 3))
    far = jnp.minimum(far, jnp.where(slope < 0, FAR, crossing))

    k, a, b, c = (solid.quadric[i] for i in range(4))
    qa = k * (d[0] * d[0] + d[1] * d[1]) + a * d[2] * d[2]
    qb = k * (o[0] * d[0] + o[1] * d[1]) + a * o[2] * d[2] + 0.5 * b * d[2]
    qc = k * (o[0] * o[0] + o[1] * o[1]) + a * o[2] * o[2] + b * o[2] + c
    discriminant = qb * qb - qa * qc
    inverse = 1.0 / qa
    reach = jnp.sqrt(jnp.maximum(discriminant, 0.0)) * jnp.abs(inverse)
    middle = -qb * inverse
    # Where qa < 0 (steep rays through a cone) the ray is inside before the first root and after
    # the second; the slabs keep one nappe, so only one of the two parts is left over.
    convex, outside = qa > 0, discriminant < 0
    before = outside | (near < middle - reach)
    entering = jnp.where(convex, middle - reach, jnp.where(before, -FAR, middle + reach))
    leaving = jnp.where(convex, middle + reach, jnp.where(before & ~outside, middle - reach, FAR))
    near, far = jnp.maximum(near, _tag(entering, 4)), jnp.minimum(far, leaving)
    hit = (near < far) & (near > 0) & ~(convex & outside)
    return jnp.where(hit, near, FAR)


def _normal(
    point: Sequence[Array], d: Sequence[Array], tag: Array, solid: Solids
) -> tuple[Array, ...]:
    """Local outward normal, 3 components, not normalised, of the constraint named by `tag`."""
    k, a, b, _ = (solid.quadric[i] for i in range(4))
    gradient = (2 * k * point[0], 2 * k * point[1], 2 * a * point[2] + b)
    curved, cut = tag == 4, tag == 3
    return tuple(
        jnp.where(
            curved,
            gradient[i],
            jnp.where(cut, solid.cut[i], jnp.where(tag == i, -jnp.sign(d[i]), 0.0)),
        )
        for i in range(3)
    )


def _face(normal: Sequence[Array]) -> Array:
    """Which face a local normal belongs to: int32 in the order -x, +x, -y, +y, -z, +z."""
    x, y, z = (jnp.abs(n) for n in normal)
    positive = [2 * i + (n > 0) for i, n in enumerate(normal)]
    return jnp.where((x >= y) & (x >= z), positive[0], jnp.where(y >= z, positive[1], positive[2]))


def _in_pattern(point: Sequence[Array], kind: Array, scale: Array) -> Array:
    """Where a pattern shows its second colour: bool, from the local point."""
    # The offset keeps cell borders off the faces p = +-1, where rounding would make them flicker.
    cells = [scale * (0.5 * p + 0.5) + 0.137 for p in point]
    whole = [jnp.floor(v) for v in cells]
    x, y, z = (v - w - 0.5 for v, w in zip(cells, whole, strict=True))  # in [-0.5, 0.5)
    half = 0.5 * (whole[0] + whole[1] + whole[2])
    diagonal = cells[0] + 0.5 * cells[1] + cells[2]
    checker = half - jnp.floor(half) < 0.25
    stripes = diagonal - jnp.floor(diagonal) < 0.45
    dots = x * x + y * y + z * z < 0.19
    waves = jnp.abs(x) + jnp.abs(z) > 0.3 + jnp.abs(y)
    return (
        ((kind == CHECKER) & checker)
        | ((kind == STRIPES) & stripes)
        | ((kind == DOTS) & dots)
        | ((kind == WAVES) & waves)
    )


def _trace(origin: Array, directions: Sequence[Array], world: World) -> tuple[Array, Array]:
    """Display colours of rays: origin [3]; directions 3 x [P]; returns (colour [P, 3], hit [P])."""
    solids = world.solids

    def closer(index: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        distance, shade = best
        solid = jax.tree.map(lambda field: field[index], solids)
        to_local = solid.rotation.T / solid.half_size[:, None]  # [3, 3]
        offset = origin - solid.center
        o = [_dot(to_local[i], offset) for i in range(3)]
        d = [_dot(to_local[i], directions) for i in range(3)]
        entered = jax.lax.optimization_barrier(_enter_solid(o, d, solid))
        tag = jax.lax.bitcast_convert_type(entered, jnp.int32) & 7
        point = [o[i] + entered * d[i] for i in range(3)]
        normal = _normal(point, d, tag, solid)
        # Normals follow the transpose of world-to-local.
        world_normal = [_dot(to_local[:, i], normal) for i in range(3)]
        scale = jax.lax.rsqrt(jnp.maximum(_dot(world_normal, world_normal), 1e-20))
        sun = scale * jnp.maximum(_dot(world_normal, world.light), 0.0)
        brightness = 0.48 + 0.14 * scale * world_normal[2] + 0.55 * sun
        patterned = _in_pattern(point, solid.pattern, solid.pattern_scale)
        entry = 7 * index + jnp.where(patterned, 6, _face(normal))
        # One number carries both, so that the compiler has one result to compute.
        new = (entry << 16) + (brightness * BRIGHTNESS_STEPS).astype(jnp.int32)
        return jnp.minimum(distance, entered), jnp.where(entered < distance, new, shade)

    nothing = jnp.zeros_like(directions[0])
    distance, shade = jax.lax.fori_loop(
        0, world.count, closer, (nothing + FAR, nothing.astype(jnp.int32))
    )
    palette = jnp.concatenate([solids.face_colors, solids.pattern_color[:, None]], 1)
    palette = palette.reshape(-1, 3)  # [7 S, 3]
    brightness = (shade & 0xFFFF) / BRIGHTNESS_STEPS
    albedo = palette[shade >> 16]  # [..., 3]
    hit = distance < FAR
    color = jnp.sqrt(jnp.minimum(brightness[..., None] * albedo, 1.0)) * hit[..., None]
    return color, hit


@functools.partial(jax.jit, static_argnames=("resolution", "supersample", "scenes_at_once"))
def render(
    worlds: World,
    c2w: Array,
    K: Array,
    resolution: int,
    supersample: int = 2,
    scenes_at_once: int = 1,
) -> jax.Array:
    """Renders B scenes.

    Args:
        worlds: fields [B, ...].
        c2w: [B, V, 4, 4] OpenCV axes.
        K: [B, V, 3, 3] in pixels of `resolution`.
        resolution: side of the pictures in pixels.
        supersample: each pixel averages supersample^2 rays.
        scenes_at_once: how many scenes are traced as one array; 1 keeps the arrays in a CPU's
            cache, a GPU needs many.

    Returns:
        RGBA uint8 [B, V, resolution, resolution, 4], straight alpha, colour 0 where alpha is 0.
    """
    side = resolution * supersample

    def one_view(world: World, c2w: Array, K: Array) -> Array:
        pixels = (jnp.arange(side, dtype=jnp.float32) + 0.5) / supersample
        u, v = jnp.meshgrid((pixels - K[0, 2]) / K[0, 0], (pixels - K[1, 2]) / K[1, 1])
        directions = [c2w[i, 0] * u + c2w[i, 1] * v + c2w[i, 2] for i in range(3)]
        color, hit = _trace(c2w[:3, 3], directions, world)
        samples = jnp.concatenate([color, hit[..., None].astype(jnp.float32)], -1)
        shape = (resolution, supersample, resolution, supersample, 4)
        rgba = samples.reshape(shape).mean((1, 3))  # [H, W, 4], premultiplied
        straight = rgba[..., :3] / jnp.maximum(rgba[..., 3:], 1e-6)
        rgba = jnp.concatenate([straight, rgba[..., 3:]], -1)
        return jnp.round(255.0 * rgba).astype(jnp.uint8)

    def one_scene(scene: tuple[World, Array, Array]) -> Array:
        return jax.vmap(one_view, in_axes=(None, 0, 0))(*scene)

    return jax.lax.map(one_scene, (worlds, c2w, K), batch_size=scenes_at_once)


def make_solid(
    center: ArrayLike = (0.0, 0.0, 0.0),
    half_size: ArrayLike = (0.5, 0.5, 0.5),
    rotation: ArrayLike | None = None,
    quadric: ArrayLike = BOX,
    cut: ArrayLike = NO_CUT,
    colors: ArrayLike = ((1.0, 0.0, 0.0),) * 6,
    pattern: int = PLAIN,
    pattern_color: ArrayLike = (1.0, 1.0, 1.0),
    pattern_scale: float = 2.0,
) -> Solids:
    """One solid given by hand, fields without leading axes; see `make_world`."""
    return Solids(
        np.asarray(np.eye(3) if rotation is None else rotation, np.float32),
        np.asarray(center, np.float32),
        np.asarray(half_size, np.float32),
        np.asarray(quadric, np.float32),
        np.asarray(cut, np.float32),
        np.asarray(colors, np.float32),
        np.asarray(pattern_color, np.float32),
        np.asarray(pattern, np.int32),
        np.asarray(pattern_scale, np.float32),
    )


def make_world(solids: list[Solids], light: ArrayLike = (0.4, 0.3, 0.866)) -> World:
    """A scene of solids given by hand, fields without a batch axis; light is normalised."""
    light = np.asarray(light, np.float32)
    stacked = Solids(*(np.stack(fields) for fields in zip(*solids, strict=True)))
    return World(stacked, np.asarray(len(solids), np.int32), light / np.linalg.norm(light))

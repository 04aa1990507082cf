"""Makes procedural scenes: colourful objects of a few solids, seen by Zero-1-to-3 style cameras.

Scene number i of a seed is always the same object and the same cameras: all random numbers come
from a generator on the host, keyed by (seed, i). Objects fill a cube of side 1 about the origin, z
up; every face of a solid has its own colour, so that each side looks different. Cameras stand at
radius 1.5 to 2.2, look at the origin, and have a focal length of 280 pixels at 256 (Zero-1-to-3,
arXiv 2303.11328, section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from escherjax import cameras
from escherjax.data import raytrace
from escherjax.data.shards import Scene
from escherjax.errors import UserError

MAX_SOLIDS = 7
MIN_SOLIDS = 3
RADIUS_RANGE = (1.5, 2.2)
FOCAL_PER_PIXEL = 280.0 / 256.0
FOV_DEG = math.degrees(2 * math.atan(0.5 / FOCAL_PER_PIXEL))
GOLDEN_ANGLE = np.pi * (3.0 - np.sqrt(5.0))
SIDE_HUES = np.array([0.0, 0.5, 0.14, 0.64, 0.33, 0.83])  # of faces -x, +x, -y, +y, -z, +z
KINDS = [  # quadric of a kind of solid, and its probability
    (raytrace.BOX, 0.34),
    (raytrace.BALL, 0.22),
    (raytrace.CYLINDER, 0.2),
    (raytrace.CONE, 0.14),
    (raytrace.DOME, 0.1),
]


def _numbers(seed: int, indices: np.ndarray, count: int) -> np.ndarray:
    """Uniform random numbers [S, count] float32 in [0, 1); row i depends on (seed, indices[i])."""
    return np.stack(
        [
            np.random.Generator(np.random.Philox(key=[seed, index])).random(count, np.float32)
            for index in indices.tolist()
        ]
    )


def _matrices(*entries: ArrayLike) -> np.ndarray:
    """Nine arrays [...], row by row, to matrices [..., 3, 3]."""
    arrays = np.broadcast_arrays(*entries)
    return np.stack(arrays, -1).reshape(*arrays[0].shape, 3, 3)


def _rotations(yaw: np.ndarray, tilt: np.ndarray, tilt_azimuth: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3]: a turn about z, then a tilt about a horizontal axis."""

    def about_z(angle: np.ndarray) -> np.ndarray:
        c, s = np.cos(angle), np.sin(angle)
        return _matrices(c, -s, 0, s, c, 0, 0, 0, 1)

    c, s = np.cos(tilt), np.sin(tilt)
    about_x = _matrices(1, 0, 0, 0, c, -s, 0, s, c)
    return about_z(tilt_azimuth) @ about_x @ about_z(yaw - tilt_azimuth)


def _linear_from_hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Linear RGB [..., 3] of hue (turns), saturation and value in [0, 1]; display gamma 2."""
    k = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue[..., None]) % 6.0
    ramp = np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0)
    return (value[..., None] * (1.0 - saturation[..., None] * ramp)) ** 2


def _bounds(
    center: np.ndarray, rotation: np.ndarray, half_size: np.ndarray, kind: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) corners of each solid's bounding box in world axes, [..., S, 3]; cuts ignored."""
    axes = rotation * half_size[..., None, :]  # [..., S, 3 world, 3 local]
    disc, rise = np.linalg.norm(axes[..., :2], axis=-1), axes[..., 2]
    kind = kind[..., None]
    extent = np.where(kind == 0, np.abs(axes).sum(-1), disc + np.abs(rise))
    extent = np.where(kind == 1, np.linalg.norm(axes, axis=-1), extent)
    low, high = center - extent, center + extent
    cone = kind == 3  # a disc and an apex
    low = np.where(cone, np.minimum(center - rise - disc, center + rise), low)
    return low, np.where(cone, np.maximum(center - rise + disc, center + rise), high)


def random_worlds(seed: int, indices: np.ndarray) -> raytrace.World:
    """Objects of 3 to 7 solids that fill the unit cube, each with its light; fields [S, ...]."""
    numbers = _numbers(2 * seed, indices, MAX_SOLIDS * 40).reshape(-1, MAX_SOLIDS, 40)
    size, place, turn = numbers[..., 0:3], numbers[..., 3:6], numbers[..., 6:10]
    cut_draw, pattern_draw = numbers[..., 10:15], numbers[..., 15:20]
    color = numbers[..., 20:38].reshape(-1, MAX_SOLIDS, 6, 3)
    kind_draw, single = numbers[..., 38], numbers[..., 39]
    order = np.arange(MAX_SOLIDS)
    body = order == 0
    count = MIN_SOLIDS + (single[:, 0] * (MAX_SOLIDS - MIN_SOLIDS + 1)).astype(np.int32)

    kind = np.searchsorted(np.cumsum([share for _, share in KINDS])[:-1], kind_draw)
    kind[:, 0] %= 3  # the body is a box, a ball or a cylinder: parts on a cone would float
    quadric = np.array([quadric for quadric, _ in KINDS])[kind]
    half_size = np.where(body[:, None], 0.3 + 0.2 * size, 0.13 + 0.19 * size**1.3)

    tilted = turn[..., 3] > np.where(body, 0.7, 0.4)
    tilt = np.where(tilted, 1.4 * turn[..., 1], 0.0)
    rotation = _rotations(2 * np.pi * turn[..., 0], tilt, 2 * np.pi * turn[..., 2])

    # Parts stand out of the body in spread directions, so that the outline differs from all sides.
    height = 1.0 - 2.0 * (order + 0.7 * place[..., 0]) / MAX_SOLIDS
    azimuth = GOLDEN_ANGLE * order + 2 * np.pi * place[:, :1, 1] + 0.8 * place[..., 1]
    flat = np.sqrt(np.maximum(1.0 - height**2, 0.0))
    outward = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), height], -1)
    outward = outward / np.linalg.norm(outward, ord=4, axis=-1, keepdims=True)  # ball to cube
    reach = half_size[:, :1] * outward * (0.85 + 0.35 * place[..., 2:])
    center = np.where(body[:, None], 0.0, np.einsum("bij,bsj->bsi", rotation[:, 0], reach))

    normal = 2.0 * cut_draw[..., :3] - 1.0
    normal = normal / (np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-6)
    depth = np.where(body, 0.45, 0.15) + 0.4 * cut_draw[..., 4]
    depth = np.where(cut_draw[..., 3] < 0.4, depth, raytrace.NO_CUT[3])
    cut = np.concatenate([normal, depth[..., None]], -1)

    low, high = _bounds(center, rotation, half_size, kind)
    there = (order < count[:, None])[..., None]
    low = np.where(there, low, np.inf).min(1, keepdims=True)
    high = np.where(there, high, -np.inf).max(1, keepdims=True)
    scale = 1.0 / (high - low).max(-1, keepdims=True)
    center, half_size = scale * (center - 0.5 * (low + high)), scale * half_size

    spread = np.where(single[..., None] < 0.7, 1.0, 0.45)
    hue = (color[..., :1, 0] + spread * SIDE_HUES + 0.06 * color[..., 0]) % 1.0
    face_colors = _linear_from_hsv(hue, 0.55 + 0.45 * color[..., 1], 0.7 + 0.3 * color[..., 2])
    dark, bright = 0.25 + 0.2 * pattern_draw[..., 4], 0.97
    pattern_color = _linear_from_hsv(
        pattern_draw[..., 1],
        0.8 * pattern_draw[..., 2] ** 2,
        np.where(pattern_draw[..., 3] < 0.4, dark, bright),
    )
    pattern = (pattern_draw[..., 0] * 5).astype(np.int32)
    pattern_scale = np.where(body, 2.0, 1.5) + 2.0 * pattern_draw[..., 4]

    azimuth, polar = 2 * np.pi * single[:, 1], 0.35 + 0.6 * single[:, 2]
    light = np.stack(
        [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], -1
    )
    solids = raytrace.Solids(
        *(rotation, center, half_size, quadric, cut, face_colors, pattern_color),
        pattern,
        pattern_scale,
    )
    solids = jax.tree.map(lambda x: x.astype(np.float32), solids)._replace(pattern=pattern)
    return raytrace.World(solids, count.astype(np.int32), light.astype(np.float32))


def random_cameras(
    seed: int, indices: np.ndarray, num_views: int, resolution: int
) -> cameras.Cameras:
    """Well-spread views of the origin: c2w [S, V, 4, 4], K [S, V, 3, 3] of `resolution` pixels.

    Directions are jittered points of a Fibonacci sphere in random order, so that any few of the
    views see different sides; the poles themselves are left out.
    """
    numbers = _numbers(2 * seed + 1, indices, 5 * num_views).reshape(-1, 5, num_views)
    order = np.argsort(numbers[:, 0], axis=-1)
    height = 0.96 * (1.0 - 2.0 * (order + 0.1 + 0.8 * numbers[:, 1]) / num_views)
    azimuth = GOLDEN_ANGLE * order + 2 * np.pi * numbers[:, 4, :1] + 0.5 * (numbers[:, 2] - 0.5)
    low, high = RADIUS_RANGE
    radius = low + (high - low) * numbers[:, 3]
    c2w = cameras.from_spherical(np.arccos(height), azimuth, radius)
    focal, middle = FOCAL_PER_PIXEL * resolution, resolution / 2
    K = np.array([[focal, 0, middle], [0, focal, middle], [0, 0, 1]], np.float32)
    return cameras.Cameras(c2w, np.broadcast_to(K, (*c2w.shape[:2], 3, 3)))


def _scenes_per_call(num_views: int, resolution: int, supersample: int) -> int:
    if jax.default_backend() == "cpu":
        return 8
    rays = num_views * (resolution * supersample) ** 2
    return max(1, min(512, 2**25 // rays))


def render_scenes(
    seed: int,
    indices: Sequence[int] | np.ndarray,
    num_views: int,
    resolution: int,
    supersample: int = 2,
) -> dict[str, np.ndarray]:
    """Renders scenes of a seed, by their numbers, in chunks of one fixed shape.

    A scene does not depend on which others are rendered with it.

    Args:
        seed: at least 0.
        indices: [S] numbers of the scenes, at least 0.
        num_views: of each scene, at least 1.
        resolution: side of the pictures in pixels.
        supersample: see `raytrace.render`.

    Returns:
        NumPy arrays `images` uint8 [S, V, H, W, 4] with straight alpha, `c2w` float32 [S, V, 4, 4]
        (OpenCV axes) and `K` float32 [S, V, 3, 3].
    """
    for name, value in (("num_views", num_views), ("resolution", resolution)):
        if value < 1:
            raise UserError(f"procedural scenes: {name} must be at least 1, got {value}.")
    indices = np.asarray(indices, np.int64).reshape(-1)
    total, chunk = len(indices), _scenes_per_call(num_views, resolution, supersample)
    at_once = 1 if jax.default_backend() == "cpu" else chunk
    worlds = random_worlds(seed, indices)
    views = random_cameras(seed, indices, num_views, resolution)
    images = np.empty((total, num_views, resolution, resolution, 4), np.uint8)
    waiting = None  # one chunk is copied to the host while the next is rendered
    with tqdm(total=total, desc="rendering scenes", unit="scene", delay=5) as bar:

        def collect(start: int, rendered: jax.Array) -> None:
            stop = min(start + chunk, total)
            images[start:stop] = np.asarray(rendered)[: stop - start]
            bar.update(stop - start)

        for start in range(0, total, chunk):
            # The last chunk is filled up with repeats: one shape is one compilation.
            rows = np.resize(np.arange(start, min(start + chunk, total)), chunk)
            scene = jax.tree.map(lambda x, rows=rows: x[rows], (worlds, views.c2w, views.K))
            rendered = raytrace.render(*scene, resolution, supersample, at_once)
            if waiting is not None:
                collect(*waiting)
            waiting = (start, rendered)
        if waiting is not None:
            collect(*waiting)
    return {"images": images, "c2w": views.c2w, "K": views.K}


class ProceduralSource:
    """Scenes `first_scene` .. `first_scene + num_scenes - 1` of a seed, rendered once at the start.

    Indexing gives a `Scene` whose images are a raw uint8 array [V, H, W, 4]. Keeps
    num_scenes * num_views * resolution^2 * 4 bytes.
    """

    def __init__(
        self, seed: int, num_scenes: int, num_views: int, resolution: int, first_scene: int = 0
    ):
        if num_scenes < 1:
            raise UserError(f"procedural scenes: num_scenes must be at least 1, got {num_scenes}.")
        self.seed, self.num_views, self.resolution = seed, num_views, resolution
        self.first_scene = first_scene
        numbers = np.arange(first_scene, first_scene + num_scenes)
        self._arrays = render_scenes(seed, numbers, num_views, resolution)

    def __len__(self) -> int:
        return len(self._arrays["images"])

    def __getitem__(self, index: int) -> Scene:
        return Scene(
            scene_id=scene_name(self.seed, self.first_scene + range(len(self))[index]),
            source="procedural",
            images=self._arrays["images"][index],
            c2w=self._arrays["c2w"][index],
            K=self._arrays["K"][index],
            height=self.resolution,
            width=self.resolution,
        )


def scene_name(seed: int, number: int) -> str:
    """The scene_id of scene `number` of a seed."""
    return f"procedural-{seed}-{number:07d}"

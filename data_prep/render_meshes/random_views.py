"""Cameras and lights of rendered objects, drawn from (seed, id of the object) alone.

The defaults are those of Zero-1-to-3's renders of Objaverse (arXiv 2303.11328, section 4.1, and the
published views): a 35 mm lens on a 32 mm sensor, cameras at radius 1.5 to 2.2 that look at the
origin, a grey world and one wide area light above the object.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from escherjax import cameras

SENSOR_MM = 32.0
FOCAL_MM = (35.0, 35.0)
RADIUS_RANGE = (1.5, 2.2)
LIGHTINGS = ("area", "environment")
GREY_WORLD = 0.05  # Blender's start-up world
AREA_LIGHT_SIDE = 25.0  # lights all that looks up, wherever it stands


def generator(seed: int, scene_id: str, purpose: str) -> np.random.Generator:
    """Random numbers of one object and purpose; other objects of the data set do not matter."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{scene_id}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def random_cameras(
    seed: int,
    scene_id: str,
    num_views: int,
    resolution: int,
    radius: tuple[float, float] = RADIUS_RANGE,
    focal_mm: tuple[float, float] = FOCAL_MM,
) -> tuple[cameras.Cameras, np.ndarray]:
    """Views of the origin from directions uniform on the sphere, radius and focal length uniform.

    radius: of the unit-cube object; focal_mm: on a sensor SENSOR_MM wide, drawn for each view.
    Returns cameras (c2w [V, 4, 4], K [V, 3, 3] of `resolution` pixels, float32) and the focal
    lengths [V] in mm. The first views are the same whatever `num_views` is.
    """
    numbers = generator(seed, scene_id, "cameras").random((num_views, 4))
    polar, azimuth = np.arccos(1 - 2 * numbers[:, 0]), 2 * np.pi * numbers[:, 1]
    distance = radius[0] + (radius[1] - radius[0]) * numbers[:, 2]
    lens = focal_mm[0] + (focal_mm[1] - focal_mm[0]) * numbers[:, 3]
    K = np.zeros((num_views, 3, 3))
    K[:, 0, 0] = K[:, 1, 1] = lens / SENSOR_MM * resolution
    K[:, :2, 2] = resolution / 2
    K[:, 2, 2] = 1
    c2w = cameras.from_spherical(polar, azimuth, distance)
    return cameras.Cameras(c2w, K.astype(np.float32)), lens


def random_lighting(seed: int, scene_id: str, kind: str) -> dict[str, Any]:
    """The `world` and `lights` of a job (see render.py).

    kind: "area", Zero-1-to-3's light of 300 to 600 W; or "environment", a sky of random colours
    with a sun, a fill light and a rim light, different for each object.
    """
    numbers = generator(seed, scene_id, "lights").random((6, 4))
    if kind == "area":
        x, y, z, energy = numbers[0]
        light = {
            "kind": "AREA",
            "location": [2 * x - 1, 2 * y - 1, 0.5 + z],
            "direction": [0.0, 0.0, -1.0],
            "energy": 300 + 300 * energy,
            "size": AREA_LIGHT_SIDE,
            "color": [1.0, 1.0, 1.0],
        }
        return {"world": [[GREY_WORLD] * 3] * 3, "lights": [light]}

    brightness, warmth, ground, blueness = numbers[0]
    sky = 0.25 + 0.55 * brightness
    world = [
        [sky * (0.2 + 0.5 * ground) * c for c in (1.0, 0.95, 0.88)],
        [sky * c for c in (1.0, 1.0 - 0.08 * warmth, 1.0 - 0.2 * warmth)],
        [sky * c for c in (1.0 - 0.5 * blueness, 1.0 - 0.25 * blueness, 1.0)],
    ]
    lights = [_sun(numbers[1], color=[1.0, 1.0 - 0.12 * warmth, 1.0 - 0.3 * warmth])]
    for (azimuth, height, strength, hue), side in zip(numbers[2:4], (1.2, 0.6), strict=True):
        towards = _direction(azimuth, 1.6 * height - 0.6)
        lights.append(
            {
                "kind": "AREA",
                "location": (2.5 * towards).tolist(),
                "direction": (-towards).tolist(),
                "energy": 10 + 50 * strength,
                "size": side,
                "color": [1.0 - 0.2 * hue, 0.95, 0.8 + 0.2 * hue],
            }
        )
    return {"world": world, "lights": lights}


def _sun(numbers: np.ndarray, color: list[float]) -> dict[str, Any]:
    azimuth, height, strength, size = numbers
    towards = _direction(azimuth, 0.15 + 0.8 * height)
    return {
        "kind": "SUN",
        "location": towards.tolist(),
        "direction": (-towards).tolist(),
        "energy": 0.5 + 2.5 * strength,
        "size": 0.01 + 0.3 * size,
        "color": color,
    }


def _direction(azimuth: float, z: float) -> np.ndarray:
    """Unit vector [3] at a height z and an azimuth in turns."""
    flat, angle = np.sqrt(1 - z * z), 2 * np.pi * azimuth
    return np.array([flat * np.cos(angle), flat * np.sin(angle), z])

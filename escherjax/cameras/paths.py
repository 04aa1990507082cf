"""Camera paths about the origin, as pure functions of the number of views.

Every path looks at the origin with world z up and stays off the poles, where azimuth has no
meaning, by `POLE_MARGIN_RAD`: an orbit straight above turns the picture about its centre.
`splines.spline` leads through given cameras instead.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from escherjax.cameras import poses, splines
from escherjax.errors import UserError, listed

TURNS = {"orbit": 1.0, "spiral": 2.0, "archimedean": 40 / (2 * np.pi)}  # the others make none
WITH_ELEVATION = ("orbit", "spiral", "dolly", "lemniscate")
POLE_MARGIN_RAD = 1e-3
SPIRAL_CLIMB_RAD = np.radians(30.0)  # below and above the spiral's middle
LEMNISCATE_REACH_RAD = np.radians(45.0)  # to either side
# The published networks know 1.5 to 2.2: from their geometric mean, a factor of 1.2 either way.
DOLLY_REACH = 1.2
_DENSE = 2049  # points at which the length of a path is measured


def trajectory(
    name: str,
    num_views: int,
    radius: float,
    elevation_rad: float = 0.0,
    start_azimuth_rad: float = 0.0,
    turns: float | None = None,
) -> np.ndarray:
    """Poses of a preset path about the origin, looking at it.

    Args:
        name: one of `PRESETS`.
        num_views: at least 1.
        radius: of the path, above 0.
        elevation_rad: above the horizon, in [-pi/2, pi/2].
        start_azimuth_rad: from +x towards +y.
        turns: how often around, negative for clockwise seen from above; None is the path's default.

    Returns:
        c2w [num_views, 4, 4] float32, OpenCV axes.

    Raises:
        UserError: Lists every unknown name and every number that is not finite or out of range.
    """
    problems = []
    if name not in PRESETS:
        problems.append(f"unknown path {name!r}; known: {', '.join(PRESETS)}.")
    if num_views < 1:
        problems.append(f"num_views must be at least 1, got a path of {num_views} views.")
    if not (np.isfinite(radius) and radius > 0):
        problems.append(f"the path's radius must be positive, got radius {radius:g}.")
    if not abs(elevation_rad) <= np.pi / 2 + 1e-6:
        problems.append(
            f"the elevation must be -90 to 90 degrees, got {np.degrees(elevation_rad):g} degrees."
        )
    if not np.isfinite(start_azimuth_rad):
        problems.append(f"the start azimuth must be finite, got {start_azimuth_rad:g}.")
    if turns is not None and not (np.isfinite(turns) and turns != 0):
        problems.append(f"turns must be finite and not 0, got {turns:g} turns.")
    if turns is not None and name in PRESETS and name not in TURNS:
        problems.append(f"{name} makes no turns; leave them out.")
    if problems:
        raise UserError(listed(problems))
    options: dict[str, float] = {"start_azimuth_rad": start_azimuth_rad}
    if name in WITH_ELEVATION:
        options["elevation_rad"] = elevation_rad
    if name in TURNS:
        options["turns"] = turns or TURNS[name]
    return PRESETS[name](num_views, radius, **options)


def orbit(
    num_views: int,
    radius: float,
    elevation_rad: float,
    start_azimuth_rad: float = 0.0,
    turns: float = TURNS["orbit"],
) -> np.ndarray:
    """Around the z axis at one elevation, in equal steps, c2w [num_views, 4, 4].

    Whole turns make a closed loop, whose first view is not repeated; others end on their last view.
    """
    azimuth = start_azimuth_rad + 2 * np.pi * turns * _shares(num_views, is_closed("orbit", turns))
    return _around(np.full(num_views, elevation_rad), azimuth, radius)


def spiral(
    num_views: int,
    radius: float,
    elevation_rad: float,
    start_azimuth_rad: float = 0.0,
    turns: float = TURNS["spiral"],
) -> np.ndarray:
    """A climb around the object at one distance and constant speed, c2w [num_views, 4, 4].

    Elevation rises evenly with azimuth from 30 degrees below `elevation_rad` to 30 degrees above.
    A climb that would reach a pole begins or ends just before it.
    """
    limit = np.pi / 2 - POLE_MARGIN_RAD
    ends = np.clip(elevation_rad + SPIRAL_CLIMB_RAD * np.array([-1.0, 1.0]), -limit, limit)
    dense = np.linspace(0, 1, _DENSE)

    def angles(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        elevation = ends[0] + (ends[1] - ends[0]) * share
        return elevation, start_azimuth_rad + 2 * np.pi * turns * share

    steps = np.linalg.norm(np.diff(_directions(*angles(dense)), axis=0), axis=-1)
    return _around(*angles(splines.equal_steps(dense, steps, num_views, closed=False)), radius)


def archimedean(
    num_views: int,
    radius: float,
    start_azimuth_rad: float = 0.0,
    turns: float = TURNS["archimedean"],
) -> np.ndarray:
    """From the north to the south pole in 6.4 turns clockwise, c2w [num_views, 4, 4].

    EscherNet's video path: i = 0.01 + 40 k / num_views, polar angle pi i / 40, azimuth -i rad.
    `turns` other than 40 / (2 pi) stretch the azimuth.
    """
    i = 0.01 + 40.0 * np.arange(num_views) / num_views
    azimuth = start_azimuth_rad - i * turns / TURNS["archimedean"]
    return poses.from_spherical(np.pi * i / 40.0, azimuth, np.full(num_views, radius))


def dolly(
    num_views: int, radius: float, elevation_rad: float, start_azimuth_rad: float = 0.0
) -> np.ndarray:
    """Straight towards the object: from 1.2 to 1 / 1.2 of `radius`, c2w [num_views, 4, 4].

    Distances shrink by equal factors. Enlarging the pictures by `dolly_zoom` keeps the object's
    size: together, Hitchcock's dolly zoom.
    """
    distance = radius * DOLLY_REACH ** (1 - 2 * _shares(num_views, closed=False))
    angles = np.full(num_views, elevation_rad), np.full(num_views, start_azimuth_rad)
    return _around(*angles, distance)


def dolly_zoom(c2w: np.ndarray) -> np.ndarray:
    """Enlargement [M] >= 1 of each picture that keeps what stands at the origin at one size.

    c2w: [M, 4, 4]. An object's size on the picture is its focal length over its distance, so the
    factor is the camera's distance over that of the nearest camera. The network generates every
    view with one field of view; cutting out the middle 1/zoom of a picture and enlarging it is
    exactly what a lens of zoom times the focal length sees (`reports.sheets.zoom_center`).
    """
    distance = np.linalg.norm(c2w[:, :3, 3].astype(np.float64), axis=-1)
    return distance / distance.min()


def lemniscate(
    num_views: int, radius: float, elevation_rad: float, start_azimuth_rad: float = 0.0
) -> np.ndarray:
    """A lying figure eight on the sphere, a closed loop at constant speed, c2w [num_views, 4, 4].

    Bernoulli's, 45 degrees of arc to either side and 16 up and down, laid on the sphere by great
    circles through its middle at the given elevation and azimuth, where it starts.
    """
    dense = np.linspace(0, 1, _DENSE)
    middle = _directions(np.array([elevation_rad]), np.array([start_azimuth_rad]))[0]
    east = np.array([-np.sin(start_azimuth_rad), np.cos(start_azimuth_rad), 0.0])
    up = np.cross(middle, east)

    def directions(share: np.ndarray) -> np.ndarray:
        t = 2 * np.pi * share + np.pi / 2
        scale = LEMNISCATE_REACH_RAD / (1 + np.sin(t) ** 2)
        right, rise = scale * np.cos(t), scale * np.sin(t) * np.cos(t)
        angle = np.hypot(right, rise)
        sinc = np.sinc(angle / np.pi)[:, None]  # sin(angle) / angle
        tangent = right[:, None] * east + rise[:, None] * up
        return np.cos(angle)[:, None] * middle + sinc * tangent

    steps = np.linalg.norm(np.diff(directions(dense), axis=0), axis=-1)
    x, y, z = directions(splines.equal_steps(dense, steps, num_views, closed=True)).T
    return _around(np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x), radius)


PRESETS: dict[str, Callable[..., np.ndarray]] = {
    path.__name__: path for path in (orbit, spiral, archimedean, dolly, lemniscate)
}


def is_closed(name: str, turns: float | None = None) -> bool:
    """Whether the last view of a preset path leads on to its first."""
    if name == "orbit":
        return turns is None or float(turns).is_integer()
    return name == "lemniscate"


def about_references(c2w: np.ndarray) -> tuple[float, float, float]:
    """(radius, elevation_rad, start_azimuth_rad) of a path that suits reference cameras.

    c2w: [N, 4, 4]. Their median distance from the origin and median elevation; the azimuth of the
    first.
    """
    polar, azimuth, radius = poses.to_spherical(c2w.astype(np.float64))
    return float(np.median(radius)), float(np.pi / 2 - np.median(polar)), float(azimuth[0])


def _shares(num_views: int, closed: bool) -> np.ndarray:
    """How far along the path each view stands, [num_views] from 0; up to 1 on an open path."""
    return np.arange(num_views) / (num_views if closed else max(num_views - 1, 1))


def _directions(elevation_rad: np.ndarray, azimuth_rad: np.ndarray) -> np.ndarray:
    """Unit vectors [M, 3]."""
    level = np.cos(elevation_rad)
    return np.stack(
        [level * np.cos(azimuth_rad), level * np.sin(azimuth_rad), np.sin(elevation_rad)], axis=-1
    )


def _around(
    elevation_rad: np.ndarray, azimuth_rad: np.ndarray, radius: float | np.ndarray
) -> np.ndarray:
    """Cameras that look at the origin, off the poles."""
    polar = np.clip(np.pi / 2 - elevation_rad, POLE_MARGIN_RAD, np.pi - POLE_MARGIN_RAD)
    return poses.from_spherical(polar, azimuth_rad, np.broadcast_to(radius, polar.shape))

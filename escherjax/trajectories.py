"""Camera paths for new views, as functions of the number of views."""

from __future__ import annotations

import numpy as np

from escherjax import cameras as cameras_lib
from escherjax.errors import UserError

PRESETS = ("orbit", "archimedean")


def trajectory(name: str, num_views: int, radius: float, elevation_rad: float) -> np.ndarray:
    """Poses of a preset path about the origin, looking at it: c2w [num_views, 4, 4] float32.

    orbit: once around at `elevation_rad` above the horizon, a closed loop.
    archimedean: from the north to the south pole in 6.4 turns (EscherNet's video path).
    Raises UserError for an unknown name or num_views < 1.
    """
    if num_views < 1:
        raise UserError(f"--num-views is {num_views}; needed at least 1.")
    if name == "orbit":
        azimuth = 2 * np.pi * np.arange(num_views) / num_views
        polar = np.full(num_views, np.pi / 2 - elevation_rad)
    elif name == "archimedean":
        turns = 0.01 + 40.0 * np.arange(num_views) / num_views
        polar, azimuth = np.pi * turns / 40.0, -turns
    else:
        raise UserError(f"unknown trajectory {name!r}; known: {', '.join(PRESETS)}.")
    return cameras_lib.from_spherical(polar, azimuth, np.full(num_views, radius))

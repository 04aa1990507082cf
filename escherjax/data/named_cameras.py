"""Cameras of photos that nobody measured: named sides, or azimuth:elevation:radius in degrees.

The object stands at the origin, upright along +z, its front towards +x. A camera at azimuth 0 sees
the front; azimuth grows as the camera walks to its right, counter-clockwise seen from above:

                 back (180)
                    |
    left (270) --- object --- right (90)      as the photographer in front sees it:
                    |                         `right` is the side at the photo's right
                 front (0)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from escherjax import cameras
from escherjax.errors import UserError, listed

SIDES = {"front": 0.0, "right": 90.0, "back": 180.0, "left": 270.0}
# EscherNet's protocols with pictures from elsewhere place them so (arXiv 2402.03908, section 4)
DEFAULT_ELEVATION_DEG = 0.0
DEFAULT_RADIUS = 1.5


def named_cameras(
    texts: Sequence[str],
    elevation_deg: float = DEFAULT_ELEVATION_DEG,
    radius: float = DEFAULT_RADIUS,
) -> np.ndarray:
    """Poses that look at the origin, c2w float32 [N, 4, 4], OpenCV axes.

    texts: each AZIMUTH[:ELEVATION[:RADIUS]], azimuth in degrees or one of `SIDES`. elevation_deg
    (-90 to 90) and radius (above 0) are those of cameras that do not say theirs.
    Raises UserError that lists every text that is no camera.
    """
    problems, placed = [], []
    for text in texts:
        azimuth, *rest = text.strip().lower().split(":")
        try:
            values = [float(SIDES.get(azimuth, azimuth)), *map(float, rest)]
        except ValueError:
            values = []
        if not 1 <= len(values) <= 3 or not all(map(math.isfinite, values)):
            problems.append(
                f"camera {text!r} is not understood; needed {', '.join(SIDES)} or an azimuth in "
                "degrees, then :elevation and :radius if wanted, such as right or 45:20:1.8."
            )
            continue
        values += [elevation_deg, radius][len(values) - 1 :]
        if not -90 <= values[1] <= 90:
            problems.append(
                f"camera {text!r} has elevation {values[1]:g}; needed -90 to 90 degrees above the "
                "horizon."
            )
        if not 0 < values[2] < math.inf:
            problems.append(f"camera {text!r} has radius {values[2]:g}; needed more than 0.")
        placed.append(values)
    if problems:
        raise UserError(listed(problems))
    if not placed:
        raise UserError("no cameras are named; needed one for each photo, such as front.")
    azimuth_deg, elevations_deg, radii = np.array(placed, np.float64).T
    return cameras.from_spherical(np.radians(90.0 - elevations_deg), np.radians(azimuth_deg), radii)

"""Command-line arguments that say which views to draw and what to write of them.

Nothing here imports JAX at module level, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from escherjax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from escherjax.sample.targets import Targets

PREVIEW_NAME = "cameras.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --targets, what shapes a path, and what is written."""
    add = parser.add_argument_group("targets").add_argument
    add(
        "--targets",
        default="orbit",
        help="orbit, spiral, archimedean, dolly, lemniscate or spline; all; a transforms.json; or "
        "a JSON list of {azimuth_deg, elevation_deg, radius} (default %(default)s)",
    )
    add("--num-views", type=int, default=24, help="length of a path (default %(default)s)")
    add(
        "--radius",
        type=float,
        metavar="R",
        help="of a path, and of photos' cameras; default: the references' median",
    )
    add(
        "--elevation-deg",
        type=float,
        metavar="DEG",
        help="of a path, and of photos' cameras, above the horizon; default: the references' "
        "median",
    )
    add(
        "--start-azimuth-deg",
        type=float,
        metavar="DEG",
        help="of a path; default: the first reference's (archimedean: 0)",
    )
    add(
        "--turns",
        type=float,
        metavar="T",
        help="how often orbit (1), spiral (2), archimedean (6.4) go around; negative: clockwise",
    )
    add(
        "--through",
        metavar="WHAT",
        help="cameras of a spline: references (default), all, or a file of cameras",
    )
    add("--closed", action="store_true", help="a spline leads back to its first camera")
    add(
        "--straight",
        action="store_true",
        help="a spline leads straight from camera to camera, not around the origin",
    )
    add(
        "--preview",
        action="store_true",
        help=f"only draw where the cameras stand, OUT/{PREVIEW_NAME}, and stop",
    )
    add(
        "--nerf-folder",
        action="store_true",
        help="also write OUT/nerf, for nerfstudio, instant-ngp and 3DGS trainers",
    )
    add("--alpha", action="store_true", help="make the white ground transparent in that folder")


def check_out(arguments: argparse.Namespace) -> None:
    """Refuses a folder with anything in it but a preview, and --alpha without its folder."""
    found = {path.name for path in arguments.out.iterdir()} if arguments.out.exists() else set()
    if found - {PREVIEW_NAME}:
        raise UserError(f"--out {arguments.out} is not empty; name a new folder.")
    if arguments.alpha and not arguments.nerf_folder:
        raise UserError("--alpha is about the folder of --nerf-folder; give that too.")


def choose(
    arguments: argparse.Namespace, scene_c2w: np.ndarray, references: np.ndarray, scale: float
) -> Targets:
    """The target cameras; arguments as in `targets.choose`."""
    from escherjax.sample import targets

    names = (
        "num_views",
        "radius",
        "elevation_deg",
        "start_azimuth_deg",
        "turns",
        "through",
        "closed",
        "straight",
    )
    said = {name: getattr(arguments, name) for name in names}
    if arguments.cameras is not None:  # then these were said of the photos' cameras, at least
        for name in ("radius", "elevation_deg"):
            said[name] = said[name] if targets.takes(arguments.targets, name) else None
    options = targets.PathOptions(**said)
    return targets.choose(arguments.targets, options, scene_c2w, references, scale)


def save_preview(
    arguments: argparse.Namespace,
    scene_c2w: np.ndarray,
    references: np.ndarray,
    scale: float,
    to: Targets,
) -> Path:
    """Writes the picture of the cameras and returns its path; arguments as in `targets.choose`."""
    from escherjax.reports import preview

    path = arguments.out / PREVIEW_NAME
    c2w = scene_c2w[references].copy()
    c2w[:, :3, 3] *= scale
    names = [str(view) for view in references]
    preview.save_preview(path, c2w, to.c2w, names, to.is_path, to.closed)
    return path

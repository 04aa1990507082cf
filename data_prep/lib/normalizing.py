"""Scale, centre and orientation of scenes whose world is arbitrary: arguments and application."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from data_prep.lib.importing import Imported
from escherjax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

WITH_NORMALIZE = "with --normalize"


def add_arguments(
    parser: argparse.ArgumentParser,
    normalize: str = "max_radius=1.5",
    recenter: bool = False,
    up: str = "file",
) -> None:
    """Adds --normalize, --recenter and --up with these defaults."""
    parser.add_argument(
        "--normalize",
        default=normalize,
        type=_max_radius,
        metavar="max_radius=R|none",
        help="scale each scene so that its farthest camera is R from the origin; none keeps the "
        "file's scale (default %(default)s)",
    )
    parser.add_argument(
        "--recenter",
        action=argparse.BooleanOptionalAction,
        default=WITH_NORMALIZE if recenter else False,
        help="first move the point nearest to all optical axes to the origin (default %(default)s)",
    )
    parser.add_argument(
        "--up",
        choices=("cameras", "file"),
        default=up,
        help="turn the cameras' common up to +z, or keep the file's z (default %(default)s)",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError if the arguments contradict each other."""
    if args.recenter is True and args.normalize is None:
        raise UserError("--recenter needs --normalize max_radius=R.")


def normalize(scene: Any, args: argparse.Namespace) -> Imported:
    """The records.Scene as the arguments ask, and a note of what was done to it."""
    c2w, notes = normalize_poses(scene.c2w, args)
    return Imported(dataclasses.replace(scene, c2w=c2w), notes)


def normalize_poses(c2w: np.ndarray, args: argparse.Namespace) -> tuple[np.ndarray, dict[str, Any]]:
    """(poses [V, 4, 4] as the arguments ask, note of it); see `cameras.normalize_poses`."""
    from escherjax import cameras

    return cameras.normalize_poses(c2w, args.normalize, bool(args.recenter), args.up == "cameras")


def _max_radius(text: str) -> float | None:
    if text == "none":
        return None
    name, _, value = text.partition("=")
    try:
        radius = float(value)
    except ValueError:
        radius = 0.0
    if name != "max_radius" or not 0 < radius < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}'; needed max_radius=R with R > 0, or none")
    return radius

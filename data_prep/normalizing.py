"""Scale, centre and orientation of scenes whose world is arbitrary: arguments and application."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from data_prep.importing import Imported
from escherjax.errors import UserError


def add_arguments(
    parser: argparse.ArgumentParser,
    normalize: str = "max_radius=1.5",
    recenter: bool = False,
    up: str = "file",
) -> None:
    """Adds --normalize, --recenter and --up with these defaults."""
    parser.add_argument(
        "--normalize", default=normalize, type=_max_radius, metavar="max_radius=R|none",
        help="scale each scene so that its farthest camera is R from the origin; none keeps the "
        "file's scale (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--recenter", action=argparse.BooleanOptionalAction, default=recenter,
        help="first move the point nearest to all optical axes to the origin (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--up", choices=("file", "cameras"), default=up,
        help="world's +z: as in the file, or turned to the pictures' mean up direction "
        "(default %(default)s)",
    )  # fmt: skip


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError if the arguments contradict each other."""
    if args.recenter and args.normalize is None:
        raise UserError("--recenter needs --normalize max_radius=R; or add --no-recenter.")


def normalize(scene: Any, args: argparse.Namespace) -> Imported:
    """The records.Scene as the arguments ask, and what was done to it.

    x_new = rotation @ (scale * (x - center)); the note names `rotation` only where it turned.
    """
    from escherjax import cameras

    c2w, scale, center = scene.c2w, 1.0, [0.0, 0.0, 0.0]
    if args.normalize is not None:
        c2w, scale, moved = cameras.normalize_scene(c2w, args.normalize, args.recenter)
        center = moved.tolist()
    notes: dict[str, Any] = {"scale": scale, "center": center}
    if args.up == "cameras":
        c2w, rotation = cameras.turn_upright(c2w)
        notes["rotation"] = rotation.tolist()
    return Imported(dataclasses.replace(scene, c2w=c2w), notes)


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

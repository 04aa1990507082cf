"""Arguments for scenes whose world is arbitrary: its scale, centre and orientation."""

from __future__ import annotations

import argparse

WITH_NORMALIZE = "with --normalize"


def add_arguments(
    parser: argparse.ArgumentParser,
    normalize: str = "max_radius=1.5",
    recenter: bool = False,
    up: str = "file",
) -> None:
    """Adds --normalize, --recenter and --up with these defaults; `Assembler` applies them."""
    parser.add_argument(
        "--normalize",
        default=normalize,
        type=_max_radius,
        metavar="max_radius=R|none",
        help="scale each scene so that its farthest camera is R from the origin; none keeps the "
        "file's scale (default %(default)s)",
    )
    center_help = "first move the point nearest to all optical axes to the origin (%(default)s)"
    center = WITH_NORMALIZE if recenter else False
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--recenter", action=flag, default=center, help=center_help)
    up_help = "turn the cameras' common up to +z, or keep the file's z (default %(default)s)"
    parser.add_argument("--up", choices=("cameras", "file"), default=up, help=up_help)


def add_capture_arguments(parser: argparse.ArgumentParser) -> None:
    """As `add_arguments`, for reconstructions: turned upright, centred and scaled by default."""
    add_arguments(parser, recenter=True, up="cameras")


def _max_radius(text: str) -> float | None:
    if text == "none":
        return None
    name, _, value = text.partition("=")
    try:
        radius = float(value)
    except ValueError:
        radius = 0.0
    if name != "max_radius" or not 0 < radius < float("inf"):
        raise argparse.ArgumentTypeError(
            f"must be max_radius=R with a positive R, or none, got '{text}'"
        )
    return radius

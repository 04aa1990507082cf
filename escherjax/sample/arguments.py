"""Command-line arguments of reference views; nothing heavy is imported until they are read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from escherjax.errors import UserError

if TYPE_CHECKING:
    from escherjax.data.inputs import InputViews
    from escherjax.weights.facts import Facts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --views and what says how they are read; see `escherjax.data.inputs.open_views`.

    --elevation-deg and --radius, which photos share with paths, are `target_arguments`'.
    """
    add = parser.add_argument_group("views").add_argument
    add(
        "--views",
        required=True,
        nargs="+",
        type=Path,
        metavar="VIEWS",
        help="scene folder, or photos with --cameras",
    )
    add(
        "--references",
        metavar="I,J,...",
        help="views to start from; default: the first three of a scene, all photos",
    )
    add(
        "--cameras",
        "--camera",
        metavar="C,C,...",
        help="cameras of photos: front, right, back, left or AZIMUTH[:ELEVATION[:RADIUS]] in "
        "degrees, one for each photo; --elevation-deg (0) and --radius (1.5) are those of cameras "
        "that do not say theirs",
    )
    add(
        "--photo-fov-deg",
        type=float,
        metavar="DEG",
        help="field of view over the width of the photos, where known",
    )
    add(
        "--mask",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="masks of the object, one for each picture, or a folder of them",
    )
    add(
        "--matting",
        nargs="?",
        const="u2net",
        metavar="MODEL[:FILE]",
        help="remove the background with a model of rembg, or its ONNX file (u2net)",
    )
    add(
        "--recenter",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="move objects of photos to the middle and scale them to the size of training views "
        "(default %(default)s)",
    )
    add(
        "--match-fov",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="pad or cut posed pictures to the training field of view (default %(default)s)",
    )
    add(
        "--training-fov-deg",
        type=float,
        metavar="DEG",
        help="training field of view, where the weights do not say it",
    )


def open_views(arguments: argparse.Namespace) -> InputViews:
    """Reads the pictures and cameras that the arguments name."""
    from escherjax.data import inputs
    from escherjax.data.photos import windows

    windows.check_fov(arguments.training_fov_deg)
    elevation_deg, radius = arguments.elevation_deg, arguments.radius
    return inputs.open_views(
        arguments.views,
        references=_reference_indices(arguments.references),
        cameras=None if arguments.cameras is None else arguments.cameras.split(","),
        elevation_deg=inputs.DEFAULT_ELEVATION_DEG if elevation_deg is None else elevation_deg,
        radius=inputs.DEFAULT_RADIUS if radius is None else radius,
        photo_fov_deg=arguments.photo_fov_deg,
        masks=arguments.mask,
        matting=arguments.matting,
        recenter=arguments.recenter,
    )


def training_fov_deg(arguments: argparse.Namespace, facts: Facts) -> float | None:
    """The field of view that pictures are to be shown with; None keeps theirs."""
    if not arguments.match_fov:
        return None
    return facts.fov_deg if arguments.training_fov_deg is None else arguments.training_fov_deg


def _reference_indices(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"--references {text!r}; needed numbers such as 0,5,9.") from error

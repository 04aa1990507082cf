"""The command line of `escherjax.sample`; nothing heavy is imported until it is read."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from escherjax.errors import UserError, describe_error
from escherjax.models.diffusion import sampling

if TYPE_CHECKING:
    import numpy as np

    from escherjax.data.inputs import InputViews
    from escherjax.sample.targets import Targets
    from escherjax.weights.facts import ModelCard

COMMAND = ["python", "-m", "escherjax.sample"]
RECORD_NAME = "run.json"
PREVIEW_NAME = "cameras.png"


@dataclasses.dataclass(frozen=True)
class PathOptions:
    """What a user chose of a path; None leaves it to the path and the references."""

    num_views: int = 24
    radius: float | None = None  # distance from the origin, in the network's units
    elevation_deg: float | None = None  # above the horizon
    start_azimuth_deg: float | None = None
    turns: float | None = None  # how often it goes around; negative: clockwise
    through: str | None = None  # cameras of a spline: "references", "all" or a file
    closed: bool = False  # a spline leads back to its first camera
    straight: bool = False  # of a spline, see `splines.interpolate`


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """The command's flags; --weights, --views and --out may come from --repeat."""
    made = argparse.ArgumentParser(
        prog=" ".join(COMMAND),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--weights", help="work directory, checkpoint in it, pipeline folder, or hub id owner/name")
    add("--weights-hash", metavar="HASH", help="refuse other weights; run.json has it")
    add("--out", type=Path, help="new folder for the results")
    add(
        "--repeat",
        type=Path,
        metavar="RUN.JSON",
        help="the recorded run again, with the other flags given here in place of its own",
    )
    add(
        "--plan",
        default="auto",
        help="which views are generated together: joint (all), anchors (some spread over the path, "
        "then chunks between them), autoregressive (chunk after chunk), auto: joint where memory "
        "allows, else anchors (default %(default)s)",
    )
    add("--chunk", type=int, metavar="N", help="most views at once, except in plan joint")
    add(
        "--min-targets",
        type=int,
        default=0,
        metavar="N",
        help="generate at least N views together: extra ones beside the targets, which are "
        "dropped; few views gain from 15 (default %(default)s)",
    )
    add("--dtype", default="float32", help="compute: float32 or bfloat16 (default %(default)s)")
    add(
        "--view-parallel",
        type=int,
        metavar="N",
        help="devices that share the views; default: all, if each gets four or more",
    )
    add("--cape", help="camera encoding of a pipeline folder whose name does not say it")
    add(
        "--max-radius",
        type=float,
        metavar="R",
        help="scale the scene so that its farthest camera stands R from the origin",
    )
    sampling.add_arguments(made)
    _add_views(made)
    _add_targets(made)
    return made


def _add_views(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("views").add_argument
    add(
        "--views",
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
        "degrees, one for each photo; where left out, ELEVATION is --elevation-deg (0) and RADIUS "
        "--radius (1.5)",
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
        help="training field of view, where the weights do not record it",
    )


def _add_targets(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("targets").add_argument
    add(
        "--targets",
        default="orbit",
        help="orbit, spiral, archimedean, dolly, lemniscate or spline; all; a transforms.json; or "
        "a JSON list of {azimuth_deg, elevation_deg, radius} (default %(default)s)",
    )
    add(
        "--num-views",
        type=int,
        default=PathOptions.num_views,
        help="length of a path (default %(default)s)",
    )
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
        help=f"only plot where the cameras stand, OUT/{PREVIEW_NAME}, and stop",
    )
    add(
        "--nerf-folder",
        action="store_true",
        help="also write OUT/nerf, for nerfstudio, instant-ngp and 3DGS trainers",
    )
    add("--alpha", action="store_true", help="make the white ground transparent in that folder")


def parse(argv: Sequence[str], description: str | None = None) -> argparse.Namespace:
    """Reads the flags; with --repeat, those of the recorded run where they are not given here.

    Unless --weights is given, the weights are those that the record names, of a work directory the
    same checkpoint, and --weights-hash refuses others that have taken their place.
    Raises UserError for a missing flag and for a file that is no such record.
    """
    flags = parser(description)
    arguments = flags.parse_args(argv)
    if arguments.repeat is not None:
        stored = recorded_arguments(arguments.repeat)
        if arguments.weights is not None:
            stored["weights_hash"] = None
        arguments = flags.parse_args(argv, argparse.Namespace(**stored))
    needed = ["views", "out"] if arguments.preview else ["weights", "views", "out"]
    missing = [f"--{name}" for name in needed if getattr(arguments, name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} must be given (--preview needs no weights).")
    return arguments


def recorded_arguments(path: Path) -> dict[str, Any]:
    """The arguments of the run that wrote a record, by name, without its --out."""
    try:
        record = json.loads(path.read_text())
        command = record["command"]
        if command[: len(COMMAND)] != COMMAND or not all(isinstance(x, str) for x in command):
            raise ValueError(f"its command is {command!r}")
        # Records of earlier versions hold the command line alone
        stored = record.get("arguments") or vars(parser().parse_args(command[len(COMMAND) :]))
        weights = record.get("weights") or {"path": stored["weights"], "hash": None}
        pinned = {"weights": weights["path"], "weights_hash": weights["hash"]}
        return {**stored, **pinned, "out": None, "repeat": None}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"--repeat {path}: {describe_error(error)}; expected the {RECORD_NAME} that a run of "
            f"'{' '.join(COMMAND)}' wrote."
        ) from error


def record_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments as JSON values, as `recorded_arguments` reads them."""
    return json.loads(json.dumps(vars(arguments), default=str))


def check_out(arguments: argparse.Namespace) -> None:
    """Refuses a folder with anything in it but a preview, and --alpha without its folder."""
    found = {path.name for path in arguments.out.iterdir()} if arguments.out.exists() else set()
    if found - {PREVIEW_NAME}:
        raise UserError(f"--out {arguments.out} is not empty; name a new folder.")
    if arguments.alpha and not arguments.nerf_folder:
        raise UserError("--alpha is about the folder of --nerf-folder; give that too.")


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


def training_fov_deg(arguments: argparse.Namespace, facts: ModelCard) -> float | None:
    """The field of view that pictures are to be shown with; None keeps theirs."""
    if not arguments.match_fov:
        return None
    return facts.fov_deg if arguments.training_fov_deg is None else arguments.training_fov_deg


def choose_targets(
    arguments: argparse.Namespace, scene_c2w: np.ndarray, references: np.ndarray, scale: float
) -> Targets:
    """The target cameras; scene_c2w, references, scale: as in `targets.choose`."""
    from escherjax.sample import targets

    names = [field.name for field in dataclasses.fields(PathOptions)]
    chosen = {name: getattr(arguments, name) for name in names}
    if arguments.cameras is not None:  # then these are about the photos' cameras, at least
        for name in ("radius", "elevation_deg"):
            if not targets.accepts(arguments.targets, name):
                chosen[name] = None
    options = PathOptions(**chosen)
    return targets.choose(arguments.targets, options, scene_c2w, references, scale)


def _reference_indices(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"--references must be numbers such as 0,5,9, got {text!r}.") from error

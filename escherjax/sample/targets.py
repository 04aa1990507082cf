"""The cameras of new views as a user names them: a path, every camera of the scene, or a file.

Two kinds of file are read: a transforms.json, and a list of angles

    [{"azimuth_deg": 30, "elevation_deg": 20, "radius": 1.8, "look_at": [0, 0, 0.2]}, ...]

where a camera stands at its angles and distance about the origin and looks at `look_at`, the origin
where that is left out.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.cameras import paths, splines
from escherjax.data.formats import transforms
from escherjax.errors import UserError, listed
from escherjax.sample.arguments import PathOptions

ALL, SPLINE = "all", "spline"
PATHS = (*paths.PRESETS, SPLINE)
_ANGLE_FIELDS = ("azimuth_deg", "elevation_deg", "radius")


@dataclasses.dataclass(frozen=True)
class Targets:
    """Cameras of the views to generate."""

    c2w: np.ndarray  # [M, 4, 4] float32
    zoom: np.ndarray  # [M] >= 1, how much each finished view is enlarged about its middle
    is_path: bool  # whether they follow each other, as frames of a film
    closed: bool  # whether the last leads on to the first
    settings: dict[str, Any]  # what was chosen, in full, for the run's record


def choose(
    name: str,
    options: PathOptions,
    scene_c2w: np.ndarray,
    references: np.ndarray,
    scale: float = 1.0,
) -> Targets:
    """The cameras that `name` stands for.

    Args:
        name: one of `PATHS`, "all", or a file.
        options: of a path.
        scene_c2w: [V, 4, 4] of the scene, in the units of its files.
        references: indices of its reference views.
        scale: brings the scene's units, and those of files, to the network's, which are those of
            `options.radius`.

    Raises:
        UserError: naming every problem, for an unknown name, options that mean nothing to it,
            numbers out of range and unusable files.
    """
    fields = dataclasses.fields(options)
    unused: dict[str, Any] = {
        field.name: field.default
        for field in fields
        if getattr(options, field.name) != field.default and not accepts(name, field.name)
    }
    problems = []
    if unused and (name in (ALL, *PATHS) or Path(name).is_file()):
        flags = ", ".join(f"--{field.replace('_', '-')}" for field in unused)
        problems.append(f"{flags}: means nothing to --targets {name}; leave it out.")
    used = dataclasses.replace(options, **unused)
    try:
        chosen = _chosen(name, used, _scaled(scene_c2w, scale), references, scale)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError(listed(problems))
    return chosen


def _chosen(
    name: str, options: PathOptions, scene_c2w: np.ndarray, references: np.ndarray, scale: float
) -> Targets:
    """As `choose`, of a scene in the network's units and options that mean something."""
    if name == ALL:
        return _unzoomed(scene_c2w, {"name": name})
    if name == SPLINE:
        through = options.through or "references"
        if through == "references":
            keyframes = scene_c2w[references]
        elif through == ALL:
            keyframes = scene_c2w
        else:
            keyframes = _scaled(read_cameras(Path(through)), scale)
        c2w = splines.spline(keyframes, options.num_views, options.closed, options.straight)
        settings = {"name": name, "through": through, "num_cameras": len(keyframes)}
        return _unzoomed(c2w, settings, is_path=True, closed=options.closed)
    if name in PATHS:
        return _preset(name, options, scene_c2w[references])
    if not Path(name).is_file():
        raise UserError(
            f"--targets {name}: neither a path ({', '.join(PATHS)}), nor '{ALL}', nor a file of "
            "cameras that exists (transforms.json, or a list of angles)."
        )
    return _unzoomed(_scaled(read_cameras(Path(name)), scale), {"name": name}, is_path=True)


def read_cameras(path: Path) -> np.ndarray:
    """Poses [M, 4, 4] float32 of a transforms.json or of a list of angles.

    Raises UserError naming every problem of the file.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    if isinstance(content, dict):
        return transforms.read_cameras(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} must be a transforms.json or a list of angles, got no cameras.")
    positions, gazes, problems = [], [], []
    for number, entry in enumerate(content):
        where = f"{path}: camera {number}"
        if not isinstance(entry, dict):
            problems.append(f"{where} must be an object of angles, got {entry!r}.")
            continue
        faults = _entry_faults(entry)
        problems += [f"{where} {fault}" for fault in faults]
        if not faults:
            azimuth, elevation = np.radians([entry["azimuth_deg"], entry["elevation_deg"]])
            pose = cameras.from_spherical(np.pi / 2 - elevation, azimuth, entry["radius"])
            positions.append(pose[:3, 3])
            gazes.append(entry.get("look_at", (0.0, 0.0, 0.0)))
            if np.linalg.norm(positions[-1] - gazes[-1]) < 1e-6 * entry["radius"]:
                problems.append(f"{where} stands where it looks at; move one of them.")
    if problems:
        raise UserError(listed(problems))
    return cameras.look_at(np.stack(positions), np.asarray(gazes, np.float32))


def _entry_faults(entry: dict[str, Any]) -> list[str]:
    faults = []
    unknown = sorted(set(entry) - {*_ANGLE_FIELDS, "look_at"})
    if unknown:
        faults.append(f"has {', '.join(unknown)}; known: {', '.join(_ANGLE_FIELDS)} and look_at.")
    for name in _ANGLE_FIELDS:
        value: Any = entry.get(name)
        if not _is_number(value):
            faults.append(f"must have a number as {name}, got {value!r}.")
        elif name == "radius" and value <= 0:
            faults.append(f"must have a positive radius, got {value:g}.")
        elif name == "elevation_deg" and abs(value) > 90:
            faults.append(f"must have an elevation_deg from -90 to 90, got {value:g}.")
    gaze = entry.get("look_at", [0, 0, 0])
    if not (isinstance(gaze, list) and len(gaze) == 3 and all(map(_is_number, gaze))):
        faults.append(f"must have three numbers as look_at, got {gaze!r}.")
    return faults


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def _preset(name: str, options: PathOptions, reference_c2w: np.ndarray) -> Targets:
    radius, elevation, azimuth = paths.about_references(reference_c2w)
    if options.radius is not None:
        radius = options.radius
    if options.elevation_deg is not None:
        elevation = np.radians(options.elevation_deg)
    if options.start_azimuth_deg is not None:
        azimuth = np.radians(options.start_azimuth_deg)
    elif name == "archimedean":
        azimuth = 0.0  # as published
    c2w = paths.trajectory(name, options.num_views, radius, elevation, azimuth, options.turns)
    settings = {
        "name": name,
        "radius": radius,
        "elevation_deg": float(np.degrees(elevation)),
        "start_azimuth_deg": float(np.degrees(azimuth)),
        "turns": options.turns or paths.TURNS.get(name),
    }
    settings = {
        key: value for key, value in settings.items() if key == "name" or accepts(name, key)
    }
    zoom = paths.dolly_zoom(c2w) if name == "dolly" else np.ones(len(c2w))
    return Targets(c2w, zoom, True, paths.is_closed(name, options.turns), settings)


def accepts(name: str, option: str) -> bool:
    """Whether a field of `PathOptions` means anything to what `name` stands for."""
    if option == "num_views":
        return True
    if option in ("through", "closed", "straight"):
        return name == SPLINE
    if option == "elevation_deg":
        return name in paths.WITH_ELEVATION
    if option == "turns":
        return name in paths.TURNS
    return name in paths.PRESETS


def _unzoomed(
    c2w: np.ndarray, settings: dict[str, Any], is_path: bool = False, closed: bool = False
) -> Targets:
    return Targets(c2w, np.ones(len(c2w)), is_path, closed, settings)


def _scaled(c2w: np.ndarray, scale: float) -> np.ndarray:
    moved = c2w.astype(np.float32)
    moved[:, :3, 3] *= scale
    return moved

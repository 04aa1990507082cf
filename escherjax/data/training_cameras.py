"""Measures where the cameras of a run's training scenes stand and what they see, and keeps it.

The network sees neither lenses nor lengths, so views are sampled best with those that it was
trained with. `training_cameras.json` in the work directory says which they were.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from escherjax.data import procedural
from escherjax.data.mixture import Mixture
from escherjax.data.shards import Scene
from escherjax.errors import UserError
from escherjax.files import whole_file

FILE_NAME = "training_cameras.json"
_MOST_SCENES = 64  # of all sources together, and at least this many of each:
_FEWEST_SCENES = 8
_AT_ORIGIN = 1e-3  # a camera so near to it, beside the farthest, does not look at something there
_SAME_FOV_DEG = 0.1  # fields of view that differ by less are one


@dataclasses.dataclass(frozen=True)
class TrainingCameras:
    """Distances and field of view of training cameras."""

    # (smallest, largest) from the origin in the scenes' unit; None where paths lead through it
    radius: tuple[float, float] | None
    fov_deg: float | None  # of the square that is shown; None where cameras differ


def of_config(config: ConfigDict) -> TrainingCameras | None:
    """What is known without reading scenes: procedural ones have fixed ranges."""
    if config.data.source != "procedural":
        return None
    fov_deg = None if config.data.zoom else procedural.FOV_DEG
    return TrainingCameras(procedural.RADIUS_RANGE, fov_deg)


def measure(source: Any, config: ConfigDict) -> TrainingCameras | None:
    """Looks at some scenes, spread over every source; None if none of them can be read.

    source: what `sources.open_training_source` opens. Pictures are not decoded.
    """
    radii, fields = [], []
    for scene in _some_scenes(source):
        radii.append(np.linalg.norm(scene.c2w[:, :3, 3], axis=-1))
        side = min(scene.height, scene.width)
        fields.append(2 * np.degrees(np.arctan(side / (2 * scene.K[:, 0, 0]))))
    if not radii:
        return None
    radius, field = np.concatenate(radii), np.concatenate(fields)
    low, high = (round(float(end), 4) for end in (radius.min(), radius.max()))
    is_one = field.max() - field.min() < _SAME_FOV_DEG and not config.data.zoom
    fov_deg = round(float(np.median(field)), 3) if is_one else None
    return TrainingCameras((low, high) if low > _AT_ORIGIN * high else None, fov_deg)


def _some_scenes(source: Any) -> Iterator[Scene]:
    parts = source.sources if isinstance(source, Mixture) else [source]
    for part in parts:
        count = min(len(part), max(_FEWEST_SCENES, _MOST_SCENES // len(parts)))
        for index in np.linspace(0, len(part) - 1, count).round().astype(int):
            try:
                yield part[int(index)]
            except UserError:  # the loader names and counts it when it is its turn
                continue


def keep(workdir: Path, source: Any, config: ConfigDict) -> None:
    """Writes the file, unless a run in `workdir` has done so before."""
    path = workdir / FILE_NAME
    found = None if path.exists() else of_config(config) or measure(source, config)
    if found is not None:
        with whole_file(path) as file:
            file.write_text(json.dumps(dataclasses.asdict(found)) + "\n")


def read(workdir: Path, config: ConfigDict) -> TrainingCameras | None:
    """What a run kept; of one that kept nothing, what its config says. None where unknown.

    Raises UserError for a file that is damaged.
    """
    path = workdir / FILE_NAME
    if not path.exists():
        return of_config(config)
    try:
        content = json.loads(path.read_text())
        radius, fov_deg = content["radius"], content["fov_deg"]
        if radius is not None:
            radius = float(radius[0]), float(radius[1])
        return TrainingCameras(radius, None if fov_deg is None else float(fov_deg))
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove it: without it nothing else is lost, but "
            "cameras far from those of training are not warned about."
        ) from error

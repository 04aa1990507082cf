"""Protocols without ground truth: franka, mvdream, text2img.

A scene is a folder with images_rgba/ (or pictures of its own). All make 100 views on EscherNet's
spiral of radius 1.5, from the north to the south pole in 6.4 turns.

franka: photographs with angles.npy, one row (azimuth, elevation) in radians a picture; N of them
are chosen by a shuffle seeded with 42. The published evaluation seeds once and shuffles for each
scene in the order of its folder listing; here every scene is shuffled from the seed, so that none
depends on the others.
mvdream: four pictures, from azimuths 0, 90, 180 and 270 degrees. text2img: one, from azimuth 0.
Both look horizontally.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from escherjax import cameras
from escherjax.cameras import paths as trajectories
from escherjax.data.formats.folders import find_folders, read_picture
from escherjax.data.images import IMAGE_SUFFIXES, View
from escherjax.errors import UserError
from escherjax.evaluate.picture_rules import PictureRules
from escherjax.evaluate.protocol import Case, CaseRequest, Protocol, Source

RADIUS = 1.5
NUM_TARGETS = 100
SHUFFLE_SEED = 42
IMAGE_FOLDER = "images_rgba"
COUNTS = {"franka": (5,), "mvdream": (4,), "text2img": (1,)}
AZIMUTHS_DEG = {"mvdream": (0.0, 90.0, 180.0, 270.0), "text2img": (0.0,)}


def make(source: Source) -> Protocol:
    """Opens a folder of scenes, SCENE/images_rgba/frame000000.png; UserError if there is none."""
    faithful = source.mode == "faithful"
    rules = PictureRules("zero123" if faithful else "white")
    references = {
        "franka": f"N drawn with seed {SHUFFLE_SEED}, poses from angles.npy, looking at the origin",
        "mvdream": "azimuths 0, 90, 180, 270 degrees at elevation 0, the first N",
        "text2img": "azimuth 0 at elevation 0",
    }

    def read_case(request: CaseRequest, folder: Path) -> Case:
        return _read_case(source.name, request, folder, rules)

    def is_scene(folder: Path, files: list[str]) -> bool:
        return (folder / IMAGE_FOLDER).is_dir() or bool(_pictures(files))

    found = find_folders(
        Path(source.data_path), is_scene, f"folders with pictures, or with {IMAGE_FOLDER}/"
    )
    return source.protocol(
        dict(found),
        read_case,
        COUNTS[source.name],
        rules={
            **rules.describe(),
            "references": references[source.name],
            "targets": f"{NUM_TARGETS} views on the archimedean spiral, without ground truth",
            "poses": f"radius {RADIUS:g}",
        },
        max_references=None if source.name == "franka" else COUNTS[source.name][0],
    )


def _read_case(name: str, request: CaseRequest, folder: Path, rules: PictureRules) -> Case:
    place = folder / IMAGE_FOLDER if (folder / IMAGE_FOLDER).is_dir() else folder
    paths = [place / file for file in _pictures(sorted(os.listdir(place)))]
    if name == "franka":
        polar, azimuth = _read_angles(folder / "angles.npy", len(paths))
        chosen = shuffled_views(len(paths))[: request.num_references]
    else:
        azimuth = np.radians(AZIMUTHS_DEG[name])
        polar = np.full(len(azimuth), np.pi / 2)
        chosen = np.arange(request.num_references)
    needed = request.num_references if name == "franka" else len(azimuth)
    if len(paths) < needed or (name != "franka" and len(paths) > needed):
        more = " or more" if name == "franka" else ""
        raise UserError(
            f"scene '{request.scene_id}': {place} must have {needed} pictures{more}, got "
            f"{len(paths)}."
        )
    c2w = cameras.from_spherical(polar, azimuth, np.full(len(azimuth), RADIUS))[chosen]
    views = [
        View(paths[view], pose, _without_intrinsics)
        for view, pose in zip(chosen.tolist(), c2w, strict=True)
    ]
    return Case(
        scene_id=request.scene_id,
        num_references=request.num_references,
        reference_images=rules.references(views, request.resolution, read_picture),
        reference_c2w=c2w,
        target_c2w=trajectories.trajectory("archimedean", NUM_TARGETS, RADIUS, 0.0),
        truth=None,
        scored=np.arange(0),
    )


def shuffled_views(num_views: int) -> np.ndarray:
    """numpy's legacy shuffle of 0 .. num_views - 1 from the published seed, [num_views]."""
    views = np.arange(num_views)
    np.random.RandomState(SHUFFLE_SEED).shuffle(views)
    return views


def camera_angles(azimuth_elevation_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(polar, azimuth) in radians of rows (azimuth, elevation) as angles.npy has them, [n, 2]."""
    return np.pi / 2 - azimuth_elevation_rad[:, 1], azimuth_elevation_rad[:, 0] - np.pi


def _read_angles(path: Path, num_pictures: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        angles = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); it must have one row (azimuth, elevation) in "
            "radians for every picture."
        ) from error
    if angles.shape != (num_pictures, 2) or angles.dtype.kind != "f":
        raise UserError(
            f"{path} must be ({num_pictures}, 2) for {num_pictures} pictures, rows (azimuth, "
            f"elevation) in radians, got {angles.dtype} {angles.shape}."
        )
    if not np.isfinite(angles).all() or np.abs(angles[:, 1]).max() > np.pi / 2:
        raise UserError(
            f"{path} holds angles that are not finite, or elevations beyond +-pi / 2; its rows "
            "must be (azimuth, elevation) in radians."
        )
    return camera_angles(angles.astype(np.float64))


def _pictures(files: list[str]) -> list[str]:
    """Names of pictures, in order of the numbers in them."""

    def number(name: str) -> tuple[int, str]:
        digits = re.findall(r"\d+", name)
        return int(digits[-1]) if digits else -1, name

    return sorted((name for name in files if name.lower().endswith(IMAGE_SUFFIXES)), key=number)


def _without_intrinsics(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return picture, np.eye(3)  # never read: nothing is known of their field of view

"""Views to scenes, as an importer's arguments ask: picture size and format, the world's place.

This module imports much; the commands import it only when they have work to do.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data_prep.lib.tasks import Imported
from escherjax import cameras
from escherjax.data.formats import folders
from escherjax.data.formats.findings import Findings
from escherjax.data.images import PictureFormat, View
from escherjax.errors import UserError

# Least distance of cameras from one another, in distances from the origin. float32 has 7 digits.
NEAREST = 1e-3


def picture_format(args: argparse.Namespace) -> PictureFormat:
    """The format that --format and --quality ask for."""
    return PictureFormat(args.format, args.quality or PictureFormat.quality)


class Assembler:
    """Makes scenes of views, for an importer with these arguments. Safe to use from threads."""

    def __init__(self, args: argparse.Namespace):
        self.resolution, self.stored = args.resolution, picture_format(args)
        # The arguments of `normalizing.add_arguments`, which some importers have
        self.world = None
        if hasattr(args, "normalize"):
            self.world = (args.normalize, bool(args.recenter), args.up == "cameras")

    def __call__(
        self,
        scene_id: str,
        source: str,
        views: Sequence[View],
        read: folders.ReadPicture = folders.read_picture,
        findings: Findings | None = None,
    ) -> Imported:
        """Reads the pictures of views; notes how their world was moved, if that was asked for.

        findings: of the views' reader, for the report. Other arguments and errors as in
        `folders.assemble_scene`. Poses are moved as they are in the file, in float64, and rounded
        to float32 after that.
        """
        notes: dict[str, Any] = {}
        if self.world:
            c2w = np.stack([pose for _, pose, _ in views])
            faults = cameras.pose_faults(c2w)
            if faults:
                raise UserError(f"scene '{scene_id}': " + " ".join(text for _, _, text in faults))
            moved, notes = cameras.normalize_poses(c2w, *self.world)
            self._check_near(scene_id, moved[:, :3, 3])
            views = [
                View(path, pose, pinhole)
                for (path, _, pinhole), pose in zip(views, moved, strict=True)
            ]
        scene = folders.assemble_scene(scene_id, source, views, self.resolution, self.stored, read)
        return Imported(scene, {**notes, **(findings.notes() if findings else {})})

    def _check_near(self, scene_id: str, positions: np.ndarray) -> None:
        """Raises UserError for cameras that stand close together, far away from the origin."""
        spread = float(np.ptp(positions, axis=0).max())
        distance = float(np.linalg.norm(positions, axis=1).max())
        if 0 < spread < NEAREST * distance:
            _, recenter, _ = self.world or (None, False, False)
            remedy = "--normalize none" if recenter else "--normalize max_radius=1.5 --recenter"
            raise UserError(
                f"scene '{scene_id}': cameras stand {spread:.3g} apart and {distance:.3g} from the "
                f"origin, too far away for their differences to count; give {remedy}."
            )


def check_empty(pictures: Iterable[np.ndarray], most: int) -> None:
    """Raises UserError if more than so many pictures are fully transparent."""
    empty = sum(picture.shape[-1] == 4 and not picture[..., 3].any() for picture in pictures)
    if empty > most:
        raise UserError(f"{empty} views are empty; --max-empty-views {most}.")

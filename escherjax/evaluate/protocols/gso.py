"""Protocols on EscherNet's renders of Google Scanned Objects: gso25, gso3d, gso100.

All give the first N of the 25 random views (render_mvs_25) to the network. gso25 makes all 25 and
scores views 10 to 24; gso3d makes the 36 of render_sync_36_single and gso100 the 100 of
render_spiral_100, which are for reconstruction and to look at, not for two-dimensional metrics.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from escherjax import cameras
from escherjax.cameras import PUBLISHED_FOV_DEG
from escherjax.data.formats.folders import (
    GSO_AXES,
    find_gso_objects,
    read_zero123_poses,
    zero123_views,
)
from escherjax.data.images import View
from escherjax.errors import UserError
from escherjax.evaluate.picture_rules import PictureRules, of_renders
from escherjax.evaluate.protocol import Case, CaseRequest, Protocol, Source

REFERENCES = "render_mvs_25"
NUM_VIEWS = 25
FIRST_SCORED = 10
NUM_OBJECTS = 30
COUNTS = (1, 2, 3, 5, 10)
# Sets of target cameras, and how many there are.
TARGETS = {"gso3d": ("render_sync_36_single", 36), "gso100": ("render_spiral_100", 100)}


def make(source: Source) -> Protocol:
    """Opens a folder of objects, OBJECT/render_mvs_25/model/000.png and 000.npy; UserError if none.

    gso3d and gso100 also need their set's OBJECT/render_.../model/000.npy; its pictures are not
    read.
    """
    rules = of_renders(source.mode)
    if source.name == "gso25":
        targets = f"all {NUM_VIEWS} views of {REFERENCES}; {FIRST_SCORED}.. are scored"
        most = FIRST_SCORED
    else:
        renders, count = TARGETS[source.name]
        targets, most = f"the {count} cameras of {renders}, without ground truth", NUM_VIEWS

    def read_case(request: CaseRequest, folder: Path) -> Case:
        if source.name == "gso25":
            return _read_scored(request, folder, rules)
        return _read_unscored(request, folder, rules, *TARGETS[source.name])

    return source.protocol(
        dict(find_gso_objects(Path(source.data_path), REFERENCES)),
        read_case,
        COUNTS,
        rules={
            **rules.describe(),
            "references": f"first N views of {REFERENCES}",
            "targets": targets,
            "poses": "as stored",
        },
        max_references=most,
        published_num_scenes=None if source.name == "gso100" else NUM_OBJECTS,
    )


def _read_scored(request: CaseRequest, folder: Path, rules: PictureRules) -> Case:
    views = _reference_views(request.scene_id, folder)
    count, size = request.num_references, request.resolution
    c2w = np.stack([pose for _, pose, _ in views]).astype(np.float32)
    truth, target_K = rules.truths(views, size)
    return Case(
        scene_id=request.scene_id,
        num_references=count,
        reference_images=rules.references(views[:count], size),
        reference_c2w=c2w[:count],
        target_c2w=c2w,
        truth=truth,
        scored=np.arange(FIRST_SCORED, NUM_VIEWS),
        target_K=target_K,
    )


def _read_unscored(
    request: CaseRequest, folder: Path, rules: PictureRules, renders: str, num_targets: int
) -> Case:
    views = _reference_views(request.scene_id, folder)[: request.num_references]
    target_folder = folder.parent.parent / renders / "model"
    if not target_folder.is_dir():
        raise UserError(
            f"scene '{request.scene_id}' has no {target_folder} with its cameras 000.npy, ..."
        )
    poses = read_zero123_poses(target_folder, sorted(os.listdir(target_folder)), GSO_AXES[renders])
    _check_numbers(request.scene_id, target_folder, list(poses), num_targets)
    return Case(
        scene_id=request.scene_id,
        num_references=request.num_references,
        reference_images=rules.references(views, request.resolution),
        reference_c2w=np.stack([pose for _, pose, _ in views]).astype(np.float32),
        target_c2w=np.stack([poses[number] for number in range(num_targets)]).astype(np.float32),
        truth=None,
        scored=np.arange(0),
        target_K=np.tile(
            cameras.intrinsics_from_fov(
                math.radians(PUBLISHED_FOV_DEG), request.resolution, request.resolution
            ),
            (num_targets, 1, 1),
        ),
    )


def _reference_views(scene_id: str, folder: Path) -> list[View]:
    """The first 25 views; UserError unless all of them are there."""
    views = zero123_views(folder, sorted(os.listdir(folder)), GSO_AXES[REFERENCES])
    _check_numbers(scene_id, folder, [int(path.stem) for path, _, _ in views], NUM_VIEWS)
    return views[:NUM_VIEWS]


def _check_numbers(scene_id: str, folder: Path, numbers: list[int], count: int) -> None:
    missing = sorted(set(range(count)) - set(numbers))
    if missing:
        named = ", ".join(f"{number:03d}" for number in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"scene '{scene_id}': {folder} misses view {named}{more}; it must have 000 to "
            f"{count - 1:03d}"
        )

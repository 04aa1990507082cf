"""Folders with transforms.json of blots at known points, drawn through any lens."""

import json

import numpy as np
from PIL import Image

from escherjax import cameras
from tests.helpers.colmap_folders import (
    HEIGHT,
    POINTS,
    VIEWS,
    WIDTH,
    paint,
    project_pinhole,
    upright_cameras,
)

PINHOLE = {"fl_x": 90.0, "fl_y": 90.0, "cx": 49.0, "cy": 35.0, "w": WIDTH, "h": HEIGHT}


def pinhole(points):
    """Pixels of points in camera axes, by the lens that `PINHOLE` states."""
    return project_pinhole(points, 90.0, 90.0, 49.0, 35.0)


def write_dots(
    folder, project=pinhole, fields=PINHOLE, frames=({},) * VIEWS, names=None, on_disk=None
):
    """VIEWS pictures of POINTS; frames: further fields of each frame.

    names: what the file calls the pictures; on_disk: where they lie, by default where it says.
    """
    names = names or [f"images/{view:03d}.png" for view in range(VIEWS)]
    c2w = upright_cameras()
    listed = []
    for view, w2c in enumerate(np.linalg.inv(c2w)):
        path = folder / (on_disk or names)[view]
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = paint(project(POINTS @ w2c[:3, :3].T + w2c[:3, 3]))
        Image.fromarray(picture).convert("RGBA" if path.suffix.lower() == ".png" else "RGB").save(
            path
        )
        pose = cameras.opengl_from_opencv(c2w[view]).tolist()
        listed.append({"file_path": names[view], "transform_matrix": pose, **frames[view]})
    (folder / "transforms.json").write_text(json.dumps({**fields, "frames": listed}))
    return folder

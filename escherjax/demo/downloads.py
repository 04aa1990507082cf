"""Results as files: made in memory or in a folder that is gone afterwards."""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from escherjax.data import images
from escherjax.data.formats.transforms import write_transforms
from escherjax.demo.session import Request
from escherjax.reports import sheets
from escherjax.weights.facts import package_version


def transforms_json(request: Request, resolution: int) -> bytes:
    """Cameras of the views as transforms.json (nerfstudio) of pictures 000.png, 001.png, ..."""
    c2w = request.target_c2w
    names = [f"{i:03d}.png" for i in range(len(c2w))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transforms.json"
        write_transforms(path, c2w, request.K(resolution), resolution, names)
        return path.read_bytes()


def pictures_zip(request: Request, views: np.ndarray) -> bytes:
    """A zip of 000.png ..., references/, transforms.json and run.json.

    views: uint8 [M, R, R, 3].
    """
    run = {
        "escherjax": package_version(),
        **dataclasses.asdict(request.settings),
        "reference_c2w": request.reference_c2w.tolist(),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # PNG is compressed already
        for i, view in enumerate(views):
            archive.writestr(f"{i:03d}.png", images.encode_png(view))
        for i, image in enumerate(request.images):
            archive.writestr(f"references/{i:03d}.png", images.encode_png(image))
        archive.writestr("transforms.json", transforms_json(request, views.shape[1]))
        archive.writestr("run.json", json.dumps(run, indent=2) + "\n")
    return buffer.getvalue()


def animation(views: np.ndarray, closed: bool) -> tuple[str, bytes]:
    """(file name, bytes) of the views one after the other: MP4, or GIF without imageio-ffmpeg.

    views: uint8 [M, R, R, 3]. closed: as in `pictures.save_animation`. Pictures under 256 pixels
    are enlarged by a whole number.
    """
    zoom = max(1, 256 // views.shape[1])
    large = views.repeat(zoom, axis=1).repeat(zoom, axis=2)
    with tempfile.TemporaryDirectory() as folder:
        path = sheets.save_animation(Path(folder), large, closed)[-1]
        return "views" + path.suffix, path.read_bytes()

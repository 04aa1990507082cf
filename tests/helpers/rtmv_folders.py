"""RTMV scene folders with dots at known pixels, written by other code than what reads them."""

import json

import numpy as np
import pytest

from tests.helpers.painted_views import POINTS, camera_axes, camera_positions, paint

OpenEXR = pytest.importorskip("OpenEXR")

VIEWS, HEIGHT, WIDTH = 5, 72, 96
FX, FY, CX, CY = 105.0, 98.0, 50.0, 33.0
UP = np.array([0.0, 0.0, 1.0])


def write_exr(path, channels):
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


def write_scene(folder, views=VIEWS, dtype=np.float32):
    folder.mkdir(parents=True)
    for view, position in enumerate(camera_positions(views)):
        right, up, forward = camera_axes(position, UP)
        x, y, z = ((POINTS - position) @ np.stack([right, up, forward], axis=1)).T
        pixels = np.stack([CX + FX * x / z, CY - FY * y / z], axis=-1)  # v grows downwards
        linear = (paint(pixels, HEIGHT, WIDTH) / 255).astype(dtype)
        write_exr(folder / f"{view:05d}.exr", {"RGB": linear})
        write_exr(folder / f"{view:05d}.depth.exr", {"Z": np.ones((HEIGHT, WIDTH), np.float32)})
        # Rows of the stored matrix are the camera's axes and its centre: right, up, back.
        stored = [[*right, 0.0], [*up, 0.0], [*-forward, 0.0], [*position, 1.0]]
        intrinsics = {"fx": FX, "fy": FY, "cx": CX, "cy": CY}
        camera = {"cam2world": np.array(stored).tolist(), "intrinsics": intrinsics}
        content = {"camera_data": {**camera, "width": WIDTH, "height": HEIGHT}}
        (folder / f"{view:05d}.json").write_text(json.dumps(content))
    return folder

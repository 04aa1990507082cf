"""Reads RTMV scenes: folders of 00000.exr (linear colours) with 00000.json (camera).

A JSON file's camera_data holds cam2world, stored transposed and with OpenGL axes, and intrinsics in
pixels. Alpha is not read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.data.formats.lenses import pinhole_intrinsics
from escherjax.data.formats.transforms import read_json
from escherjax.data.images import View
from escherjax.errors import UserError, for_each


def find_scenes(source: Path) -> list[tuple[str, Path]]:
    """(scene id, folder) of every scene at or below `source`; see `folders.find_folders`."""
    from escherjax.data.formats.folders import find_folders

    return find_folders(
        source,
        lambda _, files: any(_is_frame(name, "exr") for name in files),
        "folders with 00000.exr and 00000.json",
    )


def read_cameras(folder: Path, first_views: int | None = None) -> list[View]:
    """Views of a scene folder in order of their numbers.

    Raises UserError naming every frame without picture, camera, or a whole camera.
    """
    names = sorted(os.listdir(folder))
    numbers = {
        kind: {Path(name).stem for name in names if _is_frame(name, kind)}
        for kind in ("exr", "json")
    }
    stems = sorted(numbers["exr"] | numbers["json"], key=lambda stem: (int(stem), stem))

    def read_view(stem: str) -> View:
        for kind, found in numbers.items():
            if stem not in found:
                raise UserError(f"{folder / stem}.{kind} not found.")
        camera_file = folder / f"{stem}.json"
        c2w, intrinsics = _read_camera(camera_file)
        return View(folder / f"{stem}.exr", c2w, pinhole_intrinsics(intrinsics, str(camera_file)))

    return for_each(read_view, stems[:first_views])


def read_exr(path: Path) -> np.ndarray:
    """Linear colours float32 [H, W, 3] of an EXR file. Raises UserError naming it."""
    import OpenEXR

    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name: channel.pixels for name, channel in file.channels().items()}
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); it must be a whole EXR file.") from error
    if not {"R", "G", "B"} <= channels.keys():
        raise UserError(f"{path} must have channels R, G and B, got {', '.join(sorted(channels))}.")
    linear = np.stack([channels[name] for name in "RGB"], axis=-1).astype(np.float32)
    if not np.isfinite(linear).all():
        raise UserError(f"{path} holds NaN or infinity; mend it or leave its scene out.")
    return linear


def tonemap(linear: np.ndarray) -> np.ndarray:
    """uint8 sRGB of linear colours, clipped to [0, 1] (IEC 61966-2-1), rounded."""
    clipped = linear.clip(0, 1)
    curve = np.where(
        clipped <= 0.0031308, 12.92 * clipped, 1.055 * clipped ** np.float32(1 / 2.4) - 0.055
    )
    return np.round(255 * curve).astype(np.uint8)


def wrap_to_bytes(linear: np.ndarray) -> np.ndarray:
    """uint8 of value * 255, cut to an integer, modulo 256: a C cast, the same on every machine."""
    whole = np.trunc(linear * np.float32(255)).astype(np.float64)  # beyond any integer type
    return np.mod(whole, 256).astype(np.uint8)


def _is_frame(name: str, kind: str) -> bool:
    """Whether a file is NNNNN.exr or .json; NNNNN.depth.exr and NNNNN.seg.exr are not frames."""
    return re.fullmatch(rf"\d{{3,}}\.{kind}", name) is not None


def _read_camera(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """(c2w [4, 4] with OpenCV axes, nerfstudio's intrinsics fields) of a frame's JSON file."""
    content = read_json(path, str(path))
    names = {"w": "width", "h": "height", "fl_x": "fx", "fl_y": "fy", "cx": "cx", "cy": "cy"}
    try:
        camera = content["camera_data"]
        values = {**camera["intrinsics"], "width": camera["width"], "height": camera["height"]}
        c2w = np.asarray(camera["cam2world"], np.float64)
        fields = {field: float(values[name]) for field, name in names.items()}
        if c2w.shape != (4, 4) or not min(fields["w"], fields["h"]) > 0:
            raise ValueError
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} must have camera_data with cam2world of 4 rows of 4 numbers, width, height, "
            "and intrinsics with fx, fy, cx, cy."
        ) from error
    return cameras.opencv_from_opengl(c2w.T), fields


def check_openexr() -> None:
    """Raises UserError, naming the extra, where EXR files cannot be read."""
    try:
        import OpenEXR  # noqa: F401
    except ImportError as error:
        raise UserError(
            "RTMV's pictures are EXR files: pip install 'escherjax[prep]' to read them."
        ) from error

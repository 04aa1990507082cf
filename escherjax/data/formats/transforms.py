"""transforms.json: cameras of pictures as nerfstudio, instant-ngp and NeRF-synthetic write them.

Its poses are camera-to-world with OpenGL axes; here they become OpenCV's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.data import images
from escherjax.errors import UserError

DISTORTION_NAMES = ("k1", "k2", "k3", "p1", "p2")
PINHOLE_MODELS = (
    "PINHOLE",
    "SIMPLE_PINHOLE",
    "PERSPECTIVE",
    "OPENCV",
    "RADIAL",
    "SIMPLE_RADIAL",
)


def read_cameras(path: Path) -> np.ndarray:
    """Poses [V, 4, 4] float32 (OpenCV axes) of a transforms.json; its pictures need not exist.

    Raises UserError if the file cannot be read or a pose is missing or not rigid.
    """
    frames = _read_frames(path)[1]
    c2w = np.stack([pose for _, pose, _ in frames]).astype(np.float32)
    cameras.check_poses(c2w, str(path))
    return c2w


def write_transforms(
    path: str | Path, c2w: np.ndarray, K: np.ndarray, size: int, file_names: Sequence[str]
) -> None:
    """Writes a transforms.json (nerfstudio) for square pictures of `size` pixels.

    c2w: [V, 4, 4] OpenCV axes; K: [V, 3, 3], or [3, 3] of all of them; file_names: relative to the
    file's folder. Intrinsics that all views share stand at the top, else in each frame.
    """

    def lens(K: np.ndarray) -> dict[str, float]:
        places = {"fl_x": (0, 0), "fl_y": (1, 1), "cx": (0, 2), "cy": (1, 2)}
        return {name: float(K[place]) for name, place in places.items()}

    intrinsics = np.broadcast_to(K, (len(c2w), 3, 3))
    shared = bool((intrinsics == intrinsics[0]).all())
    frames = [
        {"file_path": name, "transform_matrix": pose.tolist(), **({} if shared else lens(own))}
        for name, pose, own in zip(
            file_names, cameras.opengl_from_opencv(c2w), intrinsics, strict=True
        )
    ]
    content = {
        "camera_model": "PINHOLE",
        "w": size,
        "h": size,
        **(lens(intrinsics[0]) if shared else {}),
        "frames": frames,
    }
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def read_views(path: Path) -> list[images.View]:
    """Views of a transforms.json, in the file's order: camera-to-world with OpenGL axes."""
    meta, frames = _read_frames(path)
    views = []
    for frame, c2w, where in frames:
        pinhole = pinhole_intrinsics({**meta, **frame}, where)
        views.append((_find_picture(path.parent, str(frame["file_path"]), where), c2w, pinhole))
    return views


def parse_views(data: bytes, name: str) -> list[tuple[str, np.ndarray, dict[str, Any]]]:
    """(file_path, c2w [4, 4] float32 with OpenCV axes, fields of its lens) of every frame.

    data: bytes of a transforms.json; name: what messages call it. No file is opened; the fields are
    for `pinhole_intrinsics`. Raises UserError if it cannot be read or a pose is missing or not
    rigid.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be read ({error}).") from error
    meta, frames = _frames_of(content, name)
    c2w = np.stack([pose for _, pose, _ in frames]).astype(np.float32)
    cameras.check_poses(c2w, name)
    return [
        (str(fields["file_path"]), pose, {**meta, **fields})
        for (fields, _, _), pose in zip(frames, c2w, strict=True)
    ]


def _read_frames(path: Path) -> tuple[dict[str, Any], list[tuple[dict[str, Any], np.ndarray, str]]]:
    """(top-level fields, (fields, c2w with OpenCV axes, how to name it) of each frame)."""
    try:
        meta = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    return _frames_of(meta, str(path))


def _frames_of(
    meta: Any, name: str
) -> tuple[dict[str, Any], list[tuple[dict[str, Any], np.ndarray, str]]]:
    listed = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{name} lists no frames.")
    frames = []
    for number, frame in enumerate(listed):
        where = f"{name}: frame {number}"
        if not isinstance(frame, dict) or "file_path" not in frame:
            raise UserError(f"{where} has no file_path.")
        try:
            pose = np.asarray(frame.get("transform_matrix"), np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} ({frame['file_path']}) has an unreadable pose.") from error
        if pose.shape == (3, 4):
            pose = np.concatenate([pose, [[0.0, 0.0, 0.0, 1.0]]])
        if pose.shape != (4, 4):
            raise UserError(
                f"{where} ({frame['file_path']}) has no pose: transform_matrix is {pose.shape}; "
                "needed 4 rows of 4 numbers."
            )
        frames.append((frame, cameras.opencv_from_opengl(pose), where))
    return meta, frames


def _find_picture(folder: Path, name: str, where: str) -> Path:
    for suffix in ("", *images.IMAGE_SUFFIXES):
        path = folder / (name + suffix)
        if path.is_file():
            return path
    suffixes = ", ".join(images.IMAGE_SUFFIXES)
    raise UserError(f"{where}: {folder / name} is missing (also with {suffixes}).")


def pinhole_intrinsics(fields: dict[str, Any], where: str) -> images.Pinhole:
    """The lens that nerfstudio's or NeRF-synthetic's fields describe.

    Where they state another size `w`, `h` than a picture has, K is scaled to the picture. What is
    returned raises UserError, starting with `where`, if fields are missing or shapes differ.
    """

    def pinhole(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        K, distortion = _transforms_intrinsics(fields, where, *picture.shape[:2])
        return images.undistort(picture, K, distortion) if distortion else picture, K

    return pinhole


def _transforms_intrinsics(
    fields: dict[str, Any], where: str, height: int, width: int
) -> tuple[np.ndarray, dict[str, float]]:
    """(K [3, 3] for a picture of this size, lens distortion)."""
    model = fields.get("camera_model", "OPENCV")
    if model not in PINHOLE_MODELS:
        raise UserError(f"{where}: camera_model '{model}'; needed one of {PINHOLE_MODELS}.")
    try:
        stated_w, stated_h = float(fields.get("w", width)), float(fields.get("h", height))
        if "fl_x" in fields:
            fx = float(fields["fl_x"])
            fy = float(fields.get("fl_y", fx))
        elif "camera_angle_x" in fields:
            fx = 0.5 * stated_w / np.tan(0.5 * float(fields["camera_angle_x"]))
            fy = fx
            if "camera_angle_y" in fields:
                fy = 0.5 * stated_h / np.tan(0.5 * float(fields["camera_angle_y"]))
        else:
            raise UserError(f"{where}: no intrinsics; needed fl_x or camera_angle_x.")
        cx, cy = float(fields.get("cx", stated_w / 2)), float(fields.get("cy", stated_h / 2))
        distortion = {n: float(fields[n]) for n in DISTORTION_NAMES if float(fields.get(n, 0))}
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: an intrinsic is no number ({error}).") from error
    scale_x, scale_y = width / stated_w, height / stated_h
    if abs(scale_x / scale_y - 1) > 0.02:
        raise UserError(
            f"{where}: intrinsics are for {stated_w:g} x {stated_h:g} pixels, the picture has "
            f"{width} x {height}: another shape. Mend w and h."
        )
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return cameras.resize_intrinsics(K, scale_x, scale_y), distortion

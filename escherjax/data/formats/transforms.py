"""Reads and writes transforms.json, the cameras of nerfstudio, instant-ngp and NeRF-synthetic.

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
PINHOLE_MODELS = ["PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "OPENCV", "RADIAL", "SIMPLE_RADIAL"]


def read_cameras(path: Path) -> np.ndarray:
    """Poses [V, 4, 4] float32 (OpenCV axes) of a transforms.json; its pictures need not exist.

    Raises UserError if the file cannot be read or a pose is missing or not rigid.
    """
    return np.stack([pose for _, pose, _ in parse_views(path, str(path))])


def write_transforms(
    path: str | Path, c2w: np.ndarray, K: np.ndarray, size: int, file_names: Sequence[str]
) -> None:
    """Writes a transforms.json (nerfstudio) for square pictures of `size` pixels.

    Intrinsics that all views share stand at the top, else in each frame.

    Args:
        path: of the file.
        c2w: [V, 4, 4] OpenCV axes.
        K: [V, 3, 3], or [3, 3] of all of them.
        size: of the pictures in pixels.
        file_names: of the pictures, relative to the file's folder.
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
    """Views of a transforms.json, in the file's order."""
    return [
        images.View(
            _find_picture(path.parent, str(fields["file_path"]), where),
            c2w,
            pinhole_intrinsics(fields, where),
        )
        for fields, c2w, where in _frames(read_json(path, str(path)), str(path))
    ]


def parse_views(source: Path | bytes, name: str) -> list[tuple[str, np.ndarray, dict[str, Any]]]:
    """(file_path, c2w [4, 4] float32 with OpenCV axes, fields of its lens) of every frame.

    source: a transforms.json or its bytes; name: what messages call it. No picture is opened; the
    fields are for `pinhole_intrinsics`. Raises UserError if it cannot be read or a pose is missing
    or not rigid.
    """
    frames = _frames(read_json(source, name), name)
    c2w = np.stack([pose for _, pose, _ in frames]).astype(np.float32)
    cameras.check_poses(c2w, name)
    return [
        (str(fields["file_path"]), pose, fields)
        for (fields, _, _), pose in zip(frames, c2w, strict=True)
    ]


def read_json(source: Path | bytes, name: str) -> Any:
    """Content of a JSON file or its bytes. Raises UserError, naming it, if it cannot be read."""
    try:
        return json.loads(source if isinstance(source, bytes) else source.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be read ({error}).") from error


def _frames(content: Any, name: str) -> list[tuple[dict[str, Any], np.ndarray, str]]:
    """(its fields and the shared ones, c2w with OpenCV axes, how to name it) of each frame."""
    listed = content.get("frames") if isinstance(content, dict) else None
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
                f"{where} ({frame['file_path']}) has no pose: transform_matrix must be 4 rows of 4 "
                f"numbers, got {pose.shape}."
            )
        frames.append(({**content, **frame}, cameras.opencv_from_opengl(pose), where))
    return frames


def _find_picture(folder: Path, name: str, where: str) -> Path:
    for suffix in ("", *images.IMAGE_SUFFIXES):
        path = folder / (name + suffix)
        if path.is_file():
            return path
    suffixes = ", ".join(images.IMAGE_SUFFIXES)
    raise UserError(f"{where}: {folder / name} not found (also with {suffixes}).")


def pinhole_intrinsics(fields: dict[str, Any], where: str) -> images.Pinhole:
    """The lens that nerfstudio's or NeRF-synthetic's fields describe.

    Where they state another size `w`, `h` than a picture has, K is scaled to the picture. The
    returned function raises UserError, starting with `where`, if fields are missing or shapes
    differ.
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
        known = ", ".join(PINHOLE_MODELS)
        raise UserError(f"{where}: camera_model '{model}' is unknown; known: {known}.")
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
            raise UserError(f"{where}: no intrinsics; expected fl_x or camera_angle_x.")
        cx, cy = float(fields.get("cx", stated_w / 2)), float(fields.get("cy", stated_h / 2))
        distortion = {n: float(fields[n]) for n in DISTORTION_NAMES if float(fields.get(n, 0))}
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: an intrinsic is not a number ({error}).") from error
    scale_x, scale_y = width / stated_w, height / stated_h
    if abs(scale_x / scale_y - 1) > 0.02:
        raise UserError(
            f"{where}: intrinsics are for {stated_w:g} x {stated_h:g} pixels, the picture has "
            f"{width} x {height}: another shape. Mend w and h."
        )
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return cameras.resize_intrinsics(K, scale_x, scale_y), distortion

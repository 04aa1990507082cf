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
from escherjax.data.formats import lenses
from escherjax.data.formats.findings import Findings
from escherjax.data.formats.pictures import find_pictures
from escherjax.errors import UserError, listed


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


def read_views(path: Path, findings: Findings | None = None) -> list[images.View]:
    """Views of a transforms.json, in the file's order.

    Args:
        path: of the file.
        findings: takes note of missing pictures, whose views are returned too, and of pictures
            that were found elsewhere than the file says; without it a missing picture is an error.

    Raises:
        UserError: The file cannot be used, or names a picture twice.
    """
    frames = _frames(read_json(path, str(path)), str(path))
    names = [str(fields["file_path"]) for fields, _, _ in frames]
    try:
        found, remarks = find_pictures(path.parent, names)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    suffixes = ", ".join(images.IMAGE_SUFFIXES)
    missing = {
        place: f"{frames[place][2]}: {path.parent / names[place]} not found (also with {suffixes})."
        for place, picture in enumerate(found)
        if picture is None
    }
    if findings is None and missing:
        raise UserError(listed(list(missing.values())))
    if findings is not None:
        findings.missing |= missing
        findings.left_out |= {names[place]: "picture not found" for place in missing}
        findings.remarks += remarks
    return [
        images.View(picture or path.parent / name, c2w, lenses.pinhole_intrinsics(fields, where))
        for (fields, c2w, where), name, picture in zip(frames, names, found, strict=True)
    ]


def parse_views(source: Path | bytes, name: str) -> list[tuple[str, np.ndarray, dict[str, Any]]]:
    """(file_path, c2w [4, 4] float32 with OpenCV axes, fields of its lens) of every frame.

    source: a transforms.json or its bytes; name: what messages call it. No picture is opened; the
    fields are for `lenses.pinhole_intrinsics`. Raises UserError if it cannot be read or a pose is
    missing or not rigid.
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
        if not isinstance(frame, dict) or frame.get("file_path") is None:
            raise UserError(f"{where} has no file_path.")
        try:
            pose = np.asarray(frame.get("transform_matrix"), np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where} ({frame['file_path']}) has an unreadable pose.") from error
        if pose.shape == (3, 4):
            pose = np.concatenate([pose, [[0.0, 0.0, 0.0, 1.0]]])
        if pose.shape != (4, 4):
            raise UserError(
                f"{where} ({frame['file_path']}) has no pose: transform_matrix must be 4 rows of 4 "
                f"numbers, got {pose.shape}."
            )
        frames.append(
            (lenses.frame_fields(content, frame), cameras.opencv_from_opengl(pose), where)
        )
    return frames

"""Scene folders: pictures with their cameras, as renderers and capture tools leave them.

Three layouts are read: a Zero123 render folder (`000.png`, `000.npy`, ...), a folder with
`transforms.json` (nerfstudio, instant-ngp) or `transforms_SPLIT.json` (NeRF-synthetic), and a
COLMAP folder (`images/`, `sparse/0`). Axes and intrinsics are converted here, once; nothing is
scaled or moved, but for COLMAP's world, which has no up, origin and scale of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.data import colmap, images
from escherjax.data.records import Scene, validate_scene
from escherjax.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Zero-1-to-3 renders with a 35 mm lens on a 32 mm sensor that spans the longer side.
ZERO123_FOCAL = 35.0 / 32.0
DISTORTION_NAMES = ("k1", "k2", "k3", "p1", "p2")
PINHOLE_MODELS = (
    "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "OPENCV", "RADIAL", "SIMPLE_RADIAL",
)  # fmt: skip

KEPT_OR_PNG = images.PictureFormat()

# A view before its picture is read: its file, c2w [4, 4] with OpenCV axes, its lens.
View = tuple[Path, np.ndarray, images.Pinhole]
# File -> (its bytes where they can be kept as they are, else None; the picture, uint8).
ReadPicture = Callable[[Path], tuple[bytes | None, np.ndarray]]


def find_scene_folders(source: Path, layout: str, split: str = "train") -> list[tuple[str, Path]]:
    """(scene id, folder) of every scene folder at or below `source`, sorted by id.

    layout: "zero123", "transforms" or "colmap". Ids are paths relative to `source`, or the folder's
    own name where `source` is itself a scene. Raises UserError if there is none.
    """

    def is_scene(folder: Path, files: list[str]) -> bool:
        if layout == "zero123":
            return any(_view_number(name) is not None for name in files)
        if layout == "colmap":
            return colmap.find_model(folder) is not None
        return f"transforms_{split}.json" in files or "transforms.json" in files

    needed = {
        "zero123": "folders with 000.png and 000.npy, ...",
        "transforms": f"folders with transforms_{split}.json or transforms.json",
        "colmap": f"folders with a COLMAP model in {' or '.join(colmap.MODEL_FOLDERS)}",
    }
    return find_folders(source, is_scene, needed[layout])


def find_folders(
    source: Path, is_scene: Callable[[Path, list[str]], bool], needed: str
) -> list[tuple[str, Path]]:
    """(id, folder) of every folder at or below `source` that is a scene, sorted by id.

    is_scene: (folder, names of its files) -> bool; nothing is looked for inside a scene.
    needed: what the error says was looked for. Ids and errors as in `find_scene_folders`.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"--source {source} is no folder.")
    found = []
    for parent, folders, files in os.walk(source):
        folders.sort()
        path = Path(parent)
        if is_scene(path, files):
            folders.clear()
            name = path.resolve().name if path == source else path.relative_to(source).as_posix()
            found.append((name, path))
    if not found:
        raise UserError(f"no scenes in {source}; needed {needed}.")
    return sorted(found)


def read_scene_folder(
    folder: str | Path,
    scene_id: str | None = None,
    split: str = "train",
    resolution: int = 0,
    axes: str = "opengl",
    stored: images.PictureFormat = KEPT_OR_PNG,
) -> Scene:
    """Reads one scene folder of any of the layouts.

    split: which transforms_SPLIT.json; transforms.json is read where that is missing.
    resolution: pictures whose shorter side is longer are shrunk to it, and K with them; 0 leaves
    their size. Every picture is decoded, so that a broken one is found here.
    A COLMAP world is turned z up, centred and scaled by the defaults of
    `cameras.normalize_poses`.
    axes: "opengl" or "opencv", of the poses in .npy files. stored: format of the pictures.
    Raises UserError naming the scene: missing pose, broken picture, bad camera, no such layout.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; needed a scene folder.")
    scene_id = folder.resolve().name if scene_id is None else scene_id
    files = sorted(os.listdir(folder))
    transforms = [n for n in (f"transforms_{split}.json", "transforms.json") if n in files]
    if transforms:
        views, source = _read_transforms(folder / transforms[0]), "transforms"
    elif any(_view_number(name) is not None for name in files):
        views, source = _read_zero123(folder, files, axes), "zero123"
    elif (model := colmap.find_model(folder)) is not None:
        views, source = colmap.read_views(model, folder / "images"), "colmap"
        c2w, _ = cameras.normalize_poses(np.stack([pose for _, pose, _ in views]))
        views = [(path, pose, pinhole) for (path, _, pinhole), pose in zip(views, c2w, strict=True)]
    else:
        other = [name for name in files if re.fullmatch(r"transforms_\w+\.json", name)]
        raise UserError(
            f"{folder} is no scene folder: needed transforms.json, transforms_{split}.json, "
            f"000.png with 000.npy, or images/ with a COLMAP model in sparse/0"
            + (f"; it has {', '.join(other)}: choose that split." if other else ".")
            + _nested_hint(folder, split)
        )
    return assemble_scene(scene_id, source, views, resolution, stored)


def read_picture(path: Path) -> tuple[bytes, np.ndarray]:
    """(bytes, decoded picture) of a PNG, JPEG or WebP file. Raises UserError naming it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    return data, images.decode_image(data, str(path))


def assemble_scene(
    scene_id: str,
    source: str,
    views: Sequence[View],
    resolution: int = 0,
    stored: images.PictureFormat = KEPT_OR_PNG,
    read: ReadPicture = read_picture,
) -> Scene:
    """Reads the pictures of views and makes a scene of them; every format ends here.

    source: name of the format. resolution, stored: as in `read_scene_folder`.
    Raises UserError naming the scene or every file at fault: broken pictures, mixed sizes, bad
    camera.
    """
    encoded, c2w, K, sizes, problems = [], [], [], [], []
    for path, pose, pinhole in views:
        try:
            data, size, intrinsics = _read_view(path, pinhole, resolution, stored, read)
        except UserError as error:
            problems.append(str(error))
            continue
        encoded.append(data)
        c2w.append(pose)
        K.append(intrinsics)
        sizes.append(size)
    if problems:
        raise UserError(" ".join(problems))
    if len(set(sizes)) > 1:
        raise UserError(
            f"scene '{scene_id}' mixes picture sizes (height, width) {sorted(set(sizes))}; "
            "needed one size."
        )
    scene = Scene(
        scene_id=scene_id,
        source=source,
        images=encoded,
        c2w=np.stack(c2w).astype(np.float32),
        K=np.stack(K).astype(np.float32),
        height=sizes[0][0],
        width=sizes[0][1],
    )
    validate_scene(scene)
    return scene


def _nested_hint(folder: Path, split: str) -> str:
    """Names scene folders further down, for whoever named their parent."""
    below = []
    for layout in ("transforms", "zero123", "colmap"):
        with contextlib.suppress(UserError):
            below += [str(path) for _, path in find_scene_folders(folder, layout, split)]
    return f" Below it are scenes: {', '.join(below[:3])}." if below else ""


def _view_number(name: str) -> int | None:
    stem, suffix = os.path.splitext(name)
    is_view = suffix.lower() in (*IMAGE_SUFFIXES, ".npy") and re.fullmatch(r"\d{3,}", stem)
    return int(stem) if is_view else None


def _read_zero123(folder: Path, files: list[str], axes: str) -> list[View]:
    """Views of a Zero123 render folder: NNN.npy is [3, 4] world-to-camera, Blender axes if not
    said otherwise."""
    poses, pictures = {}, {}
    for name in files:
        number = _view_number(name)
        if number is not None:
            (poses if name.endswith(".npy") else pictures)[number] = folder / name
    for kind, has, lacks in (("pose", pictures, poses), ("picture", poses, pictures)):
        missing = sorted(set(has) - set(lacks))
        if missing:
            raise UserError(
                f"{folder}: view {missing[0]:03d} has no {kind} ({len(missing)} such views); "
                "needed a picture and an .npy for every number."
            )

    def pinhole(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = picture.shape[:2]
        focal = ZERO123_FOCAL * max(height, width)
        return picture, np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])

    views = []
    for number in sorted(pictures):
        try:
            w2c = np.load(poses[number], allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{poses[number]} is no whole .npy file of numbers; needed a world-to-camera "
                "matrix."
            ) from error
        if w2c.shape not in ((3, 4), (4, 4)) or w2c.dtype.kind != "f":
            raise UserError(
                f"{poses[number]} holds {w2c.dtype} {w2c.shape}; needed a float world-to-camera "
                "matrix (3, 4)."
            )
        c2w = cameras.c2w_from_w2c(w2c.astype(np.float64))
        if axes == "opengl":
            c2w = cameras.opencv_from_opengl(c2w)
        views.append((pictures[number], c2w, pinhole))
    return views


def read_cameras(path: Path) -> np.ndarray:
    """Poses [V, 4, 4] float32 (OpenCV axes) of a transforms.json; its pictures need not exist.

    Raises UserError if the file cannot be read or a pose is missing or not rigid.
    """
    frames = _read_frames(path)[1]
    c2w = np.stack([pose for _, pose, _ in frames]).astype(np.float32)
    cameras.check_poses(c2w, str(path))
    return c2w


def write_transforms(
    path: Path, c2w: np.ndarray, K: np.ndarray, size: int, file_names: Sequence[str]
) -> None:
    """Writes a transforms.json (nerfstudio) for square pictures of `size` pixels.

    c2w: [V, 4, 4] OpenCV axes; K: [3, 3] of all of them; file_names: relative to the file's folder.
    """
    frames = [
        {"file_path": name, "transform_matrix": pose.tolist()}
        for name, pose in zip(file_names, cameras.opengl_from_opencv(c2w), strict=True)
    ]
    content = {
        "camera_model": "PINHOLE",
        "w": size,
        "h": size,
        "fl_x": float(K[0, 0]),
        "fl_y": float(K[1, 1]),
        "cx": float(K[0, 2]),
        "cy": float(K[1, 2]),
        "frames": frames,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def _read_transforms(path: Path) -> list[View]:
    """Views of a transforms.json, in the file's order: camera-to-world with OpenGL axes."""
    meta, frames = _read_frames(path)
    views = []
    for frame, c2w, where in frames:
        pinhole = pinhole_intrinsics({**meta, **frame}, where)
        views.append((_find_picture(path.parent, str(frame["file_path"]), where), c2w, pinhole))
    return views


def _read_frames(path: Path) -> tuple[dict[str, Any], list[tuple[dict[str, Any], np.ndarray, str]]]:
    """(top-level fields, (fields, c2w with OpenCV axes, how to name it) of each frame)."""
    try:
        meta = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    listed = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{path} lists no frames.")
    frames = []
    for number, frame in enumerate(listed):
        where = f"{path}: frame {number}"
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
    for suffix in ("", *IMAGE_SUFFIXES):
        path = folder / (name + suffix)
        if path.is_file():
            return path
    raise UserError(f"{where}: {folder / name} is missing (also with {', '.join(IMAGE_SUFFIXES)}).")


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


def _read_view(
    path: Path,
    pinhole: images.Pinhole,
    resolution: int,
    stored: images.PictureFormat,
    read: ReadPicture,
) -> tuple[bytes, tuple[int, int], np.ndarray]:
    """(encoded bytes, (height, width), K) of one view, undistorted and shrunk where needed."""
    data, picture = read(path)
    changed, K = pinhole(picture)
    height, width = changed.shape[:2]
    shorter = min(height, width)
    if resolution and shorter > resolution:
        new_height = round(height * resolution / shorter)
        new_width = round(width * resolution / shorter)
        changed = images.resize_image(changed, new_height, new_width)
        K = cameras.resize_intrinsics(K, new_width / width, new_height / height)
    if data is None or changed is not picture or not stored.keeps(data):
        try:
            data = stored.encode(changed)
        except UserError as error:
            raise UserError(f"{path} cannot be stored: {error}") from error
    return data, changed.shape[:2], K

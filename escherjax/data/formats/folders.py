"""Reads scene folders: pictures with their cameras, as renderers and capture tools leave them.

Three layouts are read: a Zero123 render folder (`000.png`, `000.npy`, ...), a folder with
`transforms.json` (nerfstudio, instant-ngp) or `transforms_SPLIT.json` (NeRF-synthetic), and a
COLMAP folder (`images/`, `sparse/0`). Axes and intrinsics are converted here, once; nothing is
scaled or moved, but for COLMAP's world, which has no up, origin and scale of its own.

EscherNet's renders of Google Scanned Objects are Zero123 folders OBJECT/RENDERS/model, up to three
sets of renders for each object; a set on a fixed path may hold poses alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.data import images
from escherjax.data.formats import colmap, transforms
from escherjax.data.formats.findings import Findings
from escherjax.data.shards import Scene, validate_scene
from escherjax.errors import UserError, for_each

# Zero-1-to-3 renders with a 35 mm lens on a 32 mm sensor that spans the longer side.
ZERO123_FOCAL = 35.0 / 32.0

# Camera axes of the poses in each set of renders of Google Scanned Objects.
GSO_AXES = {
    "render_mvs_25": "opengl",  # 25 views about the object, as those trained on
    "render_sync_36_single": "opencv",  # 12 azimuths at 3 elevations
    "render_spiral_100": "opencv",
}

KEPT_OR_PNG = images.PictureFormat()

# File -> (its bytes where they can be kept as they are, else None; the picture, uint8).
ReadPicture = Callable[[Path], tuple[bytes | None, np.ndarray]]


def find_scene_folders(source: Path, layout: str, split: str = "train") -> list[tuple[str, Path]]:
    """(scene id, folder) of every scene folder at or below `source`, sorted by id.

    layout: "zero123", "transforms" or "colmap". Ids are paths relative to `source`, or the folder's
    own name where `source` is itself a scene. Raises UserError if there is none.
    """

    def is_scene(folder: Path, files: list[str]) -> bool:
        if layout == "zero123":
            return any(view_number(name) is not None for name in files)
        if layout == "colmap":
            return colmap.find_model(folder) is not None
        return f"transforms_{split}.json" in files or "transforms.json" in files

    needed = {
        "zero123": "folders with 000.png and 000.npy, ...",
        "transforms": f"folders with transforms_{split}.json or transforms.json",
        "colmap": f"folders with a COLMAP model in {' or '.join(colmap.MODEL_FOLDERS)}",
    }
    return find_folders(source, is_scene, needed[layout])


def find_gso_objects(source: Path, renders: str) -> list[tuple[str, Path]]:
    """(object name, folder of its renders) at or below `source`, sorted by name.

    renders: a key of GSO_AXES. Raises UserError if no object has such renders.
    """
    found = []
    for name, folder in find_scene_folders(source, "zero123"):
        # The source's own name stands for what lies above it: an object, or its renders.
        parts = folder.resolve().parts
        if parts[-2:] == (renders, "model"):
            relative = Path(name).parent.parent.as_posix()
            found.append((parts[-3] if relative == "." else relative, folder))
    if not found:
        raise UserError(f"no object in {source} has renders in OBJECT/{renders}/model.")
    return sorted(found)


def find_folders(
    source: Path, is_scene: Callable[[Path, list[str]], bool], needed: str
) -> list[tuple[str, Path]]:
    """(id, folder) of every folder at or below `source` that is a scene, sorted by id.

    is_scene: (folder, names of its files) -> bool; nothing is looked for inside a scene.
    needed: what the error says was looked for. Ids and errors as in `find_scene_folders`.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"--source {source} is not a directory.")
    found, seen = [], set()
    for parent, folders, files in os.walk(source, followlinks=True):
        folders.sort()
        path = Path(parent)
        real = path.resolve()
        if path.is_symlink() and (real in seen or real in source.resolve().parents):
            folders.clear()  # a link that leads round in a circle
            continue
        seen.add(real)
        if is_scene(path, files):
            folders.clear()
            name = path.resolve().name if path == source else path.relative_to(source).as_posix()
            found.append((name, path))
    if not found:
        raise UserError(f"no scenes in {source}; expected {needed}.")
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

    Every picture is decoded, so that a broken one is found here. A COLMAP world is turned z up,
    centred and scaled by the defaults of `cameras.normalize_poses`.

    Args:
        folder: of the scene.
        scene_id: None for the folder's name.
        split: which transforms_SPLIT.json; transforms.json is read where that is missing.
        resolution: pictures whose shorter side is longer are shrunk to it, and K with them; 0
            leaves their size.
        axes: "opengl" or "opencv", of the poses in .npy files.
        stored: format of the pictures.

    Raises:
        UserError: Names the scene: missing pose, broken picture, bad camera, no such layout.
    """
    folder = Path(folder)
    views, source = find_views(folder, split, axes)
    scene_id = folder.resolve().name if scene_id is None else scene_id
    return assemble_scene(scene_id, source, views, resolution, stored)


def find_views(
    folder: Path, split: str = "train", axes: str = "opengl", findings: Findings | None = None
) -> tuple[list[images.View], str]:
    """(views, name of the layout) of a scene folder; no picture is read yet.

    Arguments, worlds and errors as in `read_scene_folder`. findings: takes note of missing
    pictures, whose views are returned too; without it a missing picture is an error.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a directory; expected a scene folder.")
    files = sorted(os.listdir(folder))
    layout = layout_of(folder, split)
    if layout == "transforms":
        name = f"transforms_{split}.json"
        views = transforms.read_views(
            folder / (name if name in files else "transforms.json"), findings
        )
    elif layout == "zero123":
        views = zero123_views(folder, files, axes)
    elif layout == "colmap":
        model = colmap.largest_model(folder, findings or Findings())
        assert model is not None  # as the layout is COLMAP's
        views = colmap.read_views(model, folder / "images", findings=findings)
        c2w, _ = cameras.normalize_poses(np.stack([view.c2w for view in views]))
        views = [view._replace(c2w=pose) for view, pose in zip(views, c2w, strict=True)]
    else:
        other = [name for name in files if re.fullmatch(r"transforms_\w+\.json", name)]
        raise UserError(
            f"{folder} is not a scene folder: expected transforms.json, transforms_{split}.json, "
            f"000.png with 000.npy, or images/ with a COLMAP model in sparse/0"
            + (f"; it has {', '.join(other)}: choose that split." if other else ".")
            + _nested_hint(folder, split)
        )
    return views, layout


def layout_of(folder: Path, split: str = "train") -> str | None:
    """ "transforms", "zero123" or "colmap", by the names of a folder's files; None for neither."""
    files = os.listdir(folder)
    if f"transforms_{split}.json" in files or "transforms.json" in files:
        return "transforms"
    if any(view_number(name) is not None for name in files):
        return "zero123"
    return None if colmap.find_model(folder) is None else "colmap"


def read_picture(path: Path) -> tuple[bytes | None, np.ndarray]:
    """(bytes, decoded picture) of a PNG, JPEG or WebP file. Raises UserError naming it.

    Pixels are as stored, which is what cameras in files refer to, whatever an EXIF orientation
    says; the bytes are None where such a tag would turn them in other readers.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    picture, orientation = images.decode_tagged(data, str(path))
    return data if orientation == 1 else None, picture


def read_zero123(
    folder: Any, scene_id: str, resolution: int = 0, stored: images.PictureFormat = KEPT_OR_PNG
) -> Scene:
    """Reads a Zero123 render folder that lies in memory.

    folder: stands in for a Path: `folder.list()` names its files, `folder / name` has
    `read_bytes()`. The rest, and errors, as in `read_scene_folder`.
    """
    views = zero123_views(folder, folder.list())
    return assemble_scene(scene_id, "zero123", views, resolution, stored)


def assemble_scene(
    scene_id: str,
    source: str,
    views: Sequence[images.View],
    resolution: int = 0,
    stored: images.PictureFormat = KEPT_OR_PNG,
    read: ReadPicture = read_picture,
) -> Scene:
    """Reads the pictures of views and makes a scene of them; every format ends here.

    source: name of the format. resolution, stored: as in `read_scene_folder`.
    Raises UserError naming the scene or every file at fault: broken pictures, mixed sizes, bad
    camera.
    """
    read_views = for_each(lambda view: _read_view(view, resolution, stored, read), views)
    encoded, sizes, K = zip(*read_views, strict=True)
    if len(set(sizes)) > 1:
        raise UserError(
            f"scene '{scene_id}' mixes picture sizes (height, width) {sorted(set(sizes))}; "
            "all must be equal."
        )
    scene = Scene(
        scene_id=scene_id,
        source=source,
        images=list(encoded),
        c2w=np.stack([c2w for _, c2w, _ in views]).astype(np.float32),
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


def view_number(name: str) -> int | None:
    """Number of the view that a file of a Zero123 render folder belongs to, or None."""
    stem, suffix = os.path.splitext(name)
    is_view = suffix.lower() in (*images.IMAGE_SUFFIXES, ".npy") and re.fullmatch(r"\d{3,}", stem)
    return int(stem) if is_view else None


def _is_pose(name: str) -> bool:
    return name.lower().endswith(".npy")


def _numbered(
    folder: Any, files: Sequence[str], is_wanted: Callable[[str], bool], what: str
) -> dict[int, str]:
    """Number -> name of the wanted files of views; UserError naming numbers that have two."""
    found: dict[int, list[str]] = {}
    for name in files:
        number = view_number(name)
        if number is not None and is_wanted(name):
            found.setdefault(number, []).append(name)
    repeated = [" and ".join(names) for names in found.values() if len(names) > 1]
    if repeated:
        raise UserError(
            f"{folder}: one view has several {what}: {'; '.join(repeated[:5])}. Each number must "
            "have one; remove the others."
        )
    return {number: names[0] for number, names in found.items()}


def zero123_views(folder: Any, files: Sequence[str], axes: str = "opengl") -> list[images.View]:
    """Views of a Zero123 render folder, in order of their numbers; no picture is read yet.

    folder: a Path, or what stands in for one (see `read_zero123`); files: names of its files.
    axes: as in `read_scene_folder`. Raises UserError for a picture without pose or a pose without
    picture, and as `read_zero123_poses`.
    """
    pictures = _numbered(folder, files, lambda name: not _is_pose(name), "pictures")
    poses = set(_numbered(folder, files, _is_pose, "poses"))
    for kind, has, lacks in (("pose", set(pictures), poses), ("picture", poses, set(pictures))):
        missing = sorted(has - lacks)
        if missing:
            raise UserError(
                f"{folder}: view {missing[0]:03d} has no {kind} ({len(missing)} such views); "
                "every number must have a picture and an .npy."
            )

    def pinhole(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = picture.shape[:2]
        focal = ZERO123_FOCAL * max(height, width)
        return picture, np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])

    c2w = read_zero123_poses(folder, files, axes)
    return [images.View(folder / pictures[number], c2w[number], pinhole) for number in c2w]


def read_zero123_poses(
    folder: Any, files: Sequence[str], axes: str = "opengl"
) -> dict[int, np.ndarray]:
    """View number -> c2w [4, 4] float64, OpenCV axes, of NNN.npy files, in order of the numbers.

    The files hold [3, 4] or [4, 4] world-to-camera. Arguments as in `zero123_views`. Raises
    UserError naming a file that holds something else.
    """
    poses = {}
    for number, name in _numbered(folder, files, _is_pose, "poses").items():
        path = folder / name
        try:
            w2c = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{path} is not a whole .npy file of numbers; expected a world-to-camera matrix."
            ) from error
        if not isinstance(w2c, np.ndarray):
            raise UserError(
                f"{path} is an .npz archive of {', '.join(w2c.files[:5])}; expected one array, as "
                "np.save writes it, not np.savez."
            )
        if w2c.shape not in ((3, 4), (4, 4)) or w2c.dtype.kind != "f":
            raise UserError(
                f"{path} must hold a float world-to-camera matrix (3, 4), got {w2c.dtype} "
                f"{w2c.shape}."
            )
        c2w = cameras.c2w_from_w2c(w2c.astype(np.float64))
        poses[number] = cameras.opencv_from_opengl(c2w) if axes == "opengl" else c2w
    return dict(sorted(poses.items()))


def _read_view(
    view: images.View, resolution: int, stored: images.PictureFormat, read: ReadPicture
) -> tuple[bytes, tuple[int, int], np.ndarray]:
    """(encoded bytes, (height, width), K) of one view, undistorted and shrunk where needed."""
    path, _, pinhole = view
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
    return data, (changed.shape[0], changed.shape[1]), K

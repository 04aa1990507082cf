"""What `escherjax.sample` writes: views, contact sheet, animation, cameras, run.json, NeRF folder.

The NeRF folder is what trainers of radiance fields and Gaussian splats read as it is:

    images/000.png ...        the pictures
    transforms.json           nerfstudio, instant-ngp: OpenGL camera-to-world, pixels
    points3D.ply              nerfstudio's first Gaussians (ply_file_path)
    sparse/0/cameras.txt, images.txt, points3D.txt      COLMAP: 3DGS, gsplat and others

All are in one world, that of the given cameras. There is no second transforms_*.json: instant-ngp
trains on every one in a folder. Nothing is known of the surface before training, so the points are
random; 3DGS turns points3D.txt into the file that it wants.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from escherjax import cameras
from escherjax.cameras import Cameras
from escherjax.data.formats.transforms import write_transforms
from escherjax.reports import sheets
from escherjax.sample.targets import Targets

SHEET_NAME = "contact_sheet.png"
NUM_POINTS = 10_000
WHITE_TOLERANCE = 12  # of 255: samplers and decoders do not leave a white ground exactly white
POINTS_FILE = "points3D.ply"


def write_views(
    folder: Path,
    references: np.ndarray,
    views: np.ndarray,
    targets: Targets,
    K: np.ndarray,
    true_views: np.ndarray | None = None,
) -> None:
    """Writes pictures, contact sheet, transforms.json, and of a path an animation.

    Args:
        folder: is made where it is missing.
        references: [N, R, R, 3] uint8.
        views: [M, R, R, 3] uint8 as they were generated; they are zoomed here by `targets.zoom`.
        targets: their cameras.
        K: [3, 3] of the views before the zoom.
        true_views: like views, where they are known.
    """
    every_K = np.broadcast_to(K, (len(views), 3, 3))
    views, every_K = sheets.zoom_center(views, every_K, targets.zoom)
    names = [path.name for path in sheets.save_images(folder, views)]
    sheets.contact_sheet(folder / SHEET_NAME, references, views, true_views)
    if targets.is_path:
        sheets.save_animation(folder, views, targets.closed)
    write_transforms(folder / "transforms.json", targets.c2w, every_K, views.shape[1], names)


def write_nerf_folder(
    folder: Path,
    references: np.ndarray,
    reference_cameras: Cameras,
    views: np.ndarray,
    target_c2w: np.ndarray,
    alpha: bool,
) -> None:
    """Writes references and views, both [V, R, R, 3] uint8, for a trainer of radiance fields.

    Views are those of the network, before any zoom, with the first reference's intrinsics. Where
    one has the camera of a reference, the reference alone is written: it is the true picture.
    """
    known = np.asarray(reference_cameras.c2w)
    K = np.asarray(reference_cameras.K)
    distance = np.abs(target_c2w[:, None] - known[None]).max((2, 3))  # [M, N]
    new = distance.min(axis=1) > 1e-5
    write_nerf_layout(
        folder,
        np.concatenate([references, views[new]]),
        np.concatenate([known, target_c2w[new]]),
        np.concatenate([K, np.broadcast_to(K[0], (int(new.sum()), 3, 3))]),
        alpha,
    )


def write_nerf_layout(
    folder: Path, images: np.ndarray, c2w: np.ndarray, K: np.ndarray, alpha: bool = False
) -> None:
    """Writes the layout above into `folder`, which is made.

    images: [V, R, R, 3] uint8; c2w: [V, 4, 4], OpenCV axes; K: [V, 3, 3] in their pixels.
    alpha: pictures are RGBA, their white ground transparent (`foreground_alpha`).
    """
    (folder / "images").mkdir(parents=True)
    names = [f"images/{view:03d}.png" for view in range(len(images))]
    for name, image in zip(names, images, strict=True):
        picture = np.dstack([image, foreground_alpha(image)]) if alpha else image
        Image.fromarray(picture).save(folder / name)
    points = initial_points(c2w, K, images.shape[1])
    transforms = folder / "transforms.json"
    write_transforms(transforms, c2w, K, images.shape[1], names)
    content = {"ply_file_path": POINTS_FILE, **json.loads(transforms.read_text())}
    transforms.write_text(json.dumps(content, indent=1) + "\n")
    _write_ply(folder / POINTS_FILE, points)
    _write_colmap(folder / "sparse" / "0", c2w, K, images.shape[1], names, points)


def foreground_alpha(image: np.ndarray, tolerance: int = WHITE_TOLERANCE) -> np.ndarray:
    """Alpha [H, W] uint8, 0 or 255, of a picture [H, W, 3] of an object on white.

    Transparent is what is white within `tolerance` in every channel and joined to the picture's
    border through such pixels; white parts inside the object stay opaque, and so do holes.
    """
    from scipy import ndimage

    white = (image >= 255 - tolerance).all(-1)
    regions, _ = ndimage.label(white)
    rim = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    ground = np.isin(regions, np.setdiff1d(rim, [0]))
    return np.where(ground, np.uint8(0), np.uint8(255))


def initial_points(c2w: np.ndarray, K: np.ndarray, size: int) -> np.ndarray:
    """Random points [NUM_POINTS, 3] in the cube about the origin that fills the nearest picture.

    Its half side is the distance of the nearest camera times the tangent of half the widest field
    of view. Always the same points for the same cameras.
    """
    distance = np.linalg.norm(c2w[:, :3, 3].astype(np.float64), axis=-1).min()
    half = distance * 0.5 * size / float(K[:, 0, 0].min())
    return np.random.default_rng(0).uniform(-half, half, (NUM_POINTS, 3))


def _write_ply(path: Path, points: np.ndarray) -> None:
    """Points as ASCII PLY with normals and a grey colour, as 3DGS and nerfstudio expect."""
    fields = [f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")]
    fields += [f"property uchar {name}" for name in ("red", "green", "blue")]
    header = ["ply", "format ascii 1.0", f"element vertex {len(points)}", *fields, "end_header"]
    rows = [f"{x:.6f} {y:.6f} {z:.6f} 0 0 0 128 128 128" for x, y, z in points.tolist()]
    path.write_text("\n".join([*header, *rows]) + "\n")


def _write_colmap(
    folder: Path, c2w: np.ndarray, K: np.ndarray, size: int, names: list[str], points: np.ndarray
) -> None:
    """A COLMAP text model: a PINHOLE camera for each distinct K; no picture sees a point."""
    folder.mkdir(parents=True)
    distinct, camera_of = np.unique(K[:, [0, 1, 0, 1], [0, 1, 2, 2]], axis=0, return_inverse=True)
    lines = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, fx, fy, cx, cy"]
    for number, lens in enumerate(distinct.tolist(), start=1):
        lines.append(f"{number} PINHOLE {size} {size} {_numbers(lens)}")
    (folder / "cameras.txt").write_text("\n".join(lines) + "\n")

    w2c = cameras.w2c_from_c2w(c2w.astype(np.float64))
    quaternions = Rotation.from_matrix(w2c[:, :3, :3]).as_quat(canonical=True)  # x, y, z, w
    lines = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME; below it, its 2D points"]
    for view, name in enumerate(names):
        pose = _numbers([*np.roll(quaternions[view], 1).tolist(), *w2c[view, :3, 3].tolist()])
        camera = int(camera_of.reshape(-1)[view]) + 1
        lines += [f"{view + 1} {pose} {camera} {name.removeprefix('images/')}", ""]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")

    lines = ["# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] (none: the points are random)"]
    for number, (x, y, z) in enumerate(points.tolist(), start=1):
        lines.append(f"{number} {x:.6f} {y:.6f} {z:.6f} 128 128 128 0")
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n")


def _numbers(values: list[float]) -> str:
    return " ".join(repr(value) for value in values)

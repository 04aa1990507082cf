"""Small COLMAP folders that show known points, written from the description of the format."""

import struct

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from escherjax import cameras

WIDTH, HEIGHT = 96, 72
POINTS = np.array([[0.35, 0.1, 0.0], [-0.1, 0.3, 0.25], [0.05, -0.2, -0.35]])
MODEL_IDS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "OPENCV": 4}
VIEWS = 4
# A world that stands askew, far off and large, as COLMAP's do.
TURN = Rotation.from_euler("xyz", [100, 20, 65], degrees=True).as_matrix()
SHIFT, SCALE = np.array([3.0, -2.0, 7.0]), 4.0


def upright_cameras():
    """c2w [V, 4, 4] of cameras around the origin, images upright along z."""
    azimuth = np.linspace(0, 5, VIEWS)
    return cameras.from_spherical(np.full(VIEWS, 1.1), azimuth, np.full(VIEWS, 1.7)).astype(float)


def askew(points):
    """Points of the upright world in the askew one."""
    return SCALE * points @ TURN.T + SHIFT


def askew_cameras():
    c2w = upright_cameras()
    c2w[:, :3, :3] = TURN @ c2w[:, :3, :3]
    c2w[:, :3, 3] = askew(c2w[:, :3, 3])
    return c2w


def paint(pixels):
    """Opaque [H, W, 4]: a red, a green and a blue blot, each centred on its pixel (u, v)."""
    v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    picture = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
    for channel, (x, y) in enumerate(pixels):
        picture[..., channel] = np.round(255 * np.exp(-((u - x) ** 2 + (v - y) ** 2) / 8))
    return picture


def project_simple_radial(camera_points, f, cx, cy, k):
    xy = camera_points[:, :2] / camera_points[:, 2:]
    return f * xy * (1 + k * (xy**2).sum(1, keepdims=True)) + [cx, cy]


def project_pinhole(camera_points, fx, fy, cx, cy):
    return camera_points[:, :2] / camera_points[:, 2:] * [fx, fy] + [cx, cy]


def picture_name(view):
    return f"photo-{view}.png" if view % 2 else f"left/photo-{view}.png"


def write_scene(folder, model, params, project, binary=True, name_of=picture_name):
    """One camera, VIEWS pictures of POINTS in the askew world; project(points in camera axes)."""
    w2c = np.linalg.inv(askew_cameras())
    (folder / "sparse" / "0").mkdir(parents=True)
    images = []
    for view in reversed(range(VIEWS)):  # the file's order is not the names'
        in_camera = askew(POINTS) @ w2c[view, :3, :3].T + w2c[view, :3, 3]
        path = folder / "images" / name_of(view)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(paint(project(in_camera))).save(path)
        x, y, z, w = Rotation.from_matrix(w2c[view, :3, :3]).as_quat()
        images.append((10 + view, (w, x, y, z, *w2c[view, :3, 3]), name_of(view)))
    write = _write_binary if binary else _write_text
    write(folder / "sparse" / "0", model, params, images)
    return folder


def _write_binary(folder, model, params, images):
    camera = struct.pack("<QIiQQ", 1, 7, MODEL_IDS[model], WIDTH, HEIGHT)
    (folder / "cameras.bin").write_bytes(camera + struct.pack(f"<{len(params)}d", *params))
    listed = struct.pack("<Q", len(images))
    for number, pose, name in images:
        listed += struct.pack("<I7dI", number, *pose, 7) + name.encode() + b"\0"
        listed += struct.pack("<Q2dq", 1, 5.0, 6.0, -1)  # one keypoint without a 3D point
    (folder / "images.bin").write_bytes(listed)
    (folder / "points3D.bin").write_bytes(struct.pack("<Q", 0))


def _write_text(folder, model, params, images):
    numbers = " ".join(repr(float(value)) for value in params)
    (folder / "cameras.txt").write_text(f"# cameras\n7 {model} {WIDTH} {HEIGHT} {numbers}\n")
    lines = ["# images"]
    for number, pose, name in images:
        lines += [f"{number} {' '.join(repr(float(p)) for p in pose)} 7 {name}", "5.0 6.0 -1"]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    (folder / "points3D.txt").write_text("")

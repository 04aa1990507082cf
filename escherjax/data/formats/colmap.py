"""Reads COLMAP models: cameras and poses by pycolmap, pictures undistorted by it.

A scene is a folder with pictures in `images/` and a model (`cameras`, `images`, as .bin or .txt)
in `sparse/0`, `sparse` or `colmap/sparse/0`. Where COLMAP made several models (`sparse/1`, ...),
the one with the most pictures counts. COLMAP stores world-to-camera with OpenCV axes, and pixel
centres at half-integers, as escherjax does; its world has any origin, orientation and scale.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.data import images
from escherjax.data.formats import colmap_text
from escherjax.data.formats.colmap_text import model_suffix
from escherjax.data.formats.findings import Findings
from escherjax.data.formats.pictures import find_pictures, pictures_below
from escherjax.errors import UserError, for_each, listed

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0")
PINHOLE_MODELS = ("SIMPLE_PINHOLE", "PINHOLE")
# COLMAP's 3D points are not needed; these are files that hold none.
NO_POINTS = {".bin": bytes(8), ".txt": b""}
# Widths and heights of picture and camera may differ by a scale, up to rounding of small pictures.
SHAPE_TOLERANCE = 0.02


def find_model(folder: Path, names: tuple[str, ...] = MODEL_FOLDERS) -> Path | None:
    """The first of the folders `names` below `folder` that holds a COLMAP model, or None.

    A name that ends in a number stands for every number: a model is found where `sparse/0` is
    missing and `sparse/1` is there.
    """
    return next(iter(_models(folder, names)), None)


def largest_model(
    folder: Path, findings: Findings, names: tuple[str, ...] = MODEL_FOLDERS
) -> Path | None:
    """As `find_model`, the model with the most pictures of all; several are noted in findings."""
    models = {model: colmap_text.count_images(model) for model in _models(folder, names)}
    if not models:
        return None
    largest = max(models, key=lambda model: models[model])  # of equal ones the first
    if len(models) > 1:
        listing = ", ".join(f"{m.relative_to(folder)} ({n} pictures)" for m, n in models.items())
        findings.remarks.append(
            f"{len(models)} COLMAP models: {listing}; {largest.relative_to(folder)} was read. "
            "To choose another, use data_prep.colmap --model FOLDER, or move the others away."
        )
    return largest


def _models(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Every folder that the names stand for and that holds a model, in order, each once."""
    found: dict[Path, None] = {}
    for name in names:
        path = folder / name
        numbered = [path]
        if path.name == "0" and path.parent.is_dir():
            others = [p for p in path.parent.iterdir() if p.name.isdecimal() and p.name != "0"]
            numbered += sorted(others, key=lambda p: int(p.name))
        found |= dict.fromkeys(p for p in numbered if model_suffix(p))
    return list(found)


def read_views(
    model: Path, pictures: Path, masks: Path | None = None, findings: Findings | None = None
) -> list[images.View]:
    """The registered views of a model, sorted by picture name.

    All pictures of a scene get one size and square pixels: where cameras differ, the central part
    that all have.

    Args:
        model: folder of the model.
        pictures: folder that the model's picture names are relative to. They may be of another size
            than the model's cameras (`images_4/`), of the same shape.
        masks: folder with NAME.png or NAME.jpg.png for each picture NAME.jpg, non-zero on the
            object; it becomes alpha.
        findings: takes note of missing pictures, whose views are returned too, of pictures that
            the model does not have, and of pictures that were found elsewhere than it says;
            without it a missing picture is an error.

    Returns:
        The views, with c2w [4, 4] float64 in the model's own world.

    Raises:
        UserError: Names every problem: damaged model, missing pictures or masks, pictures of other
            shapes than their cameras', cameras that are not perspective.
    """
    registered = _read_model(model)
    if not registered:
        raise UserError(f"{model} has no registered picture.")
    names = [name for name, _ in registered]
    paths = _find_pictures(model, pictures, names, findings)
    pinholes: dict[tuple[int, tuple[int, int]], _PinholeCamera] = {}

    def find_view(
        found: tuple[str, Any, Path | None],
    ) -> tuple[Path, np.ndarray, _PinholeCamera | None, Path | None]:
        name, image, path = found
        if path is None:
            return pictures / name, _c2w(image), None, None
        mask = find_mask(masks, name) if masks else None
        size = images.picture_size(path, str(path))
        key = (image.camera_id, size)
        if key not in pinholes:
            pinholes[key] = _PinholeCamera(image.camera, size, f"{model}: {name}")
        return path, _c2w(image), pinholes[key], mask

    rows = [(name, image, path) for (name, image), path in zip(registered, paths, strict=True)]
    found = for_each(find_view, rows)
    sizes = sorted({size for _, size in pinholes})
    if len(sizes) > 1:
        raise UserError(f"{pictures} mixes picture sizes (height, width) {sizes}; it must be one.")
    height = min((camera.height for camera in pinholes.values()), default=0)
    width = min((camera.width for camera in pinholes.values()), default=0)
    return [
        images.View(path, c2w, functools.partial(camera.apply, height, width, mask))
        if camera
        else images.View(path, c2w, _no_picture)
        for path, c2w, camera, mask in found
    ]


def _find_pictures(
    model: Path, pictures: Path, names: list[str], findings: Findings | None
) -> list[Path | None]:
    """Where the pictures of a model lie; None for those that are missing, if findings are kept."""
    root = pictures if pictures.is_dir() else pictures.parent
    try:
        paths, remarks = find_pictures(root, names, inside=True)
    except UserError as error:
        raise UserError(f"{model}: {error}") from error
    missing = {}
    for place, (name, path) in enumerate(zip(names, paths, strict=True)):
        parts = PurePosixPath(name)
        if path is None and (parts.is_absolute() or ".." in parts.parts):
            missing[place] = f"picture name '{name}' leads out of {pictures}."
        elif path is None:
            missing[place] = f"{pictures / name} not found."
    if findings is None:
        if missing:
            raise UserError(listed(list(missing.values())))
        return paths
    findings.missing |= missing
    findings.left_out |= {names[place]: "picture not found" for place in missing}
    findings.remarks += remarks
    if root == pictures:
        used = {os.path.realpath(path) for path in paths if path is not None}
        findings.left_out |= {
            path.relative_to(pictures).as_posix(): "not in the COLMAP model"
            for path in pictures_below(pictures)
            if os.path.realpath(path) not in used
        }
    return paths


def _no_picture(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    raise AssertionError("a view whose picture is missing has no lens")


class _PinholeCamera:
    """Undistorts pictures of one COLMAP camera to a pinhole of square pixels.

    height, width: of the pictures that `apply` cuts from.
    """

    def __init__(self, camera: Any, size: tuple[int, int], name: str):
        pycolmap = load_pycolmap()
        height, width = size
        if not (camera.width > 0 and camera.height > 0):
            raise UserError(
                f"{name} has camera {camera.camera_id} of {camera.width} x {camera.height} pixels; "
                "it must have the size of its pictures. Mend cameras.txt or cameras.bin."
            )
        if abs(width / height / (camera.width / camera.height) - 1) > SHAPE_TOLERANCE:
            raise UserError(
                f"{name} has {width} x {height} pixels, its camera {camera.width} x "
                f"{camera.height}: another shape. Turn or resize the picture."
            )
        if not camera.is_perspective():
            raise UserError(
                f"{name} has a camera of model {camera.model_name}, which no pinhole camera can "
                "stand for; it must be a perspective or fisheye model."
            )
        if not np.isfinite(camera.params).all() or not camera.mean_focal_length() > 0:
            raise UserError(f"{name} has a camera with parameters {camera.params.tolist()}.")
        self._camera = pycolmap.Camera(camera.todict())
        if size != (camera.height, camera.width):
            self._camera.rescale(width, height)
        self._is_pinhole = camera.model_name in PINHOLE_MODELS
        pinhole = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), self._camera)
        K = pinhole.calibration_matrix()
        # Square pixels, to the nearest whole size; the denser axis shrinks.
        aspect = K[0, 0] / K[1, 1]
        self.width = round(pinhole.width / max(aspect, 1.0))
        self.height = round(pinhole.height * min(aspect, 1.0))
        if not (self.width and self.height):
            raise UserError(
                f"{name} has a camera with parameters {camera.params.tolist()}, whose pixels are "
                f"{aspect:.3g} times as high as wide; they must be nearly square."
            )
        scale_x, scale_y = self.width / pinhole.width, self.height / pinhole.height
        self._K = cameras.resize_intrinsics(K, scale_x, scale_y)

    def apply(
        self, height: int, width: int, mask: Path | None, picture: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(central [height, width] part of the undistorted picture, its K)."""
        if mask is not None:
            picture = np.dstack([picture[..., :3], _read_mask(mask, picture.shape[:2])])
        if not self._is_pinhole:
            picture = self._undistort(picture)
        picture = images.resize_image(picture, self.height, self.width)
        top, left = (self.height - height) // 2, (self.width - width) // 2
        if (self.height, self.width) != (height, width):
            picture = picture[top : top + height, left : left + width]
        return picture, cameras.crop_intrinsics(self._K, left, top)

    def _undistort(self, picture: np.ndarray) -> np.ndarray:
        pycolmap = load_pycolmap()
        options = pycolmap.UndistortCameraOptions()
        planes = [picture[..., :3], *np.moveaxis(picture[..., 3:], -1, 0)]  # colours, any alpha
        bitmaps = [pycolmap.Bitmap.from_array(np.ascontiguousarray(plane)) for plane in planes]
        done = [pycolmap.undistort_image(options, bitmap, self._camera)[0] for bitmap in bitmaps]
        return np.dstack([bitmap.to_array() for bitmap in done])


def load_pycolmap() -> Any:
    """The pycolmap module; raises UserError saying how to install it where it is missing."""
    try:
        import pycolmap
    except ImportError as error:
        raise UserError("COLMAP models need pycolmap: pip install 'escherjax[prep]'.") from error
    return pycolmap


def _read_model(model: Path) -> list[tuple[str, Any]]:
    """(name, pycolmap's Image) of each registered picture, sorted; 3D points are not read.

    Poses stand in `images` alone, and pycolmap ends the whole process on damaged points.
    """
    pycolmap = load_pycolmap()
    suffix = model_suffix(model)
    if suffix is None:
        raise UserError(
            f"{model} holds no COLMAP model; expected cameras and images, both .bin or both .txt."
        )
    with tempfile.TemporaryDirectory() as temporary:
        names = {}
        if suffix == ".txt":
            names = colmap_text.copy_model(model, Path(temporary))
        else:
            for name in ("cameras.bin", "images.bin"):
                (Path(temporary) / name).symlink_to((model / name).resolve())
        (Path(temporary) / f"points3D{suffix}").write_bytes(NO_POINTS[suffix])
        try:
            reconstruction = pycolmap.Reconstruction(temporary)
            expected = _binary_sizes(reconstruction)
        except (ValueError, IndexError, MemoryError, RuntimeError) as error:
            raise UserError(
                f"{model} is not a whole COLMAP model ({type(error).__name__}); copy it again or "
                "export it anew."
            ) from error
    for name, size in expected.items() if suffix == ".bin" else ():
        actual = (model / f"{name}.bin").stat().st_size
        if actual != size:
            raise UserError(
                f"{model / name}.bin has {actual} bytes, but its list takes {size}. Copy it again."
            )
    listed_images = reconstruction.images.values()
    if names and len(listed_images) != len(names):
        raise UserError(
            f"{model}/images.txt lists {len(names)} pictures, of which {len(listed_images)} could "
            "be read. Export it anew."
        )
    return sorted(
        ((names.get(i.image_id, i.name), i) for i in listed_images if i.has_pose),
        key=lambda pair: pair[0],
    )


def _binary_sizes(reconstruction: Any) -> dict[str, int]:
    """Bytes that COLMAP's binary files take; pycolmap does not notice where one ends early."""
    listed = reconstruction.images.values()
    return {
        "cameras": 8 + sum(24 + 8 * len(c.params) for c in reconstruction.cameras.values()),
        "images": 8 + sum(73 + len(i.name.encode()) + 24 * i.num_points2D() for i in listed),
    }


def _c2w(image: Any) -> np.ndarray:
    return cameras.c2w_from_w2c(image.cam_from_world().matrix().astype(np.float64))


def find_mask(folder: Path, name: str) -> Path:
    """The mask of picture `name` in a folder of masks: NAME.jpg.png or NAME.png."""
    for candidate in (f"{name}.png", f"{os.path.splitext(name)[0]}.png"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise UserError(f"{folder} has no mask for {name} ({name}.png or with .png instead).")


def _read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Alpha [H, W]: 255 where the mask has any colour, 0 elsewhere."""
    picture = images.decode_image(path.read_bytes(), str(path))
    if picture.shape[:2] != size:
        raise UserError(
            f"mask {path} has (height, width) {picture.shape[:2]}, its picture {size}; they must "
            "be equal."
        )
    return np.where(picture[..., :3].any(-1), np.uint8(255), np.uint8(0))

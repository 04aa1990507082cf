"""Pictures of scenes and photos, decoded and cut out of their backgrounds, with what was done.

They are not framed yet: see `escherjax.data.framing`, and `escherjax.data.inputs`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from escherjax import cameras
from escherjax.data import images, windows
from escherjax.data.formats import colmap, folders
from escherjax.data.matting import Matting, open_matting
from escherjax.errors import UserError

# A file, encoded bytes, uint8 [H, W, 3 or 4], or a PIL image (Any: PIL is not imported for a type).
Photo = str | Path | bytes | np.ndarray | Any


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded picture.

    name: for messages. pixels: uint8 [H, W, 3], or [H, W, 4] with straight alpha. K: [3, 3] of it,
    None where unknown. steps: what was done to it, in words.
    """

    name: str
    pixels: np.ndarray
    K: np.ndarray | None = None
    steps: tuple[str, ...] = ()


class Cutouts:
    """Gives opaque pictures the alpha that masks or a matting model say.

    masks: a file for each picture, or one folder with NAME.png or NAME.jpg.png for each NAME.jpg.
    matting: what `open_matting` takes; the model is opened when first needed. Raises UserError if
    both are given.
    """

    def __init__(self, masks: Sequence[str | Path] = (), matting: str | None = None):
        if len(masks) and matting is not None:
            raise UserError("masks and a matting model are given; choose one.")
        self._masks, self._matting = [Path(mask) for mask in masks], matting
        self._find_alpha: Matting | None = None

    def check_count(self, count: int) -> None:
        """Raises UserError unless there is a folder, or as many masks as pictures."""
        if self._masks and not self._is_folder and len(self._masks) != count:
            raise UserError(
                f"{len(self._masks)} masks for {count} pictures; needed one for each in their "
                "order, or a folder."
            )

    @property
    def _is_folder(self) -> bool:
        return len(self._masks) == 1 and self._masks[0].is_dir()

    def cut(self, picture: Picture, index: int, file_name: str) -> Picture:
        """The picture with its alpha; UserError if none of it is an object."""
        if self._masks:
            path = (
                colmap.find_mask(self._masks[0], file_name)
                if self._is_folder
                else self._masks[index]
            )
            picture = _with_alpha(picture, _read_mask(path, picture), f"background by {path.name}")
        elif self._matting is not None:
            if windows.has_alpha(picture.pixels):
                return dataclasses.replace(
                    picture, steps=(*picture.steps, "transparent already, matting left out")
                )
            self._find_alpha = self._find_alpha or open_matting(self._matting)
            alpha = self._find_alpha(np.ascontiguousarray(picture.pixels[..., :3]))
            picture = _with_alpha(picture, alpha, f"background by {self._matting.split(':')[0]}")
        if windows.has_alpha(picture.pixels) and windows.object_box(picture.pixels) is None:
            raise UserError(
                f"{picture.name} is transparent everywhere"
                + (f" ({picture.steps[-1]})" if picture.steps else "")
                + "; needed a picture with an object."
            )
        return picture


def scene_views(folder: Path, cutouts: Cutouts) -> tuple[np.ndarray, Callable[[int], Picture]]:
    """(c2w [V, 4, 4], what reads the picture of a view) of a scene folder.

    Lens distortion is undone; pixels are as stored, which is what cameras in files refer to.
    """
    views, _ = folders.find_views(folder)
    c2w = np.stack([pose for _, pose, _ in views])
    cameras.check_poses(c2w, str(folder))
    cutouts.check_count(len(views))

    def read(index: int) -> Picture:
        path, _, pinhole = views[index]
        name = path.relative_to(folder) if path.is_relative_to(folder) else path
        stored = Picture(str(name), folders.read_picture(path)[1])
        picture = cutouts.cut(stored, index, path.name)
        pixels, K = pinhole(picture.pixels)
        if not (np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0):
            raise UserError(
                f"{path} has intrinsics {K.tolist()}; needed finite numbers and positive focal "
                "lengths."
            )
        steps = picture.steps
        if pixels is not picture.pixels:
            steps = (*steps, "lens distortion undone")
        return Picture(picture.name, pixels, K, steps)

    return c2w, read


def photo_views(
    photos: Sequence[Photo], cutouts: Cutouts
) -> tuple[list[str], Callable[[int], Picture]]:
    """(names of photos, what reads one, upright and without intrinsics)."""
    names = [
        str(photo) if isinstance(photo, (str, Path)) else f"picture {number}"
        for number, photo in enumerate(photos)
    ]
    cutouts.check_count(len(photos))

    def read(index: int) -> Picture:
        pixels, orientation = _decoded(photos[index], names[index])
        steps = () if orientation == 1 else (f"turned upright (EXIF orientation {orientation})",)
        upright = images.turn_upright(pixels, orientation)
        name = Path(names[index]).name
        return cutouts.cut(Picture(name, upright, None, steps), index, name)

    return names, read


def photos_in(folder: Path) -> list[Path]:
    """The picture files of a folder in order of their names, hidden ones left out."""
    return sorted(
        folder / name
        for name in os.listdir(folder)
        if name.lower().endswith(images.IMAGE_SUFFIXES) and not name.startswith(".")
    )


def _decoded(photo: Photo, name: str) -> tuple[np.ndarray, int]:
    """(uint8 [H, W, 3 or 4], EXIF orientation)."""
    if isinstance(photo, (str, Path)):
        try:
            photo = Path(photo).read_bytes()
        except OSError as error:
            raise UserError(f"{name} cannot be read ({error}).") from error
    if isinstance(photo, bytes):
        return images.decode_tagged(photo, name)
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[-1] not in (3, 4):
            raise UserError(
                f"{name} is an array {photo.dtype} {photo.shape}; needed uint8 [H, W, 3] or "
                "[H, W, 4]."
            )
        if 0 in photo.shape:
            raise UserError(f"{name} has {photo.shape[:2]} pixels; needed one at least.")
        return photo, 1
    if not isinstance(photo, Image.Image):
        raise UserError(
            f"{name} is of type {type(photo).__name__}; needed a file, bytes, a uint8 array or a "
            "PIL image."
        )
    try:
        reason = images.refusal(photo)
        if reason:
            raise UserError(f"{name} {reason}")
        mode = "RGBA" if photo.has_transparency_data else "RGB"
        return np.asarray(photo.convert(mode)), images.orientation_of(photo)
    except (OSError, SyntaxError, ValueError) as error:  # a file that was opened but not read
        raise UserError(f"{name} cannot be decoded ({error}); needed a whole picture.") from error


def _with_alpha(picture: Picture, alpha: np.ndarray, step: str) -> Picture:
    pixels = np.dstack([picture.pixels[..., :3], alpha])
    return dataclasses.replace(picture, pixels=pixels, steps=(*picture.steps, step))


def _read_mask(path: Path, picture: Picture) -> np.ndarray:
    """Alpha uint8 [H, W]: the mask's own alpha, or its brightness; masks of 0 and 1 are labels."""
    pixels, orientation = _decoded(path, f"mask {path}")
    pixels = images.turn_upright(pixels, orientation)
    if pixels.shape[:2] != picture.pixels.shape[:2]:
        raise UserError(
            f"mask {path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, {picture.name} "
            f"{picture.pixels.shape[1]} x {picture.pixels.shape[0]}; needed the same."
        )
    alpha = pixels[..., 3] if windows.has_alpha(pixels) else pixels[..., :3].max(-1)
    return np.where(alpha > 0, np.uint8(255), np.uint8(0)) if alpha.max() <= 1 else alpha

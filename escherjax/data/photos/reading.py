"""Decodes the pictures of scenes and photos and cuts them out of their backgrounds.

They are not framed yet: see `framing`, and `escherjax.data.inputs`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.data import images
from escherjax.data.formats import colmap, folders
from escherjax.data.formats.findings import Findings
from escherjax.data.images import Photo
from escherjax.data.photos import windows
from escherjax.data.photos.matting import Matting, open_matting
from escherjax.errors import UserError, listed


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded picture."""

    name: str  # for messages
    pixels: np.ndarray  # uint8 [H, W, 3], or [H, W, 4] with straight alpha
    K: np.ndarray | None = None  # [3, 3] intrinsics, None where unknown
    steps: tuple[str, ...] = ()  # what was done to it, in words

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def after(self, step: str, **changes: Any) -> Picture:
        """The picture after one more step, with changed fields."""
        return dataclasses.replace(self, steps=(*self.steps, step), **changes)


class Cutouts:
    """Gives opaque pictures the alpha of masks or of a matting model.

    Args:
        masks: a file for each picture, or one folder with NAME.png or NAME.jpg.png for each
            NAME.jpg.
        matting: see `open_matting`; the model is opened when first needed.

    Raises:
        UserError: Both are given.
    """

    def __init__(self, masks: Sequence[str | Path] = (), matting: str | None = None):
        if len(masks) and matting is not None:
            raise UserError("masks and a matting model are given; choose one.")
        self._masks, self._matting = [Path(mask) for mask in masks], matting
        self._folder = self._masks[0] if len(masks) == 1 and self._masks[0].is_dir() else None
        self._find_alpha: Matting | None = None

    def check_count(self, count: int) -> None:
        """Raises UserError unless there is a folder, or as many masks as pictures."""
        if self._masks and self._folder is None and len(self._masks) != count:
            raise UserError(
                f"{len(self._masks)} masks for {count} pictures; give one for each in their "
                "order, or a folder."
            )

    def cut(self, picture: Picture, index: int, file_name: str) -> Picture:
        """The picture with its alpha; UserError if none of it is an object."""
        if self._masks:
            path = colmap.find_mask(self._folder, file_name) if self._folder else self._masks[index]
            picture = _with_alpha(picture, _read_mask(path, picture), path.name)
        elif self._matting is not None and windows.has_alpha(picture.pixels):
            return picture.after("transparent already, matting left out")
        elif self._matting is not None:
            self._find_alpha = self._find_alpha or open_matting(self._matting)
            alpha = self._find_alpha(np.ascontiguousarray(picture.pixels[..., :3]))
            picture = _with_alpha(picture, alpha, self._matting.split(":")[0])
        if windows.has_alpha(picture.pixels) and windows.object_box(picture.pixels) is None:
            cause = f" ({picture.steps[-1]})" if picture.steps else ""
            raise UserError(f"{picture.name} is transparent everywhere{cause}; no object is left.")
        return picture


def scene_views(
    folder: Path, cutouts: Cutouts
) -> tuple[np.ndarray, Callable[[int], Picture], Findings]:
    """Opens a scene folder: lens distortion is undone, pixels are as stored, as its cameras say.

    Returns (c2w [V, 4, 4]; a function that reads the picture of a view, with a UserError where that
    is missing; which are missing, and what was found elsewhere than the scene's file says).
    """
    findings = Findings()
    views, _ = folders.find_views(folder, findings=findings)
    if len(findings.missing) == len(views):
        raise UserError(listed(list(findings.missing.values())))
    c2w = np.stack([view.c2w for view in views])
    cameras.check_poses(c2w, str(folder))
    cutouts.check_count(len(views))

    def read(index: int) -> Picture:
        if index in findings.missing:
            raise UserError(f"view {index} has no picture: {findings.missing[index]}")
        path, _, pinhole = views[index]
        name = path.relative_to(folder) if path.is_relative_to(folder) else path
        stored = Picture(str(name), folders.read_picture(path)[1])
        return with_lens(cutouts.cut(stored, index, path.name), pinhole)

    return c2w, read, findings


def with_lens(picture: Picture, pinhole: images.Pinhole) -> Picture:
    """The picture with its intrinsics, lens distortion undone. UserError for bad intrinsics."""
    pixels, K = pinhole(picture.pixels)
    if cameras.intrinsics_faults(K[None]):
        raise UserError(
            f"{picture.name}: intrinsics must be finite with positive focal lengths, got "
            f"{K.tolist()}."
        )
    if pixels is picture.pixels:
        return dataclasses.replace(picture, K=K)
    return picture.after("lens distortion undone", pixels=pixels, K=K)


def photo_views(
    photos: Sequence[Photo], cutouts: Cutouts
) -> tuple[list[str], Callable[[int], Picture]]:
    """(names of photos, function that reads one, upright and without intrinsics)."""
    names = [
        str(photo) if isinstance(photo, (str, Path)) else f"picture {number}"
        for number, photo in enumerate(photos)
    ]
    cutouts.check_count(len(photos))

    def read(index: int) -> Picture:
        pixels, orientation = images.load_picture(photos[index], names[index])
        picture = Picture(Path(names[index]).name, pixels)
        if orientation != 1:
            picture = picture.after(f"turned upright (EXIF orientation {orientation})")
        return cutouts.cut(picture, index, picture.name)

    return names, read


def photos_in(folder: Path) -> list[Path]:
    """The picture files of a folder in order of their names, hidden ones left out."""
    return sorted(
        folder / name
        for name in os.listdir(folder)
        if name.lower().endswith(images.IMAGE_SUFFIXES) and not name.startswith(".")
    )


def _with_alpha(picture: Picture, alpha: np.ndarray, origin: str) -> Picture:
    pixels = np.dstack([picture.pixels[..., :3], alpha])
    return picture.after(f"background by {origin}", pixels=pixels)


def _read_mask(path: Path, picture: Picture) -> np.ndarray:
    """Alpha uint8 [H, W]: the mask's own alpha, or its brightness; masks of 0 and 1 are labels."""
    pixels, _ = images.load_picture(path, f"mask {path}")
    if pixels.shape[:2] != picture.size:
        height, width = picture.size
        raise UserError(
            f"mask {path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, {picture.name} "
            f"{width} x {height}; they must be equal."
        )
    alpha = pixels[..., 3] if windows.has_alpha(pixels) else pixels[..., :3].max(-1)
    return np.where(alpha > 0, np.uint8(255), np.uint8(0)) if alpha.max() <= 1 else alpha

"""Visitors' pictures, read from bytes under limits and framed as training views are; an example."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from escherjax.data import images, procedural
from escherjax.data.formats import lenses
from escherjax.data.inputs import InputViews, Note
from escherjax.data.photos.reading import Picture, with_lens
from escherjax.demo.limits import Limits
from escherjax.errors import UserError
from escherjax.reports.sheets import to_uint8

_KEPT_PIXELS = 1536  # longer side that is kept of a larger picture
_EXAMPLE_SEED = 5  # its scene 0 is the one that configs/demo.py learns
_EXAMPLE_VIEWS, _EXAMPLE_SHOWN = 9, 3


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """A decoded picture of a visitor."""

    pixels: np.ndarray  # uint8 [H, W, 3 or 4], as stored in the file
    orientation: int  # EXIF's, 1 to 8
    size: tuple[int, int]  # (height, width) in the file; `pixels` may be a smaller version
    lens: dict[str, Any] | None = None  # intrinsics, as fields of a transforms.json, where known


def read_photo(label: str, data: bytes, limits: Limits) -> Photo:
    """Decodes a file; raises UserError, which begins with the label, if it breaks a limit."""
    if len(data) > limits.upload_bytes:
        raise UserError(
            f"{label} must have at most {limits.upload_bytes / 2**20:.1f} MB, got "
            f"{len(data) / 2**20:.1f} MB. Shrink it first."
        )
    height, width = images.picture_size(data, label)
    if height * width > limits.picture_pixels:
        raise UserError(
            f"{label} must have at most {limits.picture_pixels / 1e6:.1f} million pixels, got "
            f"{width} x {height} pixels. Shrink it first."
        )
    pixels, orientation = images.decode_tagged(data, label)
    if pixels.shape[-1] == 4 and pixels[..., 3].max() == 0:
        raise UserError(f"{label} must show an object, but it is transparent everywhere.")
    shrink = _KEPT_PIXELS / max(height, width)
    if shrink < 1:
        pixels = images.resize_image(pixels, round(height * shrink), round(width * shrink))
    return Photo(pixels, orientation, (height, width))


def frame_photos(
    photos: Sequence[tuple[str, Photo, np.ndarray]], resolution: int, fov_deg: float
) -> list[tuple[np.ndarray, tuple[Note, ...]]]:
    """Frames photos of one object together, as `InputViews.fit` does.

    photos: (label, photo, c2w [4, 4]). Returns (uint8 [R, R, 3], notes) of each. Raises UserError
    if one cannot be used.
    """
    if not photos:
        return []
    pictures = [_upright(label, photo) for label, photo, _ in photos]
    c2w = np.stack([pose for _, _, pose in photos])
    views = InputViews(c2w, np.arange(len(photos)), dict(enumerate(pictures)), pictures.__getitem__)
    fitted = views.fit(resolution, fov_deg)
    notes: list[list[Note]] = []
    for note in fitted.notes:  # of each picture one line, then its warnings
        if note.is_warning:
            notes[-1].append(note)
        else:
            notes.append([note])
    return list(zip(to_uint8(fitted.images), map(tuple, notes), strict=True))


def _upright(label: str, photo: Photo) -> Picture:
    """With a lens, pixels stay as stored: that is what cameras in files refer to."""
    if photo.lens is None:
        return Picture(label, images.turn_upright(photo.pixels, photo.orientation))
    height, width = photo.size
    pinhole = lenses.pinhole_intrinsics({"w": width, "h": height, **photo.lens}, label)
    return with_lens(Picture(label, photo.pixels), pinhole)


def example_views(resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Renders an example: (pictures uint8 [3, R, R, 3] on white, c2w float32 [3, 4, 4])."""
    scene = procedural.render_scenes(_EXAMPLE_SEED, [0], _EXAMPLE_VIEWS, resolution)
    pictures = images.on_background(scene["images"][0, :_EXAMPLE_SHOWN], images.WHITE)
    return pictures, scene["c2w"][0, :_EXAMPLE_SHOWN]

"""Chooses the window of each picture that a network is shown, and says what that changes.

Of a picture with intrinsics it is the one with the training field of view; of a photo of an object
without them, the one in which the object is as large as in training views.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from escherjax import cameras
from escherjax.cameras import PUBLISHED_FOV_DEG
from escherjax.data.photos import windows
from escherjax.data.photos.reading import Picture
from escherjax.data.photos.windows import Box, Window
from escherjax.errors import UserError

_SAME = 0.02  # of a window's side: differences up to this are worth no warning


@dataclasses.dataclass(frozen=True)
class Frame:
    """What is shown of a picture."""

    window: Window
    K: np.ndarray  # [3, 3] in the picture's pixels
    step: str  # what was done, in words
    warnings: tuple[str, ...] = ()  # what may be wrong with it


def frame_pictures(
    pictures: Sequence[Picture], radii: Sequence[float], fov_deg: float | None, recenter: bool
) -> list[Frame]:
    """The frame of each picture, as `escherjax.data.inputs.InputViews.fit` describes it.

    radii: distance of each camera from the object. Raises UserError for a photo that is all white.
    """
    known_fov = PUBLISHED_FOV_DEG if fov_deg is None else fov_deg
    boxes = {
        row: _photo_box(picture)
        for row, picture in enumerate(pictures)
        if recenter and picture.K is None and windows.has_clear_background(picture.pixels)
    }
    centred = windows.object_windows(
        list(boxes.values()),
        [pictures[row].size for row in boxes],
        [radii[row] for row in boxes],
        known_fov,
    )
    frames = {}
    for (row, box), window in zip(boxes.items(), centred, strict=True):
        step = f"object centred, its box made {box.longer / window.width:.0%} of the frame"
        frames[row] = _assumed(window, known_fov, step, _cut_object(pictures[row], window))
    return [
        frames[row]
        if row in frames
        else _without_object(picture, known_fov)
        if picture.K is None
        else _match_fov(picture, picture.K, fov_deg)
        for row, picture in enumerate(pictures)
    ]


def _match_fov(picture: Picture, K: np.ndarray, fov_deg: float | None) -> Frame:
    """A picture with intrinsics, shown with the field of view asked for where that is possible."""
    height, width = picture.size
    square = windows.central_square(height, width)
    own = windows.fov_deg_of(K[0, 0], square.width)
    cut = "" if height == width else "cut to the central square; "
    if fov_deg is None:
        return Frame(square, K, f"{cut}field of view {own:.1f} degrees kept, none asked for")
    window = windows.fov_window(K, fov_deg)
    if _differences(window, square) < 1e-6:
        return Frame(square, K, f"{cut}field of view {own:.1f} degrees as in training")
    change = f"field of view {own:.1f} degrees made {fov_deg:.1f}"
    if windows.has_clear_background(picture.pixels):
        how = "cut" if window.inside(height, width) else "padded with white"
        return Frame(window, K, f"{change}, {how}", _cut_object(picture, window))
    moved = windows.moved_inside(window, height, width)
    if moved is not None:
        return Frame(moved, K, f"{change}, cut")
    step = f"{cut}field of view {own:.1f} degrees kept"
    if _differences(window, square) <= _SAME:
        return Frame(square, K, step)
    warning = (
        f"has a field of view of {own:.1f} degrees and the network was trained with {fov_deg:.1f}; "
        "white can be added only around an object before white or nothing. Give masks or a matting "
        "model, if it shows one."
    )
    return Frame(square, K, step, (warning,))


def _without_object(picture: Picture, fov_deg: float) -> Frame:
    """A photo without intrinsics that is not moved, shown as if it had this field of view."""
    height, width = picture.size
    step = "field of view taken to be that of training"
    if windows.has_clear_background(picture.pixels):
        padded = "" if height == width else "padded with white to a square; "
        return _assumed(windows.enclosing_square(height, width), fov_deg, padded + step)
    warning = (
        "has a background that is neither white nor transparent; the published networks know "
        "objects before white. Remove it with a matting model or a mask."
    )
    cut = "" if height == width else "cut to the central square; "
    return _assumed(windows.central_square(height, width), fov_deg, cut + step, (warning,))


def _assumed(window: Window, fov_deg: float, step: str, warnings: tuple[str, ...] = ()) -> Frame:
    """A window taken to be a training view: K of such a view in its middle."""
    K = cameras.intrinsics_from_fov(np.radians(fov_deg), window.width, window.height)
    return Frame(window, cameras.crop_intrinsics(K, -window.left, -window.top), step, warnings)


def _cut_object(picture: Picture, window: Window) -> tuple[str, ...]:
    """A warning about an object that is not whole in a window."""
    box = windows.object_box(picture.pixels)
    if box is None:
        return ()
    if not window.holds(box):
        return ("shows an object that the training field of view cuts off.",)
    height, width = picture.size
    ends = zip(Box._fields, box, (0, 0, width, height), strict=True)
    touched = [side for side, edge, end in ends if edge == end]
    if touched and not window.inside(height, width):
        return (f"shows an object that ends at its {', '.join(touched)} edge; white follows it.",)
    return ()


def _differences(a: Window, b: Window) -> float:
    """The largest distance of their edges, in sides of the second."""
    return float(np.abs(a.edges - b.edges).max() / b.width)


def _photo_box(picture: Picture) -> Box:
    box = windows.object_box(picture.pixels)
    if box is None:
        raise UserError(f"{picture.name} is white everywhere; it must show an object.")
    return box

"""Which window of each picture a network is shown, and what there is to say about it.

Of a picture with intrinsics it is the one with the training field of view; of a photo of an object
without them, the one in which the object is as large as in training views.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from escherjax import cameras
from escherjax.cameras import PUBLISHED_FOV_DEG
from escherjax.data import windows
from escherjax.data.photos import Picture
from escherjax.data.windows import Window
from escherjax.errors import UserError

_SAME = 0.02  # of a window's side: differences up to this are worth no warning


@dataclasses.dataclass(frozen=True)
class Frame:
    """What is shown of a picture: a window, K [3, 3] in the picture's pixels, words about it."""

    window: Window
    K: np.ndarray
    step: str
    warnings: tuple[str, ...] = ()


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
    sizes = [pictures[row].pixels.shape[:2] for row in boxes]
    centred = windows.object_windows(
        list(boxes.values()), sizes, [radii[row] for row in boxes], known_fov
    )
    window_of = dict(zip(boxes, centred, strict=True))
    frames = []
    for row, picture in enumerate(pictures):
        if picture.K is not None:
            frames.append(_match_fov(picture, picture.K, fov_deg))
        elif row in window_of:
            left, top, right, bottom = boxes[row]
            window = window_of[row]
            share = max(right - left, bottom - top) / window.width
            step = f"object centred, its box made {share:.0%} of the frame"
            frames.append(_assumed(window, known_fov, step, _cut_object(picture, window)))
        else:
            frames.append(_without_object(picture, known_fov))
    return frames


def _match_fov(picture: Picture, K: np.ndarray, fov_deg: float | None) -> Frame:
    """A picture with intrinsics, shown with the field of view asked for where that is possible."""
    height, width = picture.pixels.shape[:2]
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
    warnings: tuple[str, ...] = ()
    if _differences(window, square) > _SAME:
        warnings = (
            f"has a field of view of {own:.1f} degrees and the network was trained with "
            f"{fov_deg:.1f}; white can be added only around an object before white or nothing. "
            "Give masks or a matting model, if it shows one.",
        )
    return Frame(square, K, f"{cut}field of view {own:.1f} degrees kept", warnings)


def _without_object(picture: Picture, fov_deg: float) -> Frame:
    """A photo without intrinsics that is not moved, shown as if it had this field of view."""
    height, width = picture.pixels.shape[:2]
    if windows.has_clear_background(picture.pixels):
        window = windows.enclosing_square(height, width)
        step = "field of view taken to be that of training"
        padded = "" if height == width else "padded with white to a square; "
        return _assumed(window, fov_deg, padded + step)
    warning = (
        "has a background that is neither white nor transparent; the published networks know "
        "objects before white. Remove it with a matting model or a mask."
    )
    window = windows.central_square(height, width)
    cut = "" if height == width else "cut to the central square; "
    return _assumed(window, fov_deg, f"{cut}field of view taken to be that of training", (warning,))


def _assumed(window: Window, fov_deg: float, step: str, warnings: tuple[str, ...] = ()) -> Frame:
    """A window taken to be a training view: K of such a view in its middle."""
    K = cameras.intrinsics_from_fov(np.radians(fov_deg), window.width, window.height)
    return Frame(window, cameras.crop_intrinsics(K, -window.left, -window.top), step, warnings)


def _cut_object(picture: Picture, window: Window) -> tuple[str, ...]:
    """Words about an object that is not whole in a window."""
    box = windows.object_box(picture.pixels)
    if box is None:
        return ()
    height, width = picture.pixels.shape[:2]
    if not window.holds(box):
        return ("shows an object that the training field of view cuts off.",)
    touched = [
        side
        for side, at_edge in zip(
            ("left", "top", "right", "bottom"),
            (box[0] == 0, box[1] == 0, box[2] == width, box[3] == height),
            strict=True,
        )
        if at_edge
    ]
    if touched and not window.inside(height, width):
        return (f"shows an object that ends at its {', '.join(touched)} edge; white follows it.",)
    return ()


def _differences(a: Window, b: Window) -> float:
    """The largest distance of their edges, in sides of the second."""
    ours, others = (np.array([x.left, x.top, x.left + x.width, x.top + x.height]) for x in (a, b))
    return float(np.abs(ours - others).max() / b.width)


def _photo_box(picture: Picture) -> tuple[int, int, int, int]:
    box = windows.object_box(picture.pixels)
    if box is None:
        raise UserError(f"{picture.name} is white everywhere; needed a picture of an object.")
    return box

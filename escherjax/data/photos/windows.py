"""Windows on the image plane: the part of a picture that a network is shown, resampled with K.

Networks that do not see intrinsics know one field of view with the principal point in the middle.
A window is any rectangle of the image plane, also beyond the picture; what lies there is white. Of
a posed picture the window is the one that has the training field of view, exactly; of a photo of an
object without a pose it is the one in which the object is as large as in training views.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from escherjax import cameras
from escherjax.data import images
from escherjax.errors import UserError

# Longer side of an object's box in a view, times its distance, over the focal length: objects have
# longest side 1. The median over the 25 views of an object rendered as for training.
OBJECT_SIZE = 1.06

_VISIBLE = 12  # an object has alpha, or before white darkness, of this at least
_NEAR_WHITE = 250
_MAX_CANVAS = 2**24  # pixels; larger windows are cut from a shrunk picture


class Box(NamedTuple):
    """Whole pixels of a picture; right and bottom are one past the last."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def longer(self) -> int:
        """Its longer side."""
        return max(self.right - self.left, self.bottom - self.top)


@dataclasses.dataclass(frozen=True)
class Window:
    """A rectangle of the image plane, in pixels of the picture; it may reach beyond it."""

    left: float
    top: float
    width: float
    height: float

    @property
    def edges(self) -> np.ndarray:
        """[left, top, right, bottom]."""
        return np.array([self.left, self.top, self.left + self.width, self.top + self.height])

    def inside(self, height: int, width: int) -> bool:
        """Whether it lies in a picture of this size, up to rounding."""
        left, top, right, bottom = self.edges
        return bool(max(-left, -top, right - width, bottom - height) <= 1e-3)

    def holds(self, box: Box) -> bool:
        """Whether it holds a box, up to one pixel."""
        left, top, right, bottom = self.edges - box
        return bool(max(left, top, -right, -bottom) <= 1)


def check_fov(fov_deg: float | None) -> None:
    """Raises UserError for a field of view that no pinhole camera has; None is none."""
    if fov_deg is not None and not 0 < fov_deg < 180:
        raise UserError(
            f"the field of view is {fov_deg:g} degrees; it must be above 0 and under 180."
        )


def focal_share(fov_deg: float) -> float:
    """Focal length of a picture over its side, for a field of view in degrees."""
    return 0.5 / math.tan(math.radians(fov_deg) / 2)


def fov_deg_of(focal: float, side: float) -> float:
    """Field of view in degrees of `side` pixels seen with `focal`."""
    return math.degrees(2 * math.atan2(0.5 * side, focal))


def fov_window(K: np.ndarray, fov_deg: float) -> Window:
    """The window about the principal point of K [3, 3] that has this field of view both ways.

    Pixels that are not square give a window that is not; resampled, it is a square of square ones.
    """
    share = focal_share(fov_deg)
    width, height = float(K[0, 0]) / share, float(K[1, 1]) / share
    return Window(float(K[0, 2]) - width / 2, float(K[1, 2]) - height / 2, width, height)


def moved_inside(window: Window, height: int, width: int) -> Window | None:
    """The window shifted into a picture of this size by as little as needed; None if it is larger.

    Its principal point is then not in the middle.
    """
    if window.width > width + 1e-3 or window.height > height + 1e-3:
        return None
    left = min(max(window.left, 0.0), width - window.width)
    top = min(max(window.top, 0.0), height - window.height)
    return dataclasses.replace(window, left=left, top=top)


def central_square(height: int, width: int) -> Window:
    """The largest square in the middle of a picture."""
    side = min(height, width)
    return Window((width - side) // 2, (height - side) // 2, side, side)


def enclosing_square(height: int, width: int) -> Window:
    """The smallest square about the middle that holds all of a picture."""
    side = max(height, width)
    return Window((width - side) // 2, (height - side) // 2, side, side)


def object_windows(
    boxes: Sequence[Box], sizes: Sequence[tuple[int, int]], radii: Sequence[float], fov_deg: float
) -> list[Window]:
    """Squares about an object's boxes in which it is as large as in training views.

    The longer side of a box becomes OBJECT_SIZE / radius times the focal length. Pictures of one
    size are taken to come from one camera and are scaled alike, by the view in which the object is
    largest.

    Args:
        boxes: of the object in each picture.
        sizes: (height, width) of the pictures.
        radii: distance of each camera from the object.
        fov_deg: field of view of training views.
    """
    size = OBJECT_SIZE * focal_share(fov_deg)
    sides = [box.longer * radius / size for box, radius in zip(boxes, radii, strict=True)]
    if len(set(sizes)) == 1:
        sides = [max(sides)] * len(sides)
    return [
        Window((box.left + box.right - side) / 2, (box.top + box.bottom - side) / 2, side, side)
        for box, side in zip(boxes, sides, strict=True)
    ]


def object_box(picture: np.ndarray) -> Box | None:
    """The box of what is neither transparent nor white; None if all is.

    picture: uint8 [H, W, 3] or [H, W, 4]. Alpha counts from half its largest value on, as matting
    leaves a haze around objects.
    """
    if has_alpha(picture):
        alpha = picture[..., 3]
        visible = alpha >= max(_VISIBLE, int(alpha.max()) // 2)
    else:
        visible = picture[..., :3].min(-1) <= 255 - _VISIBLE
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    if not len(rows):
        return None
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def has_alpha(picture: np.ndarray) -> bool:
    """Whether any pixel of uint8 [H, W, 3 or 4] is transparent, in part or wholly."""
    return picture.shape[-1] == 4 and bool(picture[..., 3].min() < 255)


def has_clear_background(picture: np.ndarray) -> bool:
    """Whether an object stands before nothing: some alpha, or a border that is white all around.

    A border counts as white if 98 in 100 of its pixels are nearly so (compressed pictures are
    never wholly so).
    """
    if has_alpha(picture):
        return True
    colors = picture[..., :3]
    border = np.concatenate([colors[0], colors[-1], colors[:, 0], colors[:, -1]])
    return bool((border.min(-1) >= _NEAR_WHITE).mean() >= 0.98)


def resample(
    picture: np.ndarray, window: Window, resolution: int, K: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The window of a picture, on white, as a square.

    picture: uint8 [H, W, 3 or 4], straight alpha; K [3, 3] of it. Bilinear, antialiased when
    shrinking, compositing before. Beyond the picture everything is exactly 255.
    Returns (uint8 [resolution, resolution, 3], K float32 [3, 3] of it).
    """
    K = cameras.crop_intrinsics(np.asarray(K, np.float64), window.left, window.top)
    K = cameras.resize_intrinsics(K, resolution / window.width, resolution / window.height)
    picture, window = _of_bounded_size(picture, window)
    left, top = np.floor(window.edges[:2] + 1e-6).astype(int).tolist()
    right, bottom = np.ceil(window.edges[2:] - 1e-6).astype(int).tolist()
    inside = picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    y, x = max(-top, 0), max(-left, 0)
    canvas = np.full((bottom - top, right - left, 3), 255, np.uint8)
    canvas[y : y + inside.shape[0], x : x + inside.shape[1]] = images.on_background(
        inside, images.WHITE
    )
    box = (window.edges - [left, top, left, top]).clip(0, [*canvas.shape[1::-1]] * 2)
    resized = Image.fromarray(canvas).resize(
        (resolution, resolution), Image.Resampling.BILINEAR, box=tuple(box.tolist())
    )
    return np.asarray(resized), K.astype(np.float32)


def _of_bounded_size(picture: np.ndarray, window: Window) -> tuple[np.ndarray, Window]:
    """Both shrunk by what keeps the window from taking much memory."""
    shrink = math.sqrt(window.width * window.height / _MAX_CANVAS)
    if shrink <= 1:
        return picture, window
    height, width = picture.shape[:2]
    new_height, new_width = max(1, round(height / shrink)), max(1, round(width / shrink))
    x, y = new_width / width, new_height / height
    shrunk = images.resize_image(picture, new_height, new_width)
    return shrunk, Window(window.left * x, window.top * y, window.width * x, window.height * y)

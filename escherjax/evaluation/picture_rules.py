"""How pictures of a data set become what the network is given and what it is compared with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from escherjax.data import images
from escherjax.data.scenes import ZERO123_FOCAL, ReadPicture, read_picture
from escherjax.errors import UserError, listed

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class PictureRules:
    """From stored pictures to square ones of 8 bits without alpha.

    background: "zero123" makes pixels of alpha exactly 0 white and keeps the straight colour of all
    others (`images.on_binary_white`); "white" composites.
    input_filter, truth_filter: "bilinear" or "bicubic", of the one resize; both antialias.
    focal: focal length over the side that pictures are cut or padded with white to, None keeps
    their own.
    """

    background: str
    input_filter: str = "bilinear"
    truth_filter: str = "bilinear"
    focal: float | None = None

    def describe(self) -> dict[str, Any]:
        """For summary.json."""
        if self.focal is None:
            seen = "as stored"
        else:
            seen = f"{math.degrees(2 * math.atan(0.5 / self.focal)):.2f} degrees"
        words = {"zero123": "white where alpha is 0", "white": "composited on white"}
        return {
            "background": words[self.background],
            "resize_of_references": self.input_filter,
            "resize_of_truth": self.truth_filter,
            "field_of_view": seen,
        }

    def references(
        self, views: Sequence[images.View], size: int, read: ReadPicture = read_picture
    ) -> np.ndarray:
        """What the network is given of views that are still files: uint8 [n, size, size, 3].

        read: how a file is read. Raises UserError naming every file that cannot be used.
        """
        return _read_all(self.reference, views, size, read)

    def truths(
        self, views: Sequence[images.View], size: int, read: ReadPicture = read_picture
    ) -> np.ndarray:
        """What predictions of views are compared with; see `references`."""
        return _read_all(self.truth, views, size, read)

    def reference(self, picture: np.ndarray, K: np.ndarray, size: int, name: str) -> np.ndarray:
        """What the network is given: uint8 [size, size, 3] of a picture [H, W, 3 or 4].

        K: [3, 3] of the picture; read only where the field of view is matched. Without that the
        central square is taken. Raises UserError, starting with `name`, where white would have to
        stand for what nobody knows.
        """
        return self._square(picture, K, size, self.input_filter, name)

    def truth(self, picture: np.ndarray, K: np.ndarray, size: int, name: str) -> np.ndarray:
        """What a prediction is compared with; see `reference`."""
        return self._square(picture, K, size, self.truth_filter, name)

    def _square(
        self, picture: np.ndarray, K: np.ndarray, size: int, resize: str, name: str
    ) -> np.ndarray:
        if self.background == "zero123":
            flat = images.on_binary_white(picture)
        else:
            flat = images.on_background(picture, images.WHITE)
        if self.focal is None:
            flat, _ = images.square_crop(flat, np.eye(3))
            box = (0.0, 0.0, float(len(flat)), float(len(flat)))
        else:
            box = field_of_view_box(K, self.focal)
            flat, box = _padded(flat, box, picture, name)
        if flat.shape[:2] == (size, size) and box == (0.0, 0.0, float(size), float(size)):
            return flat
        return np.asarray(Image.fromarray(flat).resize((size, size), _FILTERS[resize], box))


def of_renders(mode: str) -> PictureRules:
    """The rules of data sets of renders with alpha, GSO and NeRF-Synthetic, in a mode."""
    if mode == "faithful":
        return PictureRules("zero123", truth_filter="bicubic")
    return PictureRules("white", focal=ZERO123_FOCAL)


def _read_all(
    make: Callable[..., np.ndarray], views: Sequence[images.View], size: int, read: ReadPicture
) -> np.ndarray:
    pictures, problems = [], []
    for path, _, pinhole in views:
        try:
            picture, K = pinhole(read(path)[1])
            pictures.append(make(picture, K, size, str(path)))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(listed(problems))
    return np.stack(pictures)


def field_of_view_box(K: np.ndarray, focal: float) -> tuple[float, float, float, float]:
    """(left, top, right, bottom), in pixels, of what a camera with this focal length sees.

    K: [3, 3] of the picture. focal: over the side of a square with its principal point in the
    middle. Resized to a square of side R, the box has fx = fy = focal R and cx = cy = R / 2.
    """
    half_width, half_height = float(K[0, 0]) / focal / 2, float(K[1, 1]) / focal / 2
    x, y = float(K[0, 2]), float(K[1, 2])
    return x - half_width, y - half_height, x + half_width, y + half_height


def _padded(
    flat: np.ndarray, box: tuple[float, float, float, float], picture: np.ndarray, name: str
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The picture with whole pixels of white about it, so that the box lies inside, and the box."""
    height, width = flat.shape[:2]
    eps = 1e-4  # of a pixel: K is float32, and equal fields of view are to change nothing
    left, top = max(0, math.ceil(-box[0] - eps)), max(0, math.ceil(-box[1] - eps))
    right = max(0, math.ceil(box[2] - width - eps))
    bottom = max(0, math.ceil(box[3] - height - eps))
    if left or top or right or bottom:
        if picture.shape[-1] == 3 or picture[..., 3].min() == 255:
            raise UserError(
                f"{name} is opaque and sees less than the field of view asked for; nothing says "
                "what is around it. Keep its own field of view, or give pictures with alpha."
            )
        flat = np.pad(
            flat, ((top, bottom), (left, right), (0, 0)), constant_values=images.WHITE[0]
        )
    limits = (flat.shape[1], flat.shape[0]) * 2
    shifts = (left, top) * 2
    moved = [
        min(max(edge + shift, 0.0), float(limit))
        for edge, shift, limit in zip(box, shifts, limits, strict=True)
    ]
    rounded = [float(round(edge)) if abs(edge - round(edge)) < eps else edge for edge in moved]
    return flat, (rounded[0], rounded[1], rounded[2], rounded[3])

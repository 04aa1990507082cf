"""How pictures of a data set become what the network is given and what it is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from escherjax import cameras
from escherjax.cameras import PUBLISHED_FOV_DEG
from escherjax.data import images
from escherjax.data.formats.folders import ReadPicture, read_picture
from escherjax.data.photos import windows
from escherjax.errors import UserError, for_each


@dataclasses.dataclass(frozen=True)
class PictureRules:
    """From stored pictures to square ones of 8 bits without alpha.

    background: "zero123", the published evaluation's: pixels of alpha exactly 0 become white, all
    others keep their straight colour (`images.on_binary_white`); then references are resized
    bilinear and ground truth bicubic. "white": alpha is composited, and both are resized once and
    alike, bilinear. Every resize antialiases.
    fov_deg: of "white", the field of view that pictures are cut or padded with white to; None
    keeps their own. Where it is kept, the central square is taken.
    """

    background: str
    fov_deg: float | None = None

    def describe(self) -> dict[str, Any]:
        """For summary.json."""
        faithful = self.background == "zero123"
        return {
            "background": "white where alpha is 0" if faithful else "composited on white",
            "resize_of_references": "bilinear",
            "resize_of_truth": "bicubic" if faithful else "bilinear",
            "field_of_view": "as stored" if self.fov_deg is None else f"{self.fov_deg:.2f} degrees",
        }

    def references(
        self, views: Sequence[images.View], size: int, read: ReadPicture = read_picture
    ) -> np.ndarray:
        """What the network is given of views that are still files: uint8 [n, size, size, 3].

        read: how a file is read. Raises UserError naming every file that cannot be used.
        """
        return _read_all(self.reference, views, size, read)[0]

    def truths(
        self, views: Sequence[images.View], size: int, read: ReadPicture = read_picture
    ) -> tuple[np.ndarray, np.ndarray]:
        """What predictions of views are compared with, and its K [n, 3, 3]; see `references`."""
        return _read_all(self.truth, views, size, read)

    def reference(
        self, picture: np.ndarray, K: np.ndarray, size: int, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the network is given of a picture [H, W, 3 or 4] with K [3, 3].

        Returns (uint8 [size, size, 3], its K float32 [3, 3]); the former needs K for `fov_deg`
        alone. Raises UserError, starting with `name`,
        where white would have to stand for what nobody knows.
        """
        return self._square(picture, K, size, name, Image.Resampling.BILINEAR)

    def truth(
        self, picture: np.ndarray, K: np.ndarray, size: int, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a prediction is compared with; see `reference`."""
        return self._square(picture, K, size, name, Image.Resampling.BICUBIC)

    def _square(
        self,
        picture: np.ndarray,
        K: np.ndarray,
        size: int,
        name: str,
        resample: Image.Resampling,
    ) -> tuple[np.ndarray, np.ndarray]:
        """resample: of "zero123"; see `background`."""
        if self.background == "zero123":
            square, K = images.square_crop(
                images.on_binary_white(picture), np.asarray(K, np.float64)
            )
            K = cameras.resize_intrinsics(K, size / square.shape[1], size / square.shape[0])
            resized = Image.fromarray(square).resize((size, size), resample)
            return np.asarray(resized), K.astype(np.float32)
        height, width = picture.shape[:2]
        if self.fov_deg is None:
            window = windows.central_square(height, width)
        else:
            window = windows.fov_window(K, self.fov_deg)
            if not (window.inside(height, width) or windows.has_clear_background(picture)):
                raise UserError(
                    f"{name} sees less than {self.fov_deg:.4g} degrees, and its background is "
                    "neither transparent nor white, so nothing says what is around it. Keep its "
                    "own field of view, or give pictures with alpha."
                )
        return windows.resample(picture, window, size, K)


def of_renders(mode: str) -> PictureRules:
    """The rules of data sets of renders with alpha, GSO and NeRF-Synthetic, in a mode."""
    if mode == "faithful":
        return PictureRules("zero123")
    return PictureRules("white", PUBLISHED_FOV_DEG)


def _read_all(
    make: Callable[..., tuple[np.ndarray, np.ndarray]],
    views: Sequence[images.View],
    size: int,
    read: ReadPicture,
) -> tuple[np.ndarray, np.ndarray]:
    def picture_of(view: images.View) -> tuple[np.ndarray, np.ndarray]:
        file, _, pinhole = view
        picture, K = pinhole(read(file)[1])
        return make(picture, K, size, str(file))

    with ThreadPoolExecutor() as pool:  # decoding and resizing run side by side
        futures = [pool.submit(picture_of, view) for view in views]
        made = for_each(lambda future: future.result(), futures)
    pictures, intrinsics = zip(*made, strict=True)
    return np.stack(pictures), np.stack(intrinsics)

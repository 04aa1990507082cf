"""Pictures as uint8 arrays: reading, decoding, background, resize, crop, lens distortion.

Pictures are [H, W, 3] RGB or [H, W, 4] RGBA with straight alpha.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from escherjax import cameras
from escherjax.errors import UserError

try:
    from pyspng import load as _decode_png
except ImportError:
    _decode_png = None

# Makes a decoded picture a pinhole one: (picture, its K [3, 3]). A picture that needs no change is
# returned itself.
Pinhole = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
# A picture as people have it: a file, encoded bytes, uint8 [H, W, 3 or 4], or a PIL image.
Photo = str | Path | bytes | np.ndarray | Image.Image

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
FORMATS = ("PNG", "JPEG", "WEBP")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_PLAIN_PNG = {"RGB": b"\x08\x02", "RGBA": b"\x08\x06"}  # bit depth and colour type in the header
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
# What PIL raises for broken files.
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError) + (
    struct.error,
    zlib.error,
)


class View(NamedTuple):
    """A view before its picture is read."""

    file: Path
    c2w: np.ndarray  # [4, 4], OpenCV axes
    pinhole: Pinhole  # its lens


def load_picture(photo: Photo, name: str) -> tuple[np.ndarray, int]:
    """Reads a picture from wherever it is and turns it upright.

    Args:
        photo: see `Photo`.
        name: what messages call it.

    Returns:
        (uint8 [H, W, 3], or [H, W, 4] where there is alpha; the EXIF orientation that it was stored
        with, 1 for upright).

    Raises:
        UserError: As `decode_image`; also for a file that cannot be read, and another type.
    """
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[-1] not in (3, 4):
            raise UserError(
                f"{name} must be uint8 [H, W, 3] or [H, W, 4], got {photo.dtype} {photo.shape}."
            )
        if 0 in photo.shape:
            raise UserError(f"{name} must have a pixel at least, got {photo.shape[:2]}.")
        return photo, 1
    if isinstance(photo, (str, Path)):
        try:
            photo = Path(photo).read_bytes()
        except OSError as error:
            raise UserError(f"{name} cannot be read ({error}).") from error
    if not isinstance(photo, (bytes, Image.Image)):
        raise UserError(
            f"{name} must be a file, bytes, a uint8 array or a PIL image, got one of type "
            f"{type(photo).__name__}."
        )
    with _opened(photo, name) as image:
        pixels, orientation = _pixels(image), orientation_of(image)
    return turn_upright(pixels, orientation), orientation


def load_square(photo: Photo, name: str, resolution: int) -> np.ndarray:
    """The central square of a picture, upright, on white: uint8 [resolution, resolution, 3].

    Arguments and errors as in `load_picture`.
    """
    square, _ = square_crop(load_picture(photo, name)[0], np.eye(3))
    return resize_image(on_background(square, WHITE), resolution, resolution)


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes PNG, JPEG or WebP bytes to uint8 [H, W, 3], or [H, W, 4] where there is alpha.

    Pixels come as they are stored, whatever an EXIF orientation says: cameras in files refer to
    these. Grey and palette pictures become colours; 16-bit colours keep their upper 8 bits; colour
    profiles are not applied. Where pyspng is installed it decodes PNG, nearly twice as fast.
    Raises UserError, starting with `name`, for what is not a whole picture, has more than
    PIL.Image.MAX_IMAGE_PIXELS pixels, several frames, or a mode other than 8-bit RGB or grey (CMYK,
    16-bit grey, float).
    """
    with _opened(data, name) as image:
        return _pixels(image, data)


def decode_tagged(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """(what `decode_image` gives, EXIF orientation 1..8; 1 is upright, also where no tag is)."""
    with _opened(data, name) as image:
        return _pixels(image, data), orientation_of(image)


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as it is to be looked at: [H, W, C] -> [H, W, C], or [W, H, C] for 5 to 8.

    orientation: EXIF's: 1 upright, 3 upside down, 6 and 8 on its right and left side (a quarter
    turn clockwise or back rights it), 2, 4, 5, 7 mirrored.
    """
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8 of a PIL image; 1 where it has none that is valid."""
    tag: Any = image.getexif().get(ExifTags.Base.Orientation)
    return tag if tag in range(1, 9) else 1


def picture_size(file: Path | bytes, name: str) -> tuple[int, int]:
    """(height, width) from a picture's header, as stored; errors as in `decode_image`."""
    with _opened(file, name) as image:
        return image.height, image.width


def _pixels(image: Image.Image, data: bytes = b"") -> np.ndarray:
    """Pixels of an opened picture. data: its bytes, where it comes from some."""
    mode = "RGBA" if image.has_transparency_data else "RGB"
    if _decode_png and image.format == "PNG" and data[24:26] == _PLAIN_PNG[mode]:
        with contextlib.suppress(RuntimeError, ValueError):  # Pillow then says what is wrong
            return _decode_png(data)
    return np.asarray(image.convert(mode))


@contextlib.contextmanager
def _opened(source: Path | bytes | Image.Image, name: str) -> Iterator[Image.Image]:
    """The picture behind its header; UserError for an unusable one, now or when it is decoded."""
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(source, Image.Image):
                image = source
            else:
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
                file = io.BytesIO(source) if isinstance(source, bytes) else source
                image = stack.enter_context(Image.open(file, formats=FORMATS))
            _check_kind(image, name)
            yield image
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large ({error}); shrink it first.") from error
    except _BROKEN as error:
        reason = "not a picture" if isinstance(error, UnidentifiedImageError) else str(error)
        if source == b"" or (isinstance(source, Path) and not source.stat().st_size):
            reason = "it is empty"
        raise UserError(
            f"{name} cannot be decoded ({reason}); it must be a whole PNG, JPEG or WebP file."
        ) from error


def _check_kind(image: Image.Image, name: str) -> None:
    """Raises UserError for an opened picture that is too large, an animation or not 8-bit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise UserError(
            f"{name} is too large: {image.width} x {image.height} pixels must be at most {limit} "
            "in all. Shrink it first."
        )
    # A phone's MPO file is a JPEG with more pictures of the same moment behind the first
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise UserError(
            f"{name} must be one picture, got an animation of {frames} frames. Choose one."
        )
    if image.mode not in MODES:
        raise UserError(
            f"{name} must have 8-bit colours, got a picture of mode '{image.mode}' (print colours, "
            "depth or HDR?). Convert it first."
        )


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of a picture; the same picture gives the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class PictureFormat:
    """How pictures are stored."""

    name: str | None = None  # png, jpeg or webp; None keeps unchanged files, others become PNG
    quality: int = 92  # 1 to 100, of JPEG and WebP; a WebP of 100 is lossless

    def keeps(self, data: bytes) -> bool:
        """Whether a file that needs no other change can stay as it is."""
        if self.name is None:
            return True
        with Image.open(io.BytesIO(data)) as image:
            return image.format == self.name.upper()

    def encode(self, image: np.ndarray) -> bytes:
        """Bytes of a picture; the same picture gives the same bytes.

        Alpha that is opaque everywhere is left out of a JPEG. Raises UserError if it is not.
        """
        if self.name in (None, "png"):
            return encode_png(image)
        if self.name == "jpeg" and image.shape[-1] == 4:
            if (image[..., 3] < 255).any():
                raise UserError("JPEG cannot hold its transparent pixels; use PNG or WebP.")
            image = np.ascontiguousarray(image[..., :3])
        # WebP's `exact` keeps the colour of transparent pixels
        extra = {"lossless": self.quality == 100, "exact": True} if self.name == "webp" else {}
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, self.name, quality=self.quality, **extra)
        return buffer.getvalue()


def on_background(images: np.ndarray, color: tuple[int, ...]) -> np.ndarray:
    """Composites straight-alpha pictures over a colour: uint8 [..., 4] -> [..., 3], rounded.

    Pictures without alpha are returned as they are.
    """
    if images.shape[-1] == 3:
        return images
    alpha = images[..., 3].astype(np.uint16)
    behind = {ground: (255 - alpha) * np.uint16(ground) + np.uint16(128) for ground in set(color)}
    flat = np.empty((*images.shape[:-1], 3), np.uint8)
    for channel, ground in enumerate(color):  # planes: numpy is slow where the last axis is short
        mixed = images[..., channel].astype(np.uint16)
        mixed *= alpha
        mixed += behind[ground]
        mixed += mixed >> 8  # with the next line: exact rounded division by 255, within 16 bits
        np.right_shift(mixed, 8, out=flat[..., channel], casting="unsafe")
    return flat


def on_binary_white(images: np.ndarray) -> np.ndarray:
    """Makes pixels of alpha 0 white and keeps the raw colour of all others, as Zero123 does.

    Edges keep the colour that the renderer stored under partial alpha: not a true compositing,
    but what the published checkpoints were trained on. uint8 [..., 4] -> [..., 3].
    """
    if images.shape[-1] == 3:
        return images
    white = np.negative((images[..., 3] == 0).astype(np.uint8))  # 255 where alpha is 0, else 0
    flat = np.empty((*images.shape[:-1], 3), np.uint8)
    for channel in range(3):  # planes, as above: six times as fast as a choice of colours
        np.bitwise_or(images[..., channel], white, out=flat[..., channel])
    return flat


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize with antialiasing when shrinking; alpha is premultiplied and divided out."""
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def square_crop(
    image: np.ndarray,
    K: np.ndarray,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a square out of [H, W, C]; K [3, 3] moves with it.

    The square has the shorter side divided by zoom, in whole pixels; of a zoom below 1 it reaches
    beyond the picture, and what lies there is transparent. shift: (right, down) of its centre from
    the picture's, in shorter sides. The square stays inside the picture, or the picture inside it.
    Raises UserError if pixels are needed beyond an opaque picture.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    side = max(1, round(shorter / zoom))
    if (height, width) == (side, side):
        return image, K
    left, top = (
        int(np.clip((size - side) // 2 + round(part * shorter), *sorted((0, size - side))))
        for size, part in ((width, shift[0]), (height, shift[1]))
    )
    K = cameras.crop_intrinsics(K, left, top)
    if side <= shorter:
        return image[top : top + side, left : left + side], K
    if image.shape[-1] == 3 or image[..., 3].min() == 255:
        raise UserError(
            f"zoom {zoom:.3g} looks beyond an opaque picture: config.data.zoom must be at least 1, "
            "or pictures must have a transparent background."
        )
    padded = np.zeros((side, side, 4), np.uint8)
    inside = image[max(top, 0) : top + side, max(left, 0) : left + side]
    below, right = max(-top, 0), max(-left, 0)
    padded[below : below + inside.shape[0], right : right + inside.shape[1]] = inside
    return padded, K


def undistort(
    image: np.ndarray, K: np.ndarray, distortion: dict[str, float], is_fisheye: bool = False
) -> np.ndarray:
    """The pinhole picture, of the same K, behind one with lens distortion.

    distortion: OpenCV's k1 to k6, p1, p2, missing ones 0; of a fisheye k1 to k4. Bilinear; pixels
    that the lens did not see repeat the border. Not cv2.undistort: scenes with distortion are read
    without the extra that installs OpenCV.
    """
    from scipy import ndimage

    height, width = image.shape[:2]
    x, y = _rays(height, width, K)
    r2 = x * x + y * y
    radial = lens_stretch(height, width, K, distortion, is_fisheye)
    p1, p2 = (distortion.get(name, 0.0) for name in ("p1", "p2"))
    source_u = K[0, 0] * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + K[0, 2] - 0.5
    source_v = K[1, 1] * (y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y) + K[1, 2] - 0.5
    planes = [
        ndimage.map_coordinates(plane, [source_v, source_u], np.float32, order=1, mode="nearest")
        for plane in np.moveaxis(image, -1, 0)
    ]
    return np.round(np.stack(planes, axis=-1)).astype(np.uint8)


def lens_stretch(
    height: int, width: int, K: np.ndarray, distortion: dict[str, float], is_fisheye: bool = False
) -> np.ndarray:
    """How many times as far from the centre a lens shows each pixel of a pinhole picture.

    Without tangential distortion. The models are OpenCV's (calib3d: the rational one of eight
    coefficients; the fisheye's polynomial of the angle). Returns float64 [height, width].
    """
    x, y = _rays(height, width, K)
    k1, k2, k3, k4, k5, k6 = (distortion.get(f"k{i}", 0.0) for i in range(1, 7))
    r2 = x * x + y * y
    if is_fisheye:
        r = np.maximum(np.sqrt(r2), 1e-12)
        t = np.arctan(r)
        t2 = t * t
        return t / r * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        rational = 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
        return (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / rational


def _rays(height: int, width: int, K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x/z and y/z [height, width] of the rays through the middles of pixels."""
    v, u = np.mgrid[:height, :width] + 0.5
    return (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]

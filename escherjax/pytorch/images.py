"""Converts reference images to the tensors that the encoder takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from escherjax.errors import UserError


def read_images(images: Any, resolution: int) -> torch.Tensor:
    """Reads reference images.

    Args:
        images: [N, H, H, 3] float in [0, 1], array or tensor; or a list of PIL images or paths,
            which are turned upright by their EXIF orientation, cropped to the central square,
            composited on white and resized.
        resolution: side in pixels that pictures are resized to.

    Returns:
        float32 [N, 3, H, H] in [-1, 1].

    Raises:
        UserError: another shape or range, or a file that is not a picture.
    """
    if isinstance(images, (Image.Image, str, Path)):
        raise UserError(f"images must be a list, got one {type(images).__name__}.")
    if isinstance(images, Sequence):
        images = np.stack([_read_picture(each, resolution) for each in images] or [np.empty(0)])
    pixels = torch.as_tensor(images).float()
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise UserError(
            f"reference images must be [N, H, H, 3] with N >= 1, got shape {tuple(pixels.shape)}."
        )
    if pixels.shape[1] != pixels.shape[2]:
        raise UserError(
            f"reference images must be square, got {pixels.shape[1]} x {pixels.shape[2]} pixels. "
            "Crop them, or pass PIL images or paths, which are cropped to the central square."
        )
    if not torch.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        raise UserError(
            f"reference images must be finite values in [0, 1], got [{pixels.min():.3g}, "
            f"{pixels.max():.3g}] (divide 8-bit values by 255)."
        )
    return pixels.movedim(-1, 1) * 2 - 1


def _open(path: str | Path) -> Image.Image:
    """A whole picture of at most PIL.Image.MAX_IMAGE_PIXELS pixels."""
    picture = Image.open(path, formats=("PNG", "JPEG", "WEBP"))
    if Image.MAX_IMAGE_PIXELS is not None and picture.width * picture.height > (
        Image.MAX_IMAGE_PIXELS
    ):
        raise ValueError(f"{picture.width} x {picture.height} pixels are too many; shrink it first")
    picture.load()
    return picture


def _read_picture(picture: Any, resolution: int) -> np.ndarray:
    """A PIL image or the path of one as float32 [resolution, resolution, 3] in [0, 1]."""
    if isinstance(picture, (str, Path)):
        try:
            picture = _open(picture)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read the image {picture}: {error}") from error
    if not isinstance(picture, Image.Image):
        raise UserError(
            f"a reference image must be a PIL image or a path, got a {type(picture).__name__}; all "
            "images may also be one array [N, H, H, 3]."
        )
    picture = ImageOps.exif_transpose(picture)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    if square.has_transparency_data:
        square = square.convert("RGBA")
        white = Image.new("RGB", square.size, "white")
        white.paste(square, mask=square.getchannel("A"))
        square = white
    resized = square.convert("RGB").resize((resolution, resolution), Image.Resampling.BILINEAR)
    return np.asarray(resized) / np.float32(255)

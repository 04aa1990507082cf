"""Pictures for people: contact sheets of references, targets and samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_REFERENCE, _TARGET, _SAMPLE = (214, 96, 31), (110, 110, 110), (31, 105, 196)
_GAP, _FRAME = 6, 3


def scene_sheet(
    path: Path,
    references: np.ndarray,
    samples: np.ndarray,
    targets: np.ndarray | None = None,
    min_tile: int = 96,
) -> None:
    """Writes one picture of B scenes: references on the left, samples below the true targets.

    references: [B, N, H, W, 3]; samples, targets: [B, M, H, W, 3], uint8. Orange frames are
    references, grey ones true views, blue ones samples. Small images are enlarged by a whole
    number to at least `min_tile` pixels.
    """
    zoom = max(1, -(-min_tile // references.shape[2]))
    rows = []
    for scene in range(references.shape[0]):
        refs = _strip(references[scene], _REFERENCE, zoom)
        made = _strip(samples[scene], _SAMPLE, zoom)
        if targets is None:
            rows.append(_beside(refs, made))
            continue
        true = _strip(targets[scene], _TARGET, zoom)
        blank = np.full_like(refs, 255)
        rows.append(np.concatenate([_beside(refs, true), _beside(blank, made)]))
    sheet = np.concatenate(
        [np.pad(row, ((_GAP, 0), (_GAP, _GAP), (0, 0)), constant_values=255) for row in rows]
    )
    legend = [("reference", _REFERENCE), ("target", _TARGET), ("sample", _SAMPLE)]
    if targets is None:
        legend.pop(1)
    _save(path, _with_legend(sheet, legend))


def save_images(folder: Path, images: np.ndarray) -> list[Path]:
    """Writes [M, H, W, 3] uint8 as 000.png, 001.png, ... and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        _save(path, image)
    return paths


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as uint8, rounded to nearest."""
    return np.round(np.clip(np.asarray(images), 0.0, 1.0) * 255.0).astype(np.uint8)


def _strip(images: np.ndarray, color: tuple[int, int, int], zoom: int) -> np.ndarray:
    """[V, H, W, 3] side by side, each in a frame of `color`."""
    tiles = []
    for image in images:
        large = np.repeat(np.repeat(image, zoom, axis=0), zoom, axis=1)
        height, width = large.shape[:2]
        tile = np.empty((height + 2 * _FRAME, width + 2 * _FRAME + _GAP, 3), np.uint8)
        tile[:] = 255
        tile[:, : width + 2 * _FRAME] = color
        tile[_FRAME:-_FRAME, _FRAME : _FRAME + width] = large
        tiles.append(tile)
    return np.concatenate(tiles, axis=1)


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    gap = np.full((left.shape[0], 2 * _GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _with_legend(sheet: np.ndarray, legend: list[tuple[str, tuple[int, int, int]]]) -> np.ndarray:
    height = 24
    image = Image.new("RGB", (sheet.shape[1], sheet.shape[0] + height), "white")
    image.paste(Image.fromarray(sheet), (0, height))
    drawing, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    left = _GAP
    for name, color in legend:
        drawing.rectangle((left, 8, left + 11, 19), fill=color)
        drawing.text((left + 16, 5), name, fill="black", font=font)
        left += 16 + int(drawing.textlength(name, font=font)) + 16
    return np.asarray(image)


def _save(path: Path, image: np.ndarray) -> None:
    """Writes a PNG whole: under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    Image.fromarray(image).save(partial, format="PNG")
    partial.replace(path)

"""Checked input of sampling: pictures and cameras of one scene, or several padded to one shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax import cameras as cameras_lib
from escherjax.cameras import Cameras
from escherjax.data import images as images_lib
from escherjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SceneBatch:
    """B scenes of N references and M targets, of which the first of each scene are real.

    pixels: float32 [B, N, H, H, 3] in [0, 1]; reference_c2w, target_c2w: float32 [B, N, 4, 4] and
    [B, M, 4, 4]; num_references, num_targets: int32 [B], None for all; seeds: B numbers.
    """

    pixels: np.ndarray
    reference_c2w: np.ndarray
    target_c2w: np.ndarray
    num_references: np.ndarray | None
    num_targets: np.ndarray | None
    seeds: list[int]


def check_batch(
    images: np.ndarray,
    reference_cameras: Cameras,
    target_cameras: Cameras,
    num_references: Sequence[int] | None,
    num_targets: Sequence[int] | None,
    seeds: Sequence[int],
) -> SceneBatch:
    """The arguments of `Pipeline.generate_batch` as arrays; what is not real may hold anything.

    Raises UserError that lists every problem.
    """
    pixels = np.asarray(images, np.float32)
    if pixels.ndim != 5 or 0 in pixels.shape[:2]:
        raise UserError(
            f"reference images have shape {pixels.shape}; needed [B, N, H, H, 3] with B and N >= 1."
        )
    batch, most_references = pixels.shape[:2]
    problems: list[str] = []
    reference_c2w = _poses_of(reference_cameras, batch, "reference", problems)
    target_c2w = _poses_of(target_cameras, batch, "target", problems)
    if reference_c2w is not None and reference_c2w.shape[1] != most_references:
        problems.append(
            f"{most_references} reference images a scene but {reference_c2w.shape[1]} reference "
            "cameras; needed one camera for each image."
        )
    if len(seeds) not in (1, batch):
        problems.append(f"{len(seeds)} seeds for {batch} scenes; needed one each, or one.")
    if problems:
        raise UserError("\n".join(problems))
    assert reference_c2w is not None and target_c2w is not None  # else there was a problem
    references = _counts(num_references, batch, most_references, "num_references", problems)
    targets = _counts(num_targets, batch, target_c2w.shape[1], "num_targets", problems)
    for i in range(batch):
        real_references = slice(None if references is None else references[i])
        real_targets = slice(None if targets is None else targets[i])
        checks: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
            (check_pixels, (pixels[i, real_references],)),
            (cameras_lib.check_poses, (reference_c2w[i, real_references], "reference cameras")),
            (cameras_lib.check_poses, (target_c2w[i, real_targets], "target cameras")),
        ]
        for check, arguments in checks:
            try:
                check(*arguments)
            except UserError as error:
                problems.append(f"scene {i}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    seeds = [*seeds] * (batch // len(seeds))
    return SceneBatch(pixels, reference_c2w, target_c2w, references, targets, seeds)


def reference_pixels(images: np.ndarray | Sequence[Any], resolution: int) -> np.ndarray:
    """The reference images of `Pipeline.generate` as float32 [N, H, H, 3] in [0, 1].

    images: such an array, or a list of such [H, H, 3], of PIL images or of paths. The latter two
    are turned as their EXIF orientation says, composited on white, cut to the central square, and
    H = resolution. Raises UserError as `check_pixels` does, and for what is none of these or cannot
    be read.
    """
    if isinstance(images, (str, Path)) or hasattr(images, "getbands"):
        raise UserError(f"images = {images}; needed a list, also of a single picture.")
    if not hasattr(images, "ndim"):
        pictures = [_read(image, resolution) for image in images]
        if shapes := sorted({picture.shape for picture in pictures}):
            if len(shapes) > 1:
                raise UserError(f"reference images have shapes {shapes}; needed one for all.")
            images = np.stack(pictures)
    pixels = np.asarray(images, np.float32)
    check_pixels(pixels)
    return pixels


def checked_poses(cameras: Cameras, name: str) -> np.ndarray:
    """c2w float32 [V, 4, 4] of one scene. Raises UserError for bad poses, shapes, and no view."""
    if not isinstance(cameras, Cameras):
        raise UserError(f"{name} are a {type(cameras).__name__}; needed Cameras(c2w).")
    c2w = np.asarray(cameras.c2w, np.float32)
    cameras_lib.check_poses(c2w, name)
    if c2w.ndim != 3 or len(c2w) == 0:
        raise UserError(f"{name} have shape {c2w.shape}; needed [views, 4, 4] with a view at least")
    return c2w


def check_pixels(pixels: np.ndarray) -> None:
    """Raises UserError unless these are N >= 1 square pictures [N, H, H, 3] in [0, 1]."""
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise UserError(
            f"reference images have shape {pixels.shape}; needed [N, H, W, 3] with N >= 1."
        )
    if pixels.shape[1] != pixels.shape[2]:
        raise UserError(
            f"reference images are {pixels.shape[1]} x {pixels.shape[2]} pixels; needed square "
            "ones. Cut them, or pass PIL images or paths, which are cut to the central square."
        )
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        raise UserError(
            f"reference images span [{pixels.min():.3g}, {pixels.max():.3g}]; needed finite "
            "values in [0, 1] (divide 8-bit values by 255)."
        )


def _read(image: Any, resolution: int) -> np.ndarray:
    """One picture, float32 [R, R, 3] in [0, 1], of a path or a PIL image; arrays as they are."""
    if hasattr(image, "ndim"):
        return np.asarray(image, np.float32)
    name = f"the image {image}" if isinstance(image, (str, Path)) else "a reference image"
    return images_lib.load_square(image, name, resolution) / np.float32(255)


def _poses_of(cameras: Any, batch: int, role: str, problems: list[str]) -> np.ndarray | None:
    if not isinstance(cameras, Cameras):
        problems.append(f"{role} cameras are a {type(cameras).__name__}; needed Cameras(c2w).")
        return None
    c2w = np.asarray(cameras.c2w, np.float32)
    if c2w.ndim == 4 and c2w.shape[0] == batch and c2w.shape[1] > 0:
        return c2w
    problems.append(
        f"{role} cameras have shape {c2w.shape}; needed [{batch}, views, 4, 4] with a view at least"
    )
    return None


def _counts(
    counts: Sequence[int] | None, batch: int, most: int, name: str, problems: list[str]
) -> np.ndarray | None:
    if counts is None:
        return None
    found = np.asarray(counts)
    whole = found.shape == (batch,) and found.dtype.kind in "iu"
    if whole and found.min() >= 1 and found.max() <= most:
        return found.astype(np.int32)
    problems.append(f"{name} = {counts}; needed {batch} whole numbers from 1 to {most}.")
    return None

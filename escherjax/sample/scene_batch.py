"""Checked input of sampling, padded to few shapes so that few programs are compiled.

A program is compiled for one number of references N and one of targets M. Views added to reach the
next bucket are hidden from attention by masks, and the others come out as without them.
"""

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
from escherjax.models.eschernet import SceneBatch

_REFERENCE_STEPS = 2  # buckets between two powers of two; a reference costs next to nothing
_TARGET_STEPS = 8  # each target costs a full share: at most an eighth more
_PUBLISHED = (25, 100, 200)  # targets of the published protocols: never padded


def check_scene(pixels: np.ndarray, reference_c2w: np.ndarray, target_c2w: np.ndarray) -> None:
    """Raises UserError unless these are pictures [N, H, H, 3] in [0, 1] with poses that fit."""
    check_pixels(pixels)
    cameras_lib.check_poses(reference_c2w, "reference cameras")
    cameras_lib.check_poses(target_c2w, "target cameras")
    if len(reference_c2w) != len(pixels):
        raise UserError(
            f"reference cameras must be one for each of {len(pixels)} reference images, got "
            f"{len(reference_c2w)}."
        )


def check_batch(
    images: np.ndarray,
    reference_cameras: Cameras,
    target_cameras: Cameras,
    num_references: Sequence[int] | None,
    num_targets: Sequence[int] | None,
    seeds: Sequence[int],
) -> SceneBatch:
    """The arguments of `Pipeline.generate_batch` as arrays, without noise.

    Padding may hold anything. Raises UserError that lists every problem.
    """
    pixels = np.asarray(images, np.float32)
    if pixels.ndim != 5 or 0 in pixels.shape[:2]:
        raise UserError(
            "reference images must have the shape [B, N, H, H, 3] with B and N of at least 1, got "
            f"{pixels.shape}."
        )
    size = len(pixels)
    reference_c2w = checked_poses(reference_cameras, "reference cameras", (size,))
    target_c2w = checked_poses(target_cameras, "target cameras", (size,))
    problems: list[str] = []
    if len(seeds) not in (1, size):
        problems.append(f"seeds must be one, or one for each of {size} scenes, got {len(seeds)}.")
    references = _counts(num_references, size, pixels.shape[1], "num_references", problems)
    targets = _counts(num_targets, size, target_c2w.shape[1], "num_targets", problems)
    for i in range(size):
        n = None if references is None else references[i]
        m = None if targets is None else targets[i]
        try:
            check_scene(pixels[i, :n], reference_c2w[i, :n], target_c2w[i, :m])
        except UserError as error:
            problems.append(f"scene {i}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return SceneBatch(
        pixels * 2 - 1,
        Cameras(reference_c2w),
        Cameras(target_c2w),
        latents=None,
        num_references=references,
        num_targets=targets,
        seeds=np.array([*seeds] * (size // len(seeds)), np.uint32),
    )


def reference_pixels(images: np.ndarray | Sequence[Any], resolution: int) -> np.ndarray:
    """The reference images of `Pipeline.generate` as float32 [N, H, H, 3] in [0, 1].

    images: such an array, or a list of such [H, H, 3], of PIL images or of paths. The latter two
    are turned upright by their EXIF orientation, composited on white, cut to the central square,
    and H = resolution. Raises UserError as `check_pixels` does, and for what is none of these or
    cannot be read.
    """
    if isinstance(images, (str, Path)) or hasattr(images, "getbands"):
        raise UserError(f"images must be a list, also for a single picture, got {images}.")
    if not hasattr(images, "ndim"):
        pictures = [_read(image, resolution) for image in images]
        if shapes := sorted({picture.shape for picture in pictures}):
            if len(shapes) > 1:
                raise UserError(f"reference images must have one shape, got {shapes}.")
            images = np.stack(pictures)
    pixels = np.asarray(images, np.float32)
    check_pixels(pixels)
    return pixels


def checked_poses(cameras: Any, name: str, leading: tuple[int, ...] = ()) -> np.ndarray:
    """c2w float32 [*leading, V, 4, 4]. Raises UserError for other shapes and for no view."""
    found: Any = type(cameras).__name__
    if isinstance(cameras, Cameras):
        c2w = np.asarray(cameras.c2w, np.float32)
        if c2w.shape[:-3] == leading and c2w.shape[-2:] == (4, 4) and c2w.shape[-3] > 0:
            return c2w
        found = f"c2w of shape {c2w.shape}"
    shape = ", ".join([*map(str, leading), "views", "4", "4"])
    raise UserError(f"{name} must be Cameras(c2w), [{shape}] with a view at least, got {found}.")


def check_pixels(pixels: np.ndarray) -> None:
    """Raises UserError unless these are N >= 1 square pictures [N, H, H, 3] in [0, 1]."""
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise UserError(
            f"reference images must have the shape [N, H, W, 3] with N >= 1, got {pixels.shape}."
        )
    if pixels.shape[1] != pixels.shape[2]:
        raise UserError(
            f"reference images must be square, got {pixels.shape[1]} x {pixels.shape[2]} pixels. "
            "Crop them, or pass PIL images or paths, which are cut to the central square."
        )
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        raise UserError(
            "reference images must hold finite values in [0, 1] (divide 8-bit values by 255), got "
            f"{pixels.min():.3g} to {pixels.max():.3g}."
        )


def _read(image: Any, resolution: int) -> np.ndarray:
    """One picture, float32 [R, R, 3] in [0, 1], of a path or a PIL image; arrays as they are."""
    if hasattr(image, "ndim"):
        return np.asarray(image, np.float32)
    name = f"the image {image}" if isinstance(image, (str, Path)) else "a reference image"
    return images_lib.load_square(image, name, resolution) / np.float32(255)


def _counts(
    counts: Sequence[int] | None, batch: int, most: int, name: str, problems: list[str]
) -> np.ndarray | None:
    if counts is None:
        return None
    found = np.asarray(counts)
    whole = found.shape == (batch,) and found.dtype.kind in "iu"
    if whole and found.min() >= 1 and found.max() <= most:
        return found.astype(np.int32)
    problems.append(f"{name} must be {batch} whole numbers from 1 to {most}, got {counts}.")
    return None


def reference_bucket(num_references: int) -> int:
    """The smallest of 1 2 3 4 6 8 12 16 24 32 ... that holds so many references (>= 1)."""
    return _round_up(num_references, _REFERENCE_STEPS)


def target_bucket(num_targets: int, view_devices: int = 1) -> int:
    """The smallest bucket that holds so many targets (>= 1).

    All numbers to 16, then 18 20 ... 32 36 ... 64 72 ... 128 and so on, and 25, 100 and 200, which
    the published protocols use; of these the multiples of `view_devices`, the devices that share
    the targets.
    """
    size = num_targets
    if num_targets not in _PUBLISHED:
        size = _round_up(num_targets, _TARGET_STEPS)
    return size + -size % view_devices


def common_bucket(counts: Sequence[int], bucket: Callable[[int], int]) -> tuple[int, bool]:
    """(size of the bucket that holds all counts, whether it is masked since others share it)."""
    size = bucket(max(counts))
    return size, min(counts) < size or (size > 1 and bucket(size - 1) == size)


def _round_up(count: int, steps: int) -> int:
    below = 1 << max((count - 1).bit_length() - 1, 0)  # the largest power of two below count
    step = max(below // steps, 1)
    return count + -count % step


def pad(scenes: SceneBatch, num_references: int, num_targets: int) -> SceneBatch:
    """The batch with so many views of each kind, the added ones copies of the last real one."""
    references, targets = scenes.num_references, scenes.num_targets
    return dataclasses.replace(
        scenes,
        images=fill(scenes.images, references, num_references),
        reference_cameras=Cameras(fill(scenes.reference_cameras.c2w, references, num_references)),
        target_cameras=Cameras(fill(scenes.target_cameras.c2w, targets, num_targets)),
        latents=fill(scenes.latents, targets, num_targets),
        view_numbers=fill(scenes.view_numbers, targets, num_targets),
    )


def fill(views: np.ndarray, counts: np.ndarray | None, size: int) -> np.ndarray:
    """`size` views of each scene of [B, V, ...]: the last real one stands behind the real ones.

    counts: int [B], 1 to V, how many are real; None for V.
    """
    if counts is None:
        counts = np.full(len(views), views.shape[1])
    indices = np.minimum(np.arange(size), counts[:, None] - 1)  # [B, size]
    return np.stack([scene[chosen] for scene, chosen in zip(views, indices, strict=True)])

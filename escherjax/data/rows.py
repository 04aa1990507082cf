"""Rows of a batch: which views of a scene are drawn, how they are cropped, and their pictures.

A row is drawn from a generator of its own and from the number of its step, nothing else. Only the
views drawn are decoded.
"""

from __future__ import annotations

from typing import Any, Protocol

import grain.python as grain
import ml_dtypes
import numpy as np

from escherjax import cameras
from escherjax.data import images, mixture
from escherjax.data.loader_config import Bucket, LoaderConfig
from escherjax.data.shards import Scene
from escherjax.data.workers import Allocate
from escherjax.errors import UserError

NAMED_COLORS = {"white": images.WHITE, "black": images.BLACK}


class SceneSource(Protocol):
    """What batches are made from: `open_shards(...)`, a `ProceduralSource`, a list of scenes.

    One whose attribute `reads_files` is true can be pickled, and is read by processes.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...


def draw_crops(config: LoaderConfig, count: int, rng: np.random.Generator) -> np.ndarray:
    """Zoom, shift right and shift down of `count` views, [count, 3]; see LoaderConfig."""
    number = count if config.augment_views else 1
    low, high = np.log(config.zoom)
    zoom = np.exp(rng.uniform(low, high, number))
    room = np.minimum(config.shift, np.abs(1 - 1 / zoom) / 2)
    shift = rng.uniform(-1, 1, (number, 2)) * room[:, None]
    return np.broadcast_to(np.column_stack([zoom, shift]), (count, 3))


def read_views(
    scene: Scene,
    views: np.ndarray,
    resolution: int,
    background: str | tuple[int, ...],
    crops: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chosen views of a scene as square pictures without alpha.

    views: indices [n]. background: see LoaderConfig, or a colour. crops: zoom, shift right and
    shift down of each view, [n, 3] (see `images.square_crop`); None: the central squares.
    Returns (images uint8 [n, resolution, resolution, 3], c2w float32 [n, 4, 4], K float32
    [n, 3, 3] of these pictures). Non-square pictures lose their longer side's ends.
    Raises UserError if a picture cannot be used.
    """

    def flatten(picture: np.ndarray) -> np.ndarray:
        if background == "zero123":
            return images.on_binary_white(picture)
        if isinstance(background, str):
            return images.on_background(picture, NAMED_COLORS[background])
        return images.on_background(picture, background)

    c2w, K = scene.c2w[views].astype(np.float32), scene.K[views].astype(np.float32)
    raw = scene.images if isinstance(scene.images, np.ndarray) else None
    if raw is not None and scene.height == scene.width == resolution and crops is None:
        return flatten(raw[views]), c2w, K
    pictures = np.empty((len(views), resolution, resolution, 3), np.uint8)
    for row, view in enumerate(views):
        name = f"view {view} of scene '{scene.scene_id}'"
        picture = images.decode_image(scene.images[view], name) if raw is None else raw[view]
        if picture.shape[:2] != (scene.height, scene.width):
            raise UserError(
                f"{name} has {picture.shape[:2]} pixels (height, "
                f"width); its record says {(scene.height, scene.width)}."
            )
        zoom, right, down = (1.0, 0.0, 0.0) if crops is None else crops[row].tolist()
        try:
            picture, K[row] = images.square_crop(picture, K[row], zoom, (right, down))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        scale = resolution / len(picture)
        K[row] = cameras.resize_intrinsics(K[row], scale, scale)
        # Compositing is linear: before the resize it equals premultiplied alpha after it.
        pictures[row] = images.resize_image(flatten(picture), resolution, resolution)
    return pictures, c2w, K


def square_intrinsics(scene: Scene, views: np.ndarray, resolution: int) -> np.ndarray:
    """K float32 [n, 3, 3] of the pictures that `read_views` gives without crops; none is read."""
    shape = np.broadcast_to(np.uint8(0), (scene.height, scene.width, 4))  # takes no memory
    scale = resolution / min(scene.height, scene.width)
    square = [images.square_crop(shape, K)[1] for K in scene.K[views].astype(np.float32)]
    return np.stack([cameras.resize_intrinsics(K, scale, scale) for K in square])


class DrawRow(grain.RandomMapTransform):
    """(step, scene number) -> one row of a batch; an unusable scene gives its error instead."""

    def __init__(self, source: SceneSource, config: LoaderConfig):
        self.source, self.config = source, config

    def random_map(self, element: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
        step, index = element
        config, bucket = self.config, self.config.bucket_of(step)
        low, high = config.reference_range(bucket)
        count = high + bucket.num_targets
        num_references = rng.integers(low, high + 1)
        scene_id = mixture.record_name(self.source, index)
        try:
            scene = self.source[index]
            scene_id = scene.scene_id
            config.check_bucket(bucket, scene.num_views, f"scene '{scene_id}'")
            if config.with_replacement:
                views = rng.integers(0, scene.num_views, count)
            else:
                views = rng.permutation(scene.num_views)[:count]
            background: str | tuple[int, ...] = config.background
            if background == "random":
                background = tuple(rng.integers(0, 256, 3).tolist())
            crops = draw_crops(config, count, rng) if config.zoom else None
            decoded = views[:high] if config.moments_shape else views
            pictures, c2w, K = read_views(scene, decoded, config.resolution, background, crops)
            moments = None
            if config.moments_shape:
                moments = _target_moments(scene, views[high:], config.moments_shape)
                c2w = scene.c2w[views].astype(np.float32)
                K = square_intrinsics(scene, views, config.resolution)
            error = None
        except UserError as problem:
            error = str(problem)
            pictures, moments, c2w, K = _blank(config, bucket)
        row: dict[str, Any] = {
            "scene_index": np.int32(index),
            "num_references": np.int32(num_references),
        }
        for name, array in (("images", pictures), ("c2w", c2w), ("K", K)):
            row[f"ref_{name}"], row[f"target_{name}"] = array[:high], array[high:]
        if config.moments_shape:
            row["target_moments"] = moments
            del row["target_images"]
        return row | {"valid": np.float32(error is None), "scene_ids": scene_id, "error": error}


def _blank(config: LoaderConfig, bucket: Bucket) -> tuple[np.ndarray, ...]:
    """(pictures, moments, c2w, K) of a row whose record is bad."""
    count, size = bucket.num_references + bucket.num_targets, config.resolution
    decoded = bucket.num_references if config.moments_shape else count
    return (
        np.zeros((decoded, size, size, 3), np.uint8),
        np.zeros((bucket.num_targets, *config.moments_shape), ml_dtypes.bfloat16),
        np.broadcast_to(np.eye(4, dtype=np.float32), (count, 4, 4)),
        np.broadcast_to(np.eye(3, dtype=np.float32), (count, 3, 3)),
    )


def row_bytes(config: LoaderConfig, bucket: Bucket) -> int:
    """No fewer than the arrays of a row take, with room to align each."""
    return sum(array.nbytes for array in _blank(config, bucket)) + 1024


def _target_moments(scene: Scene, views: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Stored moments of chosen views; UserError where the record has none of this shape."""
    if scene.moments is None or scene.moments.shape[1:] != shape:
        found = None if scene.moments is None else scene.moments.shape[1:]
        raise UserError(
            f"scene '{scene.scene_id}' has stored moments {found}; needed {shape}. Make them by "
            "data_prep.latents."
        )
    return scene.moments[views]


class HostBatches:
    """This host's part of batch number n, for any n; see `loader.make_loader`."""

    def __init__(self, rows: grain.MapDataset, size: int, process_index: int, process_count: int):
        self._rows, self._size = rows, size
        self._process_index, self._process_count = process_index, process_count

    def __call__(self, number: int, allocate: Allocate = np.empty) -> dict[str, np.ndarray]:
        first = (number * self._process_count + self._process_index) * self._size
        rows = [self._rows[row] for row in range(first, first + self._size)]
        return _stack_rows(rows, allocate)


def _stack_rows(rows: list[dict[str, Any]], allocate: Allocate) -> dict[str, np.ndarray]:
    """The arrays of a batch, each row one item of the first axis."""
    batch = {}
    for name, first in rows[0].items():
        column = [row[name] for row in rows]
        if name in ("scene_ids", "error"):
            batch[name] = np.array(column, object)
        else:
            room = allocate((len(rows), *np.shape(first)), first.dtype)
            batch[name] = np.stack(column, out=room)
    return batch

"""Batches of reference and target views from scene records, through Grain.

The position in the data follows from the step alone: step s with global batch G holds rows
s*G .. (s+1)*G - 1 of one endless order of scenes, and the views of a row are drawn from a generator
keyed by (seed, row). Host p of P holds rows p*G/P .. (p+1)*G/P - 1 of each batch, so any number of
hosts together see the same batches, and a run continues at any step on any number of hosts.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any, Protocol

import grain.python as grain
import numpy as np

from escherjax import cameras
from escherjax.data import images
from escherjax.data.records import Scene
from escherjax.errors import UserError

Batch = dict[str, np.ndarray]
BACKGROUNDS = ("white", "black", "random", "zero123")


class SceneSource(Protocol):
    """What batches are made from: `open_shards(...)`, a `ProceduralSource`, a list of scenes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How rows are made.

    num_references: a number, or (low, high): then `high` references are always drawn, and how many
        of them are real is drawn for each row.
    with_replacement: views of a row may repeat, as in the original training.
    background: "white", "black" or "random" (a colour for each row) composite with true alpha;
        "zero123" paints alpha 0 white and keeps raw colours elsewhere, as the original did.
    on_bad_record: "stop" raises UserError at the batch that holds the record; "skip" gives a row of
        zeros with valid 0 and lists the record in `bad_records`. It is never replaced by another.
    """

    resolution: int = 256
    num_references: int | tuple[int, int] = 3
    num_targets: int = 3
    with_replacement: bool = True
    background: str = "white"
    on_bad_record: str = "stop"
    seed: int = 0
    shuffle: bool = True

    @property
    def reference_range(self) -> tuple[int, int]:
        """(fewest, most) real references of a row."""
        if isinstance(self.num_references, int):
            return self.num_references, self.num_references
        low, high = self.num_references
        return int(low), int(high)

    @property
    def views_per_row(self) -> int:
        return self.reference_range[1] + self.num_targets

    def validate(self) -> None:
        """Raises UserError naming the first field that cannot be used."""
        low, high = self.reference_range
        if not 1 <= low <= high:
            raise UserError(f"num_references {self.num_references}: needed 1 <= low <= high.")
        for name in ("resolution", "num_targets"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; needed at least 1.")
        choices = {"background": BACKGROUNDS, "on_bad_record": ("stop", "skip")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"{name} is '{getattr(self, name)}'; needed one of {', '.join(allowed)}."
                )

    def check_views(self, num_views: int, name: str) -> None:
        """Raises UserError if a scene with `num_views` views cannot fill a row."""
        if not self.with_replacement and self.views_per_row > num_views:
            raise UserError(
                f"{name} has {num_views} views; a row needs {self.reference_range[1]} references "
                f"+ {self.num_targets} targets = {self.views_per_row} different ones. Ask for "
                "fewer views, or draw them with replacement."
            )


def read_views(
    scene: Scene, views: np.ndarray, resolution: int, background: str | tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chosen views of a scene as square pictures without alpha.

    views: indices [n]. background: see LoaderConfig, or a colour.
    Returns (images uint8 [n, resolution, resolution, 3], c2w float32 [n, 4, 4], K float32
    [n, 3, 3] of these pictures). Non-square pictures lose their longer side's ends.
    """

    def flatten(picture):
        if background == "zero123":
            return images.on_binary_white(picture)
        named = {"white": images.WHITE, "black": images.BLACK}
        return images.on_background(picture, named.get(background, background))

    c2w, K = scene.c2w[views].astype(np.float32), scene.K[views].astype(np.float32)
    if isinstance(scene.images, np.ndarray) and scene.height == scene.width == resolution:
        return flatten(scene.images[views]), c2w, K
    pictures = np.empty((len(views), resolution, resolution, 3), np.uint8)
    for row, view in enumerate(views):
        if isinstance(scene.images, np.ndarray):
            picture = scene.images[view]
        else:
            picture = images.decode_image(
                scene.images[view], f"view {view} of scene '{scene.scene_id}'"
            )
        if picture.shape[:2] != (scene.height, scene.width):
            raise UserError(
                f"view {view} of scene '{scene.scene_id}' has {picture.shape[:2]} pixels (height, "
                f"width); its record says {(scene.height, scene.width)}."
            )
        picture, K[row] = images.square_crop(picture, K[row])
        scale = resolution / len(picture)
        K[row] = cameras.resize_intrinsics(K[row], scale, scale)
        # Compositing is linear: before the resize it equals premultiplied alpha after it.
        pictures[row] = images.resize_image(flatten(picture), resolution, resolution)
    return pictures, c2w, K


class _DrawRow(grain.RandomMapTransform):
    """Scene number -> one row of a batch; a scene that cannot be used gives its error instead."""

    def __init__(self, source: SceneSource, config: LoaderConfig):
        self.source, self.config = source, config

    def random_map(self, element: int, rng: np.random.Generator) -> dict[str, Any]:
        config, index = self.config, int(element)
        low, high = config.reference_range
        num_references, scene_id = rng.integers(low, high + 1), f"record {index}"
        try:
            scene = self.source[index]
            scene_id = scene.scene_id
            config.check_views(scene.num_views, f"scene '{scene_id}'")
            if config.with_replacement:
                views = rng.integers(0, scene.num_views, config.views_per_row)
            else:
                views = rng.permutation(scene.num_views)[: config.views_per_row]
            background = config.background
            if background == "random":
                background = tuple(rng.integers(0, 256, 3).tolist())
            pictures, c2w, K = read_views(scene, views, config.resolution, background)
            error = None
        except UserError as problem:
            error, size, count = str(problem), config.resolution, config.views_per_row
            pictures = np.zeros((count, size, size, 3), np.uint8)
            c2w = np.broadcast_to(np.eye(4, dtype=np.float32), (count, 4, 4))
            K = np.broadcast_to(np.eye(3, dtype=np.float32), (count, 3, 3))
        row = {"scene_index": np.int32(index), "num_references": np.int32(num_references)}
        for name, array in (("images", pictures), ("c2w", c2w), ("K", K)):
            row[f"ref_{name}"], row[f"target_{name}"] = array[:high], array[high:]
        return row | {"valid": np.float32(error is None), "scene_ids": scene_id, "error": error}


def _stack_rows(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    objects = ("scene_ids", "error")
    return {
        name: np.array([row[name] for row in rows], object)
        if name in objects
        else np.stack([row[name] for row in rows])
        for name in rows[0]
    }


class BatchIterator:
    """Endless iterator over this host's part of each global batch; see `make_loader`.

    bad_records: (scene id, reason) of every bad record in the batches given out so far, a record
    again each time it comes.
    """

    def __init__(self, iterator: Iterator[dict[str, np.ndarray]], on_bad_record: str):
        self._iterator, self._on_bad_record = iterator, on_bad_record
        self.bad_records: list[tuple[str, str]] = []

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        errors = batch.pop("error")
        for scene_id, reason in zip(batch["scene_ids"], errors, strict=True):
            if reason is not None:
                if self._on_bad_record == "stop":
                    raise UserError(
                        f"bad record '{scene_id}': {reason} Mend or remove it, or set "
                        "on_bad_record to 'skip' to leave its row out."
                    )
                self.bad_records.append((scene_id, reason))
        return batch

    def close(self) -> None:
        """Stops the reading threads."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


def make_loader(
    source: SceneSource,
    config: LoaderConfig,
    global_batch: int,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    num_threads: int | None = None,
    prefetch: int | None = None,
) -> BatchIterator:
    """Batches of `source` from step `start_step` on, without end.

    num_threads: each makes whole batches; by default one for each core, at most 16. prefetch:
    finished batches that may wait, at least num_threads; memory is prefetch times a batch.

    Each batch is a dict, b = global_batch / process_count, N the most references, M targets:
        ref_images, target_images    uint8 [b, N or M, H, W, 3]
        ref_c2w, target_c2w          float32 [b, N or M, 4, 4], OpenCV axes
        ref_K, target_K              float32 [b, N or M, 3, 3], pixels of these pictures
        num_references               int32 [b]: the first so many references are real
        valid                        float32 [b]: 0 where the record was bad, then all else is blank
        scene_index                  int32 [b]; scene_ids: object [b] of str
    Raises UserError if the numbers do not fit together.
    """
    config.validate()
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index {process_index} of {process_count} processes.")
    if global_batch < 1 or global_batch % process_count:
        raise UserError(
            f"the global batch of {global_batch} does not divide over {process_count} processes; "
            f"take a multiple of {process_count}."
        )
    if start_step < 0:
        raise UserError(f"start_step is {start_step}; needed 0 or more.")
    if len(source) < 1:
        raise UserError("the data source has no scenes.")
    if hasattr(source, "num_views"):
        config.check_views(source.num_views, "every scene of the source")
    threads = min(16, os.cpu_count() or 1) if num_threads is None else num_threads
    waiting = threads if prefetch is None else max(prefetch, threads)

    # Scene numbers rather than scenes run through Grain, so that a read error stays with its row.
    rows = grain.MapDataset.range(len(source)).seed(config.seed)
    if config.shuffle:
        rows = rows.shuffle()
    rows = rows.repeat().random_map(_DrawRow(source, config))
    # Without drop_remainder Grain miscounts the batches of an endless data set.
    local = rows.batch(global_batch // process_count, drop_remainder=True, batch_fn=_stack_rows)
    local = local[process_index::process_count]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=waiting)
    iterator = iter(local.to_iter_dataset(options))
    iterator.set_state({"next_index": start_step})
    return BatchIterator(iterator, config.on_bad_record)

"""How batches are made: view counts, backgrounds, crops. Without Grain: configs load fast."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from escherjax.errors import UserError

BACKGROUNDS = ("white", "black", "random", "zero123")
# Keeps the draws of buckets apart from all others of the same seed.
_BUCKET_STREAM = 0xB0C4E7


class Bucket(NamedTuple):
    """View counts of a whole step: N references, M targets. weight: how often, beside the others.

    Steps of one bucket have one static shape, so that a step is compiled once for each bucket.
    """

    num_references: int
    num_targets: int
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How rows are made.

    num_references: a number, or (low, high): then `high` references are always drawn, and how many
        of them are real is drawn for each row.
    buckets: view counts instead of num_references and num_targets; each step draws one. Of
        (low, high) only low counts: a row has [min(low, N), N] real references.
    with_replacement: views of a row may repeat, as in the original training.
    background: "white", "black" or "random" (a colour for each row) composite with true alpha;
        "zero123" paints alpha 0 white and keeps raw colours elsewhere, as the original did.
    zoom: (low, high), factors on the focal length, log-uniform: above 1 a picture is cropped,
        below 1 it is padded with transparent pixels, which opaque pictures refuse. (): none.
    shift: how far off the centre a crop may lie, as a fraction of the picture's side. Limited
        for each zoom so that a crop stays inside the picture, and a padded picture is kept whole.
    augment_views: zoom and shift are drawn for each view instead of once for a row.
    moments_shape: (h, w, 2 C) of the stored VAE moments that stand for the targets' pictures, which
        are not decoded then; (): pictures. Moments are of whole pictures on one background.
    on_bad_record: "stop" raises UserError at the batch that holds the record; "skip" gives a row of
        zeros with valid 0 and lists the record in `bad_records`. It is never replaced by another.
    """

    resolution: int = 256
    num_references: int | tuple[int, int] = 3
    num_targets: int = 3
    buckets: tuple[tuple[int, int, float], ...] = ()
    with_replacement: bool = True
    background: str = "white"
    zoom: tuple[float, float] | tuple[()] = ()
    shift: float = 0.0
    augment_views: bool = False
    moments_shape: tuple[int, int, int] | tuple[()] = ()
    on_bad_record: str = "stop"
    seed: int = 0
    shuffle: bool = True

    @property
    def all_buckets(self) -> tuple[Bucket, ...]:
        """The buckets, one where none were named."""
        if self.buckets:
            return tuple(Bucket(*bucket) for bucket in self.buckets)
        highest = self.num_references
        return (Bucket(highest if isinstance(highest, int) else highest[1], self.num_targets),)

    def bucket_of(self, step: int) -> Bucket:
        """The bucket of a step: the same on every host, and after every resume."""
        buckets = self.all_buckets
        if len(buckets) == 1:
            return buckets[0]
        bounds = np.cumsum([bucket.weight for bucket in buckets])
        stream = np.random.SeedSequence((self.seed, step, _BUCKET_STREAM))
        draw = np.random.default_rng(stream).random() * bounds[-1]
        return buckets[int(np.searchsorted(bounds, draw, side="right"))]

    def reference_range(self, bucket: Bucket) -> tuple[int, int]:
        """(fewest, most) real references of a row of a bucket."""
        if isinstance(self.num_references, int):
            return bucket.num_references, bucket.num_references
        return min(self.num_references[0], bucket.num_references), bucket.num_references

    def problems(self) -> list[str]:
        """What is wrong with the fields, each named; [] if nothing is."""
        problems = []
        low, high = (
            (self.num_references, self.num_references)
            if isinstance(self.num_references, int)
            else self.num_references
        )
        if not 1 <= low <= high:
            problems.append(
                f"num_references must be at least 1, or (low, high) with 1 <= low <= high, got "
                f"{self.num_references}"
            )
        problems += [
            f"{name} must be at least 1, got {getattr(self, name)}"
            for name in ("resolution", "num_targets")
            if getattr(self, name) < 1
        ]
        choices = {"background": BACKGROUNDS, "on_bad_record": ("stop", "skip")}
        problems += [
            f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
        problems += [*_bucket_problems(self.buckets), *_crop_problems(self.zoom, self.shift)]
        if self.moments_shape and self.background == "random":
            problems.append("background is 'random', but stored moments are of one; set that one")
        if self.moments_shape and len(self.zoom):
            problems.append(f"zoom must be () for stored moments of whole views, got {self.zoom!r}")
        return problems

    def validate(self) -> None:
        """Raises UserError naming every field that cannot be used."""
        if problems := self.problems():
            raise UserError("; ".join(problems) + ".")

    def check_views(self, num_views: int, name: str) -> None:
        """Raises UserError if a scene with `num_views` views cannot fill a row of every bucket."""
        for bucket in self.all_buckets:
            self.check_bucket(bucket, num_views, name)

    def check_bucket(self, bucket: Bucket, num_views: int, name: str) -> None:
        """Raises UserError if a scene with `num_views` views cannot fill a row of a bucket."""
        needed = bucket.num_references + bucket.num_targets
        if not self.with_replacement and needed > num_views:
            raise UserError(
                f"{name} has {num_views} views; a row needs {bucket.num_references} references "
                f"+ {bucket.num_targets} targets = {needed} different ones. Ask for "
                "fewer views, or draw them with replacement."
            )


def _bucket_problems(buckets: Any) -> Iterator[str]:
    """What keeps buckets from a sequence of (N, M, weight), N, M >= 1, each once, weight > 0."""
    seen = set()
    for bucket in buckets:
        fits = isinstance(bucket, (tuple, list)) and len(bucket) == 3
        if not fits or not all(isinstance(x, (int, float)) for x in bucket):
            yield f"buckets must hold (N, M, weight), all numbers, got {bucket!r}"
            continue
        counts, weight = tuple(bucket[:2]), bucket[2]
        if not all(isinstance(x, int) and x >= 1 for x in counts):
            yield f"buckets: N and M of {bucket!r} must be whole numbers of at least 1"
        if not 0 < weight < math.inf:
            yield f"buckets: the weight of {bucket!r} must be positive"
        if counts in seen:
            yield f"buckets: N and M of {bucket!r} come twice; add up their weights"
        seen.add(counts)


def _crop_problems(zoom: Any, shift: float) -> Iterator[str]:
    """What keeps zoom from () or (low, high) with 0 < low <= high, and shift from [0, 0.5]."""
    numbers = len(zoom) in (0, 2) and all(isinstance(x, (int, float)) for x in zoom)
    if not numbers or (len(zoom) and not 0 < zoom[0] <= zoom[1] < math.inf):
        yield f"zoom must be (low, high) with 0 < low <= high, or (), got {zoom!r}"
    if not 0 <= shift <= 0.5:
        yield f"shift must be a fraction of the side, 0 to 0.5, got {shift}"
    if shift and not len(zoom):
        yield f"shift is {shift} without zoom, and a whole picture cannot move; set zoom"


def weight_problems(weights: Any, num_sources: int) -> list[str]:
    """What keeps weights from being () or as many positive numbers as there are sources."""
    problems = []
    if weights and len(weights) != num_sources:
        problems.append(f"weights must be one for each of {num_sources} sources, got {weights!r}")
    wrong = [w for w in weights if not (isinstance(w, (int, float)) and 0 < w < math.inf)]
    if wrong:
        problems.append(f"weights must be positive numbers, got {', '.join(map(repr, wrong))}")
    return problems


def source_names(source: str) -> list[str]:
    """The sources that `config.data.source` names: folders of shards, or "procedural".

    Raises UserError if there are none, or one of them is empty or named twice.
    """
    names = [name.strip() for name in source.split(",")]
    if names == [""]:
        raise UserError(
            "config.data.source is empty; set it to a folder of shards (made by data_prep), or to "
            "'procedural' for scenes rendered at start."
        )
    if "" in names or len(set(names)) < len(names):
        raise UserError(
            f"config.data.source = {source!r} names a source twice, or none between two commas; "
            "name each once, and set how often it comes by config.data.weights."
        )
    return names


def view_counts(config: Any) -> tuple[tuple[int, int], ...]:
    """(N, M) of every kind of step of a training config: its buckets', or its one."""
    buckets = config.data.get("buckets", ())  # configs of older runs have none
    return tuple((n, m) for n, m, _ in buckets) or ((config.num_references, config.num_targets),)

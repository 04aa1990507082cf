"""Several sources of scenes as one, and the endless order in which scenes are read."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import grain.python as grain
import numpy as np

from escherjax.data.loader_config import weight_problems
from escherjax.data.shards import Scene
from escherjax.errors import UserError


class Mixture:
    """Scenes of several sources, numbered one source after another.

    sources: by name, which stands before every scene_id, since ids of different sources may clash.
    weights: share of each source in the rows of batches, relative to the others; () makes them the
        numbers of scenes, so that every scene comes equally often.
    Raises UserError if weights do not fit the sources.
    """

    def __init__(self, sources: Mapping[str, Any], weights: Sequence[float] = ()):
        if problems := weight_problems(weights, len(sources)):
            raise UserError("; ".join(problems) + ".")
        self.names, self.sources = list(sources), list(sources.values())
        self.bounds = np.cumsum([0, *map(len, self.sources)]).tolist()
        self.weights = tuple(weights) or tuple(map(len, self.sources))
        self.reads_files = any(getattr(part, "reads_files", False) for part in self.sources)

    def __len__(self) -> int:
        return self.bounds[-1]

    def __getitem__(self, index: int) -> Scene:
        """Reads scene `index`; raises UserError as its source does."""
        part, place = self.locate(index)
        scene = self.sources[part][place]
        return dataclasses.replace(scene, scene_id=f"{self.names[part]}:{scene.scene_id}")

    def locate(self, index: int) -> tuple[int, int]:
        """(source, number of the scene in it) of scene `index`."""
        index = range(len(self))[index]
        part = int(np.searchsorted(self.bounds, index, side="right")) - 1
        return part, index - self.bounds[part]


def record_name(source: Any, index: int) -> str:
    """What messages call a scene whose id is not known, since it could not be read."""
    if not isinstance(source, Mixture):
        return f"record {index}"
    part, place = source.locate(index)
    return f"{source.names[part]}:record {place}"


def endless_order(source: Any, seed: int, shuffle: bool) -> grain.MapDataset:
    """Scene numbers of rows 0, 1, ... without end, to be read in any order.

    Each scene comes once in every epoch of its source, in another order each time if `shuffle`.
    """
    if isinstance(source, Mixture):
        return grain.MapDataset.source(_Interleaved(source, seed, shuffle))
    return _epochs(grain.MapDataset.range(len(source)), seed, shuffle)


def _epochs(numbers: grain.MapDataset, seed: int, shuffle: bool) -> grain.MapDataset:
    numbers = numbers.seed(seed)
    return (numbers.shuffle() if shuffle else numbers).repeat()


class _Interleaved:
    """Row -> scene number, sources spread evenly by weight, each in an order of its own.

    Grain's `mix` rounds weights to whole percents of the smallest; here they are exact, so that
    weights by the number of scenes give every scene once in len(mixture) rows.
    """

    def __init__(self, mixture: Mixture, seed: int, shuffle: bool):
        exact = [Fraction(str(float(weight))) for weight in mixture.weights]
        scale = math.lcm(*(weight.denominator for weight in exact))
        self._shares = [int(weight * scale) for weight in exact]
        self._orders = [
            _epochs(
                grain.MapDataset.range(start, stop),
                int(np.random.SeedSequence((seed, part)).generate_state(1)[0]),
                shuffle,
            )
            for part, (start, stop) in enumerate(
                zip(mixture.bounds, mixture.bounds[1:], strict=False)
            )
        ]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> int:
        part, turn = whose_turn(row, self._shares)
        return self._orders[part][turn]


def whose_turn(row: int, shares: Sequence[int]) -> tuple[int, int]:
    """(source, how many turns it had before) of row `row`; shares: whole numbers.

    Of every sum(shares) rows in a line from 0, source i has shares[i], spread evenly: a source
    takes a row where the rows left to those behind it, rounded down, do not grow.
    """
    left = sum(shares)
    for part, share in enumerate(shares):
        rest, rest_after = (n * (left - share) // left for n in (row, row + 1))
        if rest == rest_after:
            return part, row - rest
        row, left = rest, left - share
    raise AssertionError("the last share takes what is left")

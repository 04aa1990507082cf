"""Paired differences between evaluations, over the (scene, N) that they share."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax.errors import UserError
from escherjax.evaluation import settings, summary
from escherjax.evaluation.records import SAMPLES
from escherjax.metrics.bootstrap import interval, paired_interval

# Settings that must agree for figures to mean the same; a name stands for all below it.
_MEANING = ("protocol.protocol", "protocol.mode", "protocol.conventions", "protocol.rules",
            "weights.resolution")  # fmt: skip

Estimate = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Row:
    """One metric with N references over the scenes that all runs have.

    values: of each run, [S] by scene; means and differences: estimates with mean, low and high, of
    each run, and of each but the first less the first.
    """

    count: str
    metric: str
    scenes: list[str]
    values: list[np.ndarray]
    means: list[Estimate]
    differences: list[Estimate]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """letters: A, B, ...; paths, summaries: of the runs; rows: by metric, then N; changes: settings
    that differ, as (field, value of each run)."""

    letters: list[str]
    paths: list[Path]
    summaries: list[dict[str, Any]]
    rows: list[Row]
    changes: list[tuple[str, list[str]]]


def compare(paths: Sequence[Path]) -> Comparison:
    """Reads the summaries of two evaluations or more, and pairs them.

    Raises UserError, listing every difference, if they mean different things, and if they share no
    scene, number of references or metric.
    """
    summaries = [summary.read(path) for path in paths]
    letters = [chr(ord("A") + i) if i < 26 else f"R{i}" for i in range(len(paths))]
    changes = _changes([content["settings"] for content in summaries])
    clashes = [(name, values) for name, values in changes if _decides_meaning(name)]
    if clashes:
        lines = "\n  ".join(
            f"{name}: " + ", ".join(map(" ".join, zip(letters, values, strict=True)))
            for name, values in clashes
        )
        raise UserError(
            f"these evaluations mean different things and are not compared:\n  {lines}\nEvaluate "
            "with one protocol, mode and set of conventions."
        )
    of_runs = [content["per_scene"][SAMPLES] for content in summaries]
    names = [content["settings"]["metrics"] for content in summaries]
    shared = [name for name in names[0] if all(name in other for other in names)]
    counts = [count for count in of_runs[0] if all(count in run for run in of_runs)]
    rows = []
    for name in shared:
        for count in counts:
            scenes = sorted(set.intersection(*(set(run[count]) for run in of_runs)))
            if scenes and name in of_runs[0][count][scenes[0]]:
                rows.append(_row(name, count, scenes, of_runs))
    if not rows:
        raise UserError(
            "these evaluations share no scored scene with the same number of references and "
            f"metric: {', '.join(map(str, paths))}."
        )
    return Comparison(letters, list(paths), summaries, rows, changes)


def _row(name: str, count: str, scenes: list[str], of_runs: list[dict[str, Any]]) -> Row:
    values = [np.array([run[count][scene][name] for scene in scenes]) for run in of_runs]
    means = [_estimate(interval(of, summary.CONFIDENCE)) for of in values]
    differences = [
        _estimate(paired_interval(of, values[0], summary.CONFIDENCE)) for of in values[1:]
    ]
    return Row(count, name, scenes, values, means, differences)


def _estimate(bounds: tuple[float, float, float]) -> Estimate:
    names = ("mean", "low", "high")
    return {k: v if math.isfinite(v) else None for k, v in zip(names, bounds, strict=True)}


def is_clear(difference: Estimate) -> bool:
    """Whether the interval leaves out 0."""
    low, high = difference["low"], difference["high"]
    return low is not None and high is not None and (low > 0 or high < 0)


def _changes(all_settings: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    fields: dict[str, None] = {}
    for other in all_settings[1:]:
        changed = settings.differences(all_settings[0], other, ignored=())
        fields |= dict.fromkeys(name for name, *_ in changed)
    return [(name, [_value(tree, name) for tree in all_settings]) for name in fields]


def _value(tree: dict[str, Any], name: str) -> str:
    for part in name.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return "(not set)"
        tree = tree[part]
    return json.dumps(tree)


def _decides_meaning(name: str) -> bool:
    return any(name == field or name.startswith(field + ".") for field in _MEANING)

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
from escherjax.evaluate import settings
from escherjax.evaluate.case_consistency import VALUES
from escherjax.metrics.scoring import CONSISTENCY
from escherjax.reports import summary
from escherjax.reports.bootstrap import interval, paired_interval
from escherjax.reports.results import SAMPLES

# Settings that must agree for figures to mean the same; a name stands for all below it.
_MEANING = (
    "protocol.protocol",
    "protocol.mode",
    "protocol.conventions",
    "protocol.rules",
    "weights.resolution",
)

# Number of references, as text -> scene -> metric -> value.
SceneValues = dict[str, dict[str, dict[str, float]]]
Estimate = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Row:
    """One metric with N references over the scenes for which all runs have a value.

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
    metrics = [content["settings"]["metrics"] for content in summaries]
    shared = [name for name in metrics[0] if all(name in other for other in metrics)]
    meaning = (*_MEANING, CONSISTENCY) if CONSISTENCY in shared else _MEANING
    clashes = [(name, values) for name, values in changes if _is_below(name, meaning)]
    if clashes:
        lines = "\n  ".join(
            f"{name}: " + ", ".join(map(" ".join, zip(letters, values, strict=True)))
            for name, values in clashes
        )
        raise UserError(
            f"these evaluations mean different things and are not compared:\n  {lines}\nEvaluate "
            "with one protocol, mode and set of conventions."
        )
    of_runs = [_scene_values(content) for content in summaries]
    counts = [count for count in of_runs[0] if all(count in run for run in of_runs)]
    names = [part for name in shared for part in (VALUES if name == CONSISTENCY else (name,))]
    rows = []
    for name in names:
        for count in counts:
            having = [{at for at, of in run[count].items() if name in of} for run in of_runs]
            if scenes := sorted(set.intersection(*having)):
                rows.append(_row(name, count, scenes, of_runs))
    if not rows:
        raise UserError(
            "these evaluations share no scored scene with the same number of references and "
            f"metric: {', '.join(map(str, paths))}."
        )
    return Comparison(letters, list(paths), summaries, rows, changes)


def _scene_values(content: dict[str, Any]) -> SceneValues:
    """Of the samples: the metrics and, where there is such, consistency; without those unknown."""
    values: SceneValues = {}
    for part in (content, content.get(CONSISTENCY, {})):
        for count, scenes in part.get("per_scene", {}).get(SAMPLES, {}).items():
            for scene, found in scenes.items():
                of_scene = values.setdefault(count, {}).setdefault(scene, {})
                of_scene |= {name: value for name, value in found.items() if value is not None}
    return values


def _row(name: str, count: str, scenes: list[str], of_runs: list[SceneValues]) -> Row:
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


def _is_below(name: str, fields: Sequence[str]) -> bool:
    return any(name == field or name.startswith(field + ".") for field in fields)

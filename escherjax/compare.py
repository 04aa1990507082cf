"""Sets evaluations side by side, with paired differences over the scenes that they share.

    python -m escherjax.compare eval/a eval/b eval/c --out compare.html

Each is the --out of escherjax.evaluate, or a summary.json. Differences are to the first one, scene
by scene, with 95% bootstrap intervals over scenes: much narrower than those of the means, since how
hard a scene is cancels out. Evaluations of different protocols, modes or metric conventions are
refused, for their figures mean different things.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax import files
from escherjax.errors import UserError, run_command
from escherjax.reports import page, summary
from escherjax.reports.page import Cell, Series, Table
from escherjax.reports.results import CONSISTENCY, CONSISTENCY_VALUES, SAMPLES
from escherjax.reports.summary import interval, paired_interval

_COLORS = (0, 2, 3, 4, 5, 1)  # of curves; see page.Series

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
    names = [
        part for name in shared for part in (CONSISTENCY_VALUES if name == CONSISTENCY else (name,))
    ]
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
    means = [_estimate(interval(of)) for of in values]
    differences = [_estimate(paired_interval(of, values[0])) for of in values[1:]]
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
        changed = summary.differences(all_settings[0], other)
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


def as_text(found: Comparison) -> str:
    """The runs, and means and differences as a table."""
    runs = zip(found.letters, found.paths, strict=True)
    lines = [f"{letter}  {path}" for letter, path in runs]
    note = "* a 95% interval over scenes that leaves out 0"
    return "\n".join([*lines, "", *_results_table(found).as_text(), "", note])


def write(path: Path, found: Comparison) -> None:
    """Writes the page, whole or not at all."""
    titles = [summary.describe(content) for content in found.summaries]
    runs = [
        (letter, str(place), about)
        for letter, place, (_, about) in zip(found.letters, found.paths, titles, strict=True)
    ]
    changes = [(name, *values) for name, values in found.changes]
    first = found.letters[0]
    note = (
        f"Differences to {first} are paired, scene by scene, over the scenes that all runs have. "
        "Green is better and red is worse where the 95% interval leaves out 0 (*); grey is open."
    )
    page.write(
        path,
        f"{titles[0][0]} · {len(runs)} evaluations",
        f"differences to {first}, {found.paths[0]}",
        [
            page.section("Evaluations", Table(("", "folder", "what"), runs, "facts")),
            page.section("Results", _results_table(found), note=note),
            page.section(
                "Against the number of references",
                page.charts(_curves(found), "number of references", log_x=True),
                note="Bands are 95% intervals of each run's own mean.",
            ),
            page.section(
                "Settings that differ", Table(("field", *found.letters), changes, "facts")
            ),
            _per_scene(found),
        ],
    )


def _results_table(found: Comparison) -> Table:
    first, *others = found.letters
    heads = ["metric", "N", "scenes", *found.letters, *(f"{other} - {first}" for other in others)]
    rows: list[tuple[str | Cell, ...]] = [
        (
            page.heading(row.metric),
            row.count,
            str(len(row.scenes)),
            *(page.estimate(row.metric, mean) for mean in row.means),
            *(_difference(row.metric, difference) for difference in row.differences),
        )
        for row in found.rows
    ]
    return Table(heads, rows, "grouped estimates plain")


def _difference(metric: str, difference: Estimate) -> Cell:
    text = page.estimate(metric, difference, sign=True)
    if not is_clear(difference):
        return Cell(text, "open")
    rises = (difference["mean"] or 0.0) > 0
    better = rises != (metric in page.LOWER_IS_BETTER)
    return Cell(text + " *", "better" if better else "worse")


def _curves(found: Comparison) -> dict[str, list[Series]]:
    rows_of: dict[str, list[Row]] = {}
    for row in found.rows:
        rows_of.setdefault(row.metric, []).append(row)
    return {
        metric: [
            Series(
                f"{letter}  {found.paths[run].name}",
                [(float(row.count), *_bounds(row.means[run])) for row in rows],
                _COLORS[run % len(_COLORS)],
            )
            for run, letter in enumerate(found.letters)
        ]
        for metric, rows in rows_of.items()
    }


def _bounds(mean: Estimate) -> tuple[float | None, float | None, float | None]:
    return mean["mean"], mean["low"], mean["high"]


def _per_scene(found: Comparison) -> page.Part:
    """A tab for each run but the first, of its differences."""
    scenes = {scene for row in found.rows for scene in row.scenes}
    places = [{scene: i for i, scene in enumerate(row.scenes)} for row in found.rows]

    def difference(row: Row, run: int, index: int | None) -> str:
        known = None if index is None else float(row.values[run][index] - row.values[0][index])
        return page.number(row.metric, known, sign=True)

    first, *others = found.letters
    tabs = {
        f"{letter} - {first}": {
            scene: [
                difference(row, run, at.get(scene))
                for row, at in zip(found.rows, places, strict=True)
            ]
            for scene in scenes
        }
        for run, letter in enumerate(others, 1)
    }
    return page.scene_by_scene(
        [f"{page.heading(row.metric)} N={row.count}" for row in found.rows],
        tabs,
        "Differences of each scene's mean. A click on a column's head sorts by it.",
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m escherjax.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="two at least")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write a page, .html")
    arguments = parser.parse_args(argv)
    if len(arguments.runs) < 2:
        raise UserError("runs must be two evaluations or more, got one.")

    out = arguments.out
    with contextlib.nullcontext() if out is None else files.output_file(out):
        found = compare(arguments.runs)
        print(as_text(found))
        if out is not None:
            write(out, found)
            print(out)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])

"""The table of consistency between views, for the report and the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from escherjax.reports import page
from escherjax.reports.results import CONSISTENCY_VALUES as VALUES
from escherjax.reports.results import SAMPLES, TRUE_VIEWS

_TITLES = {SAMPLES: "samples", TRUE_VIEWS: "true views"}


def section(content: dict[str, Any]) -> str:
    """The section of the report; empty where consistency was not asked for."""
    if "consistency" not in content:
        return ""
    rows, styles = [], []
    for count, method, values in _rows(content):
        is_first = method == SAMPLES
        scenes = page.counted(values["num_scenes"], "scene")
        about = f'{count} <span class="faint">({scenes})</span>'
        cells = [_with_number(name, values) for name in VALUES]
        rows.append((about if is_first else "", _TITLES[method], *cells))
        styles.append("group" if is_first else "baseline")
    rule = content["settings"]["consistency"]
    note = (
        "Features matched between views and the cameras' geometry, without truth. TSED: share of "
        f"pairs with {rule['min_matches']} matches or more and a median epipolar distance below "
        f"{rule['max_distance']:g} px; distance: that of such pairs; track error: reprojection "
        "error of points that three or more views share. Medians of a scene, then means over "
        f"scenes with 95% intervals, of views of {content['settings']['weights']['resolution']} px."
        " Plain and look-alike surfaces spoil all of them: read them beside those of true views."
    )
    heads = ("references", "", *map(page.heading, VALUES))
    return page.section(
        "Consistency between views", page.table(heads, rows, row_styles=styles), note=note
    )


def as_text(content: dict[str, Any]) -> list[str]:
    """Lines for a terminal; none where consistency was not asked for."""
    if "consistency" not in content:
        return []
    rows = [("N", "consistency of", "scenes", *(_named(name) for name in VALUES))]
    for count, method, values in _rows(content):
        cells = [_number_text(name, values) for name in VALUES]
        rows.append((count, _TITLES[method], str(values["num_scenes"]), *cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)]


def _rows(content: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    results = content["consistency"]["results"]
    for count in results[SAMPLES]:
        for method, by_count in results.items():
            if count in by_count:
                yield count, method, by_count[count]


def _named(name: str) -> str:
    return f"{page.TITLES[name]} {page.UNITS[name]}" if name in page.UNITS else page.TITLES[name]


def _with_number(name: str, values: dict[str, Any]) -> str:
    """The estimate, and of how many scenes it is where not of all."""
    cell = page.estimate(name, values[name])
    known = values[name]["num_scenes"]
    if known in (0, values["num_scenes"]):
        return cell
    return f'{cell} <span class="faint">({page.counted(known, "scene")})</span>'


def _number_text(name: str, values: dict[str, Any]) -> str:
    of = values[name]
    mean, low, high = (page.number(name, of[key]) for key in ("mean", "low", "high"))
    bounds = "" if of["low"] is None else f" [{low}, {high}]"
    is_of_all = of["num_scenes"] in (0, values["num_scenes"])
    known = "" if is_of_all else f" of {page.counted(of['num_scenes'], 'scene')}"
    return mean + bounds + known

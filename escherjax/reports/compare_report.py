"""A comparison for people: a table for the terminal, and a page."""

from __future__ import annotations

import html
from pathlib import Path

from escherjax.evaluate import report
from escherjax.reports import page
from escherjax.reports.charts import Series, chart, legend
from escherjax.reports.comparison import Comparison, Estimate, Row, is_clear

_STYLES = ("s0", "s2", "s3", "s4", "s5", "s1")


def as_text(found: Comparison) -> str:
    """The runs, and means and differences as a table; * marks intervals that leave out 0."""
    first, *others = found.letters
    lines = [f"{letter}  {path}" for letter, path in zip(found.letters, found.paths, strict=True)]
    heads = ["metric", "N", "scenes", *found.letters, *(f"{o} - {first}" for o in others)]
    cells = [
        [
            page.TITLES[row.metric],
            row.count,
            str(len(row.scenes)),
            *(page.number(row.metric, mean["mean"]) for mean in row.means),
            *(_difference_text(row, difference) for difference in row.differences),
        ]
        for row in found.rows
    ]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (heads, *cells)]
    return "\n".join([*lines, "", *table, "", "* a 95% interval over scenes that leaves out 0"])


def write(path: Path, found: Comparison) -> None:
    """Writes the page, whole or not at all."""
    titles = [report.describe(content) for content in found.summaries]
    first, *others = found.letters
    runs = [
        (f"<b>{letter}</b>", html.escape(str(place)), html.escape(about))
        for letter, place, (_, about) in zip(found.letters, found.paths, titles, strict=True)
    ]
    heads = ["", "references", "scenes", *found.letters, *(f"{o} − {first}" for o in others)]
    rows, styles, last = [], [], ""
    for row in found.rows:
        rows.append(
            [
                page.heading(row.metric) if row.metric != last else "",
                row.count,
                str(len(row.scenes)),
                *(page.estimate(row.metric, mean) for mean in row.means),
                *(_difference_cell(row, difference) for difference in row.differences),
            ]
        )
        styles.append("group" if row.metric != last else "")
        last = row.metric
    changes = [
        (html.escape(name), *(html.escape(value) for value in values))
        for name, values in found.changes
    ]
    note = (
        f"Differences to {first} are paired, scene by scene, over the scenes that all runs have. "
        "Green is better and red is worse where the 95% interval leaves out 0; grey is open."
    )
    page.write(
        path,
        f"{titles[0][0]} · {len(runs)} evaluations",
        f"differences to {first}, {found.paths[0]}",
        [
            page.section("Evaluations", page.table(("", "folder", "what"), runs, "facts")),
            page.section("Results", page.table(heads, rows, "plain", styles), note=note),
            _curves(found),
            page.section(
                "Settings that differ", page.table(("field", *found.letters), changes, "facts")
            ),
            _per_scene(found),
        ],
    )


def _curves(found: Comparison) -> str:
    figures, used = [], []
    for metric in dict.fromkeys(row.metric for row in found.rows):
        rows = [row for row in found.rows if row.metric == metric]
        used = [
            Series(
                f"{letter}  {found.paths[run].name}",
                _STYLES[run % len(_STYLES)],
                [_point(row.count, row.means[run]) for row in rows],
            )
            for run, letter in enumerate(found.letters)
        ]
        drawn = chart(
            f"{metric} against the number of references",
            used,
            "number of references",
            page.UNITS.get(metric, ""),
            log_x=True,
        )
        figures.append(f"<figure><figcaption>{page.heading(metric)}</figcaption>{drawn}</figure>")
    return page.section(
        "Against the number of references",
        f'<div class="charts">{"".join(figures)}</div>',
        legend(used),
        note="Bands are 95% intervals of each run's own mean.",
    )


def _per_scene(found: Comparison) -> str:
    """One table for each run but the first: its differences, sortable."""
    scenes = sorted({scene for row in found.rows for scene in row.scenes})[: report.MAX_ROWS]
    places = [{scene: i for i, scene in enumerate(row.scenes)} for row in found.rows]
    heads = ["scene", *(f"{page.heading(row.metric)} N={row.count}" for row in found.rows)]
    first, *others = found.letters
    tabs, panes = [], []
    for run, letter in enumerate(others, 1):
        rows = [
            [html.escape(scene)]
            + [
                page.number(
                    row.metric,
                    float(row.values[run][at[scene]] - row.values[0][at[scene]])
                    if scene in at
                    else None,
                    sign=True,
                )
                for row, at in zip(found.rows, places, strict=True)
            ]
            for scene in scenes
        ]
        pane, pressed = f"scenes_{letter}", "true" if run == 1 else "false"
        tabs.append(
            f'<button type="button" aria-pressed="{pressed}" data-pane="{pane}">'
            f"{letter} − {first}</button>"
        )
        hidden = "" if run == 1 else " hidden"
        panes.append(f'<div id="{pane}"{hidden}>{page.table(heads, rows, "sortable plain")}</div>')
    find = '<input class="find" type="search" placeholder="find a scene" aria-label="find a scene">'
    return page.section(
        "Scene by scene",
        f'<div class="tabs">{"".join(tabs)}{find}</div>',
        *panes,
        note="Differences of each scene's mean. A click on a column's head sorts by it.",
    )


def _point(count: str, mean: Estimate) -> tuple[float, float, float | None, float | None]:
    assert mean["mean"] is not None  # values are finite
    return float(count), mean["mean"], mean["low"], mean["high"]


def _difference_text(row: Row, difference: Estimate) -> str:
    mean, low, high = (page.number(row.metric, difference[k], True) for k in difference)
    return f"{mean} [{low}, {high}]" + (" *" if is_clear(difference) else "")


def _difference_cell(row: Row, difference: Estimate) -> str:
    cell = page.estimate(row.metric, difference, sign=True)
    if not is_clear(difference):
        return f'<span class="faint">{cell}</span>'
    rises = (difference["mean"] or 0.0) > 0
    better = rises != (row.metric in page.LOWER_IS_BETTER)
    return f'<span class="{"better" if better else "worse"}">{cell}</span>'

"""The report over the checkpoints of one training run: figures against the step."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from escherjax.evaluate import report
from escherjax.reports import page
from escherjax.reports.charts import Series, chart, legend
from escherjax.reports.results import NEAREST, SAMPLES

_MAX_COUNTS = 5  # curves that colours tell apart, beside the baseline's


def write(out: Path, rows: list[dict[str, Any]], settings: dict[str, Any]) -> Path:
    """Writes `out/report.html`; rows: of follow.jsonl, by step."""
    last = rows[-1]["results"][SAMPLES]
    first_count = next(iter(last.values()))
    names = [name for name in settings["metrics"] if name in first_count]
    counts = list(last)[:_MAX_COUNTS]
    figures, used = [], []
    for name in names:
        used = [
            Series(
                f"N = {count}",
                f"s{index if index == 0 else index + 1}",
                [_point(row, SAMPLES, count, name) for row in rows],
            )
            for index, count in enumerate(counts)
        ]
        copied = [_point(row, NEAREST, counts[-1], name) for row in rows]
        baseline = f"nearest reference, copied (N = {counts[-1]})"
        used.append(Series(baseline, "s1", copied))
        drawn = chart(f"{name} against the step", used, "step", page.UNITS.get(name, ""), False)
        figures.append(f"<figure><figcaption>{page.heading(name)}</figcaption>{drawn}</figure>")
    heads = ["step"] + [f"{page.heading(name)} N={count}" for name in names for count in last]
    cells = [
        [f'<a href="{html.escape(row["folder"])}/{report.FILE_NAME}">{row["step"]:,}</a>']
        + [
            page.estimate(name, row["results"][SAMPLES][count][name])
            for name in names
            for count in last
        ]
        for row in rows
    ]
    protocol = settings["protocol"]
    path = out / report.FILE_NAME
    page.write(
        path,
        f"{protocol['protocol']} · {protocol['mode']} · over training",
        f"{len(rows)} checkpoints, the last of step {rows[-1]['step']:,}",
        [
            page.section(
                "Against the step", f'<div class="charts">{"".join(figures)}</div>', legend(used)
            ),
            page.section("Step by step", page.table(heads, cells, "plain")),
            page.section("How this was computed", page.facts(settings, "Protocol and sampling")),
        ],
    )
    return path


def _point(
    row: dict[str, Any], method: str, count: str, name: str
) -> tuple[float, float, float | None, float | None]:
    values = row["results"][method][count][name]
    return float(row["step"]), values["mean"], values["low"], values["high"]

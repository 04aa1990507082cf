"""`report.html` of an evaluation: tables, curves and pictures of scenes, in one file.

It asks nothing of any server, so it opens anywhere and can be mailed.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from escherjax.evaluate import consistency_report, published
from escherjax.evaluate import pictures as case_pictures
from escherjax.evaluate.published import Figures
from escherjax.reports import page, summary
from escherjax.reports.charts import Series, chart, legend
from escherjax.reports.results import NEAREST, SAMPLES

FILE_NAME = "report.html"
MAX_PICTURE_BYTES = 24 * 2**20
METHOD_TITLES = {SAMPLES: "samples", NEAREST: "nearest reference"}


def write(out: Path, content: dict[str, Any]) -> Path:
    """Writes the report of the evaluation in `out`; content: of its summary.json."""
    kept, left_out = pictures(out, content)
    body = [
        page.lines(
            f"{page.counted(content['num_skipped'], 'case')} could not be used",
            [
                f"{row['scene']}, N = {row['num_references']}: {row['reason']}"
                for row in content["skipped"]
            ],
        ),
        _results(content),
        _curves(content),
        consistency_report.section(content),
        _per_scene(content),
        _gallery(content, kept, left_out),
        page.section(
            "How this was computed",
            page.facts(content["settings"], "Protocol, weights and sampling", is_open=True),
        ),
    ]
    title, about = summary.describe(content)
    path = out / FILE_NAME
    page.write(path, title, about, body, kept)
    return path


def metric_names(content: dict[str, Any]) -> list[str]:
    """Metrics that the summary has values of."""
    first = next(iter(content["results"][SAMPLES].values()))
    return [name for name in content["settings"]["metrics"] if name in first]


def as_text(content: dict[str, Any]) -> str:
    """The results as a table for a terminal."""
    names = metric_names(content)
    rows = [("N", "method", "scenes", *(page.TITLES[name] for name in names))]
    for count in content["results"][SAMPLES]:
        for method, by_count in content["results"].items():
            values = by_count[count]
            cells = []
            for name in names:
                mean, low, high = (values[name][key] for key in ("mean", "low", "high"))
                bounds = (
                    ""
                    if low is None
                    else (f" [{page.number(name, low)}, {page.number(name, high)}]")
                )
                cells.append(page.number(name, mean) + bounds)
            rows.append((count, METHOD_TITLES[method], str(values["num_scenes"]), *cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += consistency_report.as_text(content)
    if content["num_skipped"]:
        number = page.counted(content["num_skipped"], "case")
        lines.append(f"{number} could not be used; summary.json says which and why")
    return "\n".join(lines)


def _results(content: dict[str, Any]) -> str:
    names, rows, styles = metric_names(content), [], []
    if not names and "consistency" in content:
        return ""
    if not names:
        return page.section(
            "Results", note="This protocol has no true views: there is nothing to score."
        )
    for count, samples in content["results"][SAMPLES].items():
        nearest = content["results"][NEAREST][count]
        gain = content["gain_over_nearest_reference"][count]
        scenes = page.counted(samples["num_scenes"], "scene")
        views = page.counted(samples["num_views"], "view")
        shown = f'{count} <span class="faint">({scenes}, {views})</span>'
        paper = _published(content, int(count), names)
        rows += [
            (shown, "samples", *(page.estimate(name, samples[name]) for name in names)),
            (
                "",
                "nearest reference, copied",
                *(page.estimate(name, nearest[name]) for name in names),
            ),
            ("", "gain over it", *(page.estimate(name, gain[name], sign=True) for name in names)),
            *(("", f"{method}, the paper's", *cells) for method, cells in paper),
        ]
        styles += ["group", "baseline", "baseline", *["published"] * len(paper)]
    heads = ("references", "", *map(page.heading, names))
    note = (
        "Mean over scenes of each scene's mean over its scored views, with a 95% bootstrap "
        "interval over scenes. The gain is paired: the same scenes and views."
    )
    warning = ""
    if "published" in styles:
        scenes = content["settings"]["protocol"]["published_num_scenes"]
        note += f" In italics: {published.SOURCE}, over {scenes} scenes; not computed here."
        warning = page.lines(
            "Not computed as the paper's figures were", differs_from_paper(content)
        )
    return page.section("Results", page.table(heads, rows, row_styles=styles), warning, note=note)


def paper_figures(content: dict[str, Any]) -> list[Figures]:
    """The paper's figures that may stand beside these: of the same protocol, in its own mode."""
    protocol = content["settings"]["protocol"]
    return published.figures(protocol["protocol"]) if protocol["mode"] == "faithful" else []


def differs_from_paper(content: dict[str, Any]) -> list[str]:
    """What keeps these figures from being set against the paper's, which `published` describes."""
    settings = content["settings"]
    scenes = min(of["num_scenes"] for of in content["results"][SAMPLES].values())
    pairs = [
        ("scenes", scenes, settings["protocol"]["published_num_scenes"]),
        ("pixels a side", settings["weights"]["resolution"], 256),
        ("sampling steps", settings["sampling"]["num_steps"], 50),
        ("guidance", settings["sampling"]["guidance_scale"], 3.0),
        ("sampler", settings["sampling"]["sampler"], "ddim"),
    ]
    return [
        f"{name}: {ours} here, {theirs} there" for name, ours, theirs in pairs if ours != theirs
    ]


def _published(
    content: dict[str, Any], count: int, names: Sequence[str]
) -> list[tuple[str, list[str]]]:
    """(method, cells of the metrics) of what the paper gives for N = `count`."""
    return [
        (entry.method, [page.published(name, entry.metrics.get(name)) for name in names])
        for entry in paper_figures(content)
        if entry.num_references == count and entry.metrics.keys() & set(names)
    ]


def _curves(content: dict[str, Any]) -> str:
    figures, used = [], []
    for name in metric_names(content):
        used = [
            Series(
                METHOD_TITLES[method],
                f"s{index}",
                [
                    (float(count), *(values[name][key] for key in ("mean", "low", "high")))
                    for count, values in by_count.items()
                ],
            )
            for index, (method, by_count) in enumerate(content["results"].items())
        ]
        used += _paper_curves(content, name)
        drawn = chart(
            f"{name} against the number of references",
            used,
            "number of references",
            page.UNITS.get(name, ""),
            log_x=True,
        )
        figures.append(f"<figure><figcaption>{page.heading(name)}</figcaption>{drawn}</figure>")
    if not figures:
        return ""
    return page.section(
        "Against the number of references",
        f'<div class="charts">{"".join(figures)}</div>',
        legend(used),
        note="Bands are 95% intervals over scenes. Point at a marker for its numbers.",
    )


def _paper_curves(content: dict[str, Any], name: str) -> list[Series]:
    """The paper's figures of methods that it gives for the numbers of references here."""
    points: dict[str, list[tuple[float, float, None, None]]] = {}
    for entry in paper_figures(content):
        if str(entry.num_references) in content["results"][SAMPLES] and name in entry.metrics:
            point = (float(entry.num_references), entry.metrics[name], None, None)
            points.setdefault(entry.method, []).append(point)
    of_escher = {method: p for method, p in points.items() if method.startswith("EscherNet")}
    return [
        Series(f"{method}, the paper's", f"s{2 + index}", places, markers_only=True)
        for index, (method, places) in enumerate(of_escher.items())
    ]


def _per_scene(content: dict[str, Any]) -> str:
    names, counts = metric_names(content), list(content["results"][SAMPLES])
    if not names:
        return ""
    per_scene = content["per_scene"]
    scenes = sorted({scene for of in per_scene[SAMPLES].values() for scene in of})
    heads = ["scene"] + [f"{page.heading(name)} N={n}" for name in names for n in counts]
    tabs, panes = [], []
    for index, method in enumerate(per_scene):
        rows = [
            [html.escape(scene)]
            + [
                page.number(name, per_scene[method][n].get(scene, {}).get(name))
                for name in names
                for n in counts
            ]
            for scene in scenes[: page.MAX_ROWS]
        ]
        pane = f"scenes_{method}"
        pressed = "true" if index == 0 else "false"
        tabs.append(
            f'<button type="button" aria-pressed="{pressed}" data-pane="{pane}">'
            f"{METHOD_TITLES[method]}</button>"
        )
        hidden = " hidden" if index else ""
        panes.append(f'<div id="{pane}"{hidden}>{page.table(heads, rows, "sortable plain")}</div>')
    note = "A click on a column's head sorts by it."
    if len(scenes) > page.MAX_ROWS:
        note += f" The first {page.MAX_ROWS} of {len(scenes)} scenes; summary.json has all."
    find = '<input class="find" type="search" placeholder="find a scene" aria-label="find a scene">'
    return page.section(
        "Scene by scene", f'<div class="tabs">{"".join(tabs)}{find}</div>', *panes, note=note
    )


def _gallery(content: dict[str, Any], kept: dict[str, Any], left_out: Sequence[str]) -> str:
    if not kept["scenes"]:
        return ""
    every = {scene for of in content["per_scene"][SAMPLES].values() for scene in of}
    note = (
        f"{len(kept['scenes'])} of {len(every)} scenes, evenly spread over the list and chosen "
        "before anything was drawn. Pictures here are compressed and at most "
        f"{case_pictures.SIDE} px wide; scores are those of the full views. A click on a view "
        "enlarges it."
    )
    if left_out:
        note += f" Left out to keep this page small: {', '.join(left_out)}."
    ramp = (
        '<p class="note">Error: absolute difference, mean over RGB, 0<span class="ramp"></span>'
        f"{case_pictures.ERROR_OF_FULL_COLOR:g} or more, where 1 is black against white.</p>"
    )
    return page.section("Scenes", ramp, '<div id="scenes"></div>', note=note)


def pictures(out: Path, content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(what the page's script draws, the scenes left out for size).

    The former has `images`, data URIs each once, and `scenes`, which name them by number.
    """
    numbers: dict[str, int] = {}
    scenes: list[dict[str, Any]] = []
    left_out: list[str] = []
    per_scene = content["per_scene"][SAMPLES]
    for scene in sorted({scene for of in per_scene.values() for scene in of}):
        loaded = {
            count: case_pictures.load(out, scene, int(count))
            for count in per_scene
            if scene in per_scene[count]
        }
        cases = {count: one for count, one in loaded.items() if one is not None}
        uris = {uri for one in cases.values() for uri in _uris(one)} - numbers.keys()
        if not cases:
            continue
        if sum(map(len, numbers)) + sum(map(len, uris)) > MAX_PICTURE_BYTES:
            left_out.append(scene)
            continue
        numbers |= {uri: len(numbers) + i for i, uri in enumerate(sorted(uris))}
        scenes.append(
            {
                "id": scene,
                "cases": {
                    count: _numbered(one, numbers, per_scene[count][scene])
                    for count, one in cases.items()
                },
            }
        )
    return {"images": list(numbers), "scenes": scenes}, left_out


def _uris(case: dict[str, Any]) -> list[str]:
    kinds = ("truth", "sample", "error")
    views = [target[kind] for target in case["targets"] for kind in kinds if kind in target]
    return case["references"] + views


def _numbered(
    case: dict[str, Any], numbers: dict[str, int], means: dict[str, float]
) -> dict[str, Any]:
    """The case with numbers in the place of pictures."""
    said = [f"{page.TITLES[name]} {page.number(name, value)}" for name, value in means.items()]
    return {
        "side": case["side"],
        "num_targets": case["num_targets"],
        "means": " · ".join(said),
        "references": [numbers[uri] for uri in case["references"]],
        "targets": [
            {k: numbers[v] if k in ("truth", "sample", "error") else v for k, v in target.items()}
            for target in case["targets"]
        ],
    }

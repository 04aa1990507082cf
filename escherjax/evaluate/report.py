"""`report.html` of an evaluation, and the same tables for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from escherjax.evaluate import pictures as case_pictures
from escherjax.evaluate import published
from escherjax.evaluate.published import Figures
from escherjax.reports import page, results, summary
from escherjax.reports.page import Part, Series, Table
from escherjax.reports.results import NEAREST, SAMPLES, TRUE_VIEWS

FILE_NAME = "report.html"
METHOD_TITLES = {
    SAMPLES: "samples",
    NEAREST: "nearest reference",
    TRUE_VIEWS: "true views",
}


def write(out: Path, content: dict[str, Any]) -> Path:
    """Writes the report of the evaluation in `out`; content: of its summary.json."""
    shown, left_out = case_pictures.gather(out, content["per_scene"][SAMPLES])
    title, about = summary.describe(content)
    sections = [
        _skipped(content),
        _results(content),
        _curves(content),
        _consistency(content),
        _per_scene(content),
        _gallery(content, len(shown["scenes"]), left_out),
        page.section(
            "How this was computed",
            page.facts("Protocol, weights and sampling", content["settings"], is_open=True),
        ),
    ]
    path = out / FILE_NAME
    page.write(path, title, about, sections, shown)
    return path


def as_text(content: dict[str, Any]) -> str:
    """The results as tables for a terminal."""
    lines = _results_table(content).as_text()
    if "consistency" in content:
        lines += ["", *_consistency_table(content).as_text()]
    if content["num_skipped"]:
        number = page.counted(content["num_skipped"], "case")
        lines.append(f"{number} could not be used; summary.json lists them with the reasons")
    return "\n".join(lines)


def metric_names(content: dict[str, Any]) -> list[str]:
    """Metrics that the summary has values of."""
    first = next(iter(content["results"][SAMPLES].values()))
    return [name for name in content["settings"]["metrics"] if name in first]


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


def _skipped(content: dict[str, Any]) -> Part | None:
    texts = [
        f"{row['scene']}, N = {row['num_references']}: {row['reason']}"
        for row in content["skipped"]
    ]
    title = f"{page.counted(len(texts), 'case')} could not be used"
    return page.section("", page.lines(title, texts)) if texts else None


def _results_table(content: dict[str, Any]) -> Table:
    names, rows, styles = metric_names(content), [], []
    for count, samples in content["results"][SAMPLES].items():
        sizes = str(samples["num_scenes"]), str(samples["num_views"])
        nearest = content["results"][NEAREST][count]
        gain = content["gain_over_nearest_reference"][count]
        for title, values, sign in (
            (METHOD_TITLES[SAMPLES], samples, False),
            (METHOD_TITLES[NEAREST], nearest, False),
            ("gain over it", gain, True),
        ):
            cells = [page.estimate(name, values[name], sign) for name in names]
            rows.append((count, title, *sizes, *cells))
        styles += ["", "baseline", "baseline"]
        for entry in paper_figures(content):
            if entry.num_references == int(count) and entry.metrics.keys() & set(names):
                cells = [_published(name, entry.metrics.get(name)) for name in names]
                scenes = str(content["settings"]["protocol"]["published_num_scenes"])
                rows.append((count, f"{entry.method}, the paper's", scenes, "", *cells))
                styles.append("published")
    heads = ("N", "method", "scenes", "views", *map(page.heading, names))
    return Table(heads, rows, "grouped estimates", styles)


def _results(content: dict[str, Any]) -> Part | None:
    if not metric_names(content):
        if "consistency" in content:
            return None
        note = "This protocol has no true views: there is nothing to score."
        return page.section("Results", note=note)
    note = (
        "Mean over scenes of each scene's mean over its scored views, by the number of references "
        "N, with a 95% bootstrap interval over scenes. The gain is paired: the same scenes and "
        "views."
    )
    table = _results_table(content)
    parts: list[Part | Table] = [table]
    if "published" in table.row_styles:
        note += f" In italics: {published.SOURCE}; not computed here."
        if differing := differs_from_paper(content):
            parts.append(page.lines("Not computed as the paper's figures were", differing))
    return page.section("Results", *parts, note=note)


def _published(name: str, value: float | None) -> str:
    """A value with the decimals that papers give."""
    return "–" if value is None else f"{value:.{2 if name == 'psnr' else 3}f}"


def _curves(content: dict[str, Any]) -> Part | None:
    names = metric_names(content)
    if not names:
        return None
    of_metrics = {
        name: [
            *(
                Series(
                    METHOD_TITLES[method],
                    [
                        (float(count), *(values[name][key] for key in ("mean", "low", "high")))
                        for count, values in by_count.items()
                    ],
                    color,
                )
                for color, (method, by_count) in enumerate(content["results"].items())
            ),
            *_paper_curves(content, name),
        ]
        for name in names
    }
    return page.section(
        "Against the number of references",
        page.charts(of_metrics, "number of references", log_x=True),
        note="Bands are 95% intervals over scenes. Point at a marker for its numbers.",
    )


def _paper_curves(content: dict[str, Any], name: str) -> list[Series]:
    """The paper's figures of EscherNet for the numbers of references here."""
    points: dict[str, list[tuple[float, float, None, None]]] = {}
    for entry in paper_figures(content):
        if str(entry.num_references) in content["results"][SAMPLES] and name in entry.metrics:
            point = (float(entry.num_references), entry.metrics[name], None, None)
            points.setdefault(entry.method, []).append(point)
    of_escher = {method: p for method, p in points.items() if method.startswith("EscherNet")}
    return [
        Series(f"{method}, the paper's", places, color, markers_only=True)
        for color, (method, places) in enumerate(of_escher.items(), 2)
    ]


def _consistency_table(content: dict[str, Any]) -> Table:
    found = content["consistency"]["results"]
    rows = [
        (
            count,
            METHOD_TITLES[method],
            str(scenes := by_count[count]["num_scenes"]),
            *(
                page.estimate(name, by_count[count][name], num_scenes=scenes)
                for name in results.CONSISTENCY_VALUES
            ),
        )
        for count in found[SAMPLES]
        for method, by_count in found.items()
        if count in by_count
    ]
    styles = ["" if row[1] == METHOD_TITLES[SAMPLES] else "baseline" for row in rows]
    heads = ("N", "consistency of", "scenes", *map(page.heading, results.CONSISTENCY_VALUES))
    return Table(heads, rows, "grouped estimates", styles)


def _consistency(content: dict[str, Any]) -> Part | None:
    if "consistency" not in content:
        return None
    rule = content["settings"]["consistency"]
    note = (
        "Features matched between views and the cameras' geometry, without truth. TSED: share of "
        f"pairs with {rule['min_matches']} matches or more and a median epipolar distance below "
        f"{rule['max_distance']:g} px; distance: that of such pairs; track error: reprojection "
        "error of points that three or more views share. Medians of a scene, then means over "
        f"scenes with 95% intervals, of views of {content['settings']['weights']['resolution']} px."
        " Plain and look-alike surfaces spoil all of them: read them beside those of true views."
    )
    return page.section("Consistency between views", _consistency_table(content), note=note)


def _per_scene(content: dict[str, Any]) -> Part | None:
    names, counts = metric_names(content), list(content["results"][SAMPLES])
    if not names:
        return None
    tabs = {
        METHOD_TITLES[method]: {
            scene: [
                page.number(name, by_count[count].get(scene, {}).get(name))
                for name in names
                for count in counts
            ]
            for scene in {scene for of in by_count.values() for scene in of}
        }
        for method, by_count in content["per_scene"].items()
    }
    columns = [f"{page.heading(name)} N={count}" for name in names for count in counts]
    return page.scene_by_scene(columns, tabs, "A click on a column's head sorts by it.")


def _gallery(content: dict[str, Any], num_shown: int, left_out: list[str]) -> Part | None:
    if not num_shown:
        return None
    every = {scene for of in content["per_scene"][SAMPLES].values() for scene in of}
    note = (
        f"{num_shown} of {len(every)} scenes, evenly spread over the list and chosen before "
        "anything was sampled. Pictures here are compressed and at most "
        f"{case_pictures.SIDE} px wide; scores are those of the full views. A click on a view "
        "enlarges it."
    )
    if left_out:
        note += f" Left out to keep this page small: {', '.join(left_out)}."
    ramp = {"kind": "ramp", "full": f"{case_pictures.ERROR_OF_FULL_COLOR:g}"}
    return page.section("Scenes", ramp, {"kind": "scenes"}, note=note)

"""Self-contained pages: sections of tables, charts and pictures as JSON in page.html.

The scripts beside it show them. A page opens offline and asks nothing of any server.

A table's cell is its text, or `Cell` where it has a style or a link; the same tables are printed in
terminals.
"""

from __future__ import annotations

import html
import importlib.resources
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from escherjax.files import whole_file

# What readers see for the names in the files.
TITLES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "tsed": "TSED",
    "distance": "distance",
    "track_error": "track error",
    "matches_per_pair": "matches a pair",
}
UNITS = {"psnr": "dB", "distance": "px", "track_error": "px"}
LOWER_IS_BETTER = ("lpips", "distance", "track_error")
_DECIMALS = {"psnr": 2, "tsed": 3, "distance": 2, "track_error": 2, "matches_per_pair": 1}

MAX_ROWS = 1000  # scenes in a table; all of them are in summary.json
_SCRIPTS = ("page.js", "scenes.js", "cameras.js")

Part = dict[str, Any]  # of a section; its "kind" decides how page.js shows it
Estimate = Mapping[str, Any]  # mean, low and high; the latter two None where they are not known


class Cell(NamedTuple):
    """A cell of a table that is not plain."""

    text: str
    style: str = ""  # CSS class
    address: str = ""  # where a click on it goes


class Table(NamedTuple):
    """A table; the first cell of a row is its head."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str] | Sequence[str | Cell]]
    # Words: grouped (equal first cells are shown once), estimates, sortable, plain, facts.
    style: str = ""
    row_styles: Sequence[str] = ()  # CSS class of each row

    def part(self) -> Part:
        return {"kind": "table", **self._asdict()}

    def as_text(self) -> list[str]:
        """Its lines for a terminal, without rows of style "published"."""
        cells = [
            [(cell if isinstance(cell, str) else cell.text).rstrip(" ↑↓") for cell in row]
            for row, style in zip_longest(self.rows, self.row_styles)
            if style != "published"
        ]
        heads = [head.rstrip(" ↑↓") for head in self.heads]
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (heads, *cells)]


class Series(NamedTuple):
    """One curve of a chart."""

    title: str  # for the legend
    points: Sequence[tuple[float, Any, Any, Any]]  # x, and mean, low and high of an estimate
    color: int  # 0 to 5; 1 is the baseline's grey
    markers_only: bool = False


def write(
    path: Path,
    title: str,
    about: str,
    sections: Iterable[Part | None],
    pictures: Mapping[str, Any] | None = None,
) -> None:
    """Writes a page, whole or not at all.

    Args:
      path: the page's file.
      title: plain text.
      about: a line below the title.
      sections: what `section` makes; None is left out.
      pictures: what a part of kind "scenes" shows: `images`, data URIs each once, and `scenes`,
        which name them by number.
    """
    folder = importlib.resources.files("escherjax.reports")
    shown = {"sections": [one for one in sections if one], **(pictures or {})}
    # "</script>" in a name would end the script
    data = json.dumps(shown, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    text = string.Template(folder.joinpath("page.html").read_text()).substitute(
        title=html.escape(title),
        about=html.escape(about),
        data=data,
        script=script(),
    )
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


def script() -> str:
    """The JavaScript of every page."""
    folder = importlib.resources.files("escherjax.reports")
    return "\n".join(folder.joinpath(name).read_text() for name in _SCRIPTS)


def section(title: str, *parts: Part | Table, note: str = "") -> Part:
    """A heading, a note and what is below them."""
    shown = [part.part() if isinstance(part, Table) else part for part in parts]
    return {"title": title, "note": note, "parts": shown}


def facts(title: str, values: Mapping[str, Any], is_open: bool = False) -> Part:
    """A folding list of nested values."""
    rows = [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in flat(values).items()
    ]
    return {"kind": "facts", "title": title, "rows": rows, "open": is_open}


def lines(title: str, texts: Sequence[str], most: int = 200, is_open: bool = True) -> Part:
    """A folding list of warnings."""
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return {"kind": "lines", "title": title, "texts": [*texts[:most], *more], "open": is_open}


def charts(of_metrics: Mapping[str, Sequence[Series]], x_label: str, log_x: bool) -> Part:
    """A chart of each metric against the same x."""
    shown = [
        {
            "title": heading(name),
            "unit": UNITS.get(name, ""),
            "series": [one._asdict() for one in series],
        }
        for name, series in of_metrics.items()
    ]
    return {"kind": "charts", "charts": shown, "x_label": x_label, "log_x": log_x}


def scene_by_scene(
    columns: Sequence[str], tabs: Mapping[str, Mapping[str, Sequence[str]]], note: str
) -> Part:
    """A section with a sortable table in each tab, of the cells of each scene."""
    scenes = sorted({scene for cells in tabs.values() for scene in cells})
    if len(scenes) > MAX_ROWS:
        note += f" The first {MAX_ROWS} of {len(scenes)} scenes; summary.json has all."
    blank = ["–"] * len(columns)
    tables = [
        (
            title,
            Table(
                ("scene", *columns),
                [(scene, *cells.get(scene, blank)) for scene in scenes[:MAX_ROWS]],
                "sortable plain",
            ).part(),
        )
        for title, cells in tabs.items()
    ]
    return section("Scene by scene", {"kind": "tabs", "tabs": tables}, note=note)


def number(name: str, value: float | None, sign: bool = False) -> str:
    """A metric's value with the decimals it is read with; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{_DECIMALS.get(name, 4)}f}"


def estimate(name: str, values: Estimate, sign: bool = False, num_scenes: int | None = None) -> str:
    """The mean, its interval where there is one, and of how many scenes where not of num_scenes."""
    mean, low, high = (number(name, values[key], sign) for key in ("mean", "low", "high"))
    bounds = "" if values["low"] is None or values["high"] is None else f" [{low}, {high}]"
    known = values.get("num_scenes", num_scenes)
    is_of_all = num_scenes is None or known in (0, num_scenes)
    return mean + bounds + ("" if is_of_all else f" of {counted(known, 'scene')}")


def counted(count: int, name: str) -> str:
    """Such as "1 scene" and "2,000 scenes"."""
    return f"{count:,} {name}" + ("" if count == 1 else "s")


def heading(name: str) -> str:
    """A column's title: name, unit, and which way is better."""
    unit = f" {UNITS[name]}" if name in UNITS else ""
    return f"{TITLES.get(name, name)}{unit} {'↓' if name in LOWER_IS_BETTER else '↑'}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by names joined with dots (flax's own function takes seconds to import)."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value
    return values

"""Self-contained pages: page.html filled in. They open offline and ask nothing of any server."""

from __future__ import annotations

import html
import importlib.resources
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
MAX_ROWS = 1000  # scenes in a table; all of them are in summary.json
UNITS = {"psnr": "dB", "distance": "px", "track_error": "px"}
LOWER_IS_BETTER = ("lpips", "distance", "track_error")
_DECIMALS = {
    "psnr": 2,
    "ssim": 4,
    "lpips": 4,
    "tsed": 3,
    "distance": 2,
    "track_error": 2,
    "matches_per_pair": 1,
}


def write(path: Path, title: str, about: str, body: Iterable[str], pictures: Any = None) -> None:
    """Writes a page, whole or not at all.

    title, about: plain text; body: HTML, whose text is escaped already; pictures: what the script
    of page.html draws into #scenes.
    """
    template = importlib.resources.files("escherjax.reports").joinpath("page.html").read_text()
    # "</script>" in a name would end the script
    data = json.dumps(pictures, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    text = string.Template(template).substitute(
        title=html.escape(title), about=html.escape(about), body="\n".join(body), data=data
    )
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


def number(name: str, value: float | None, sign: bool = False) -> str:
    """A metric's value with the decimals it is read with; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{_DECIMALS.get(name, 4)}f}"


def published(name: str, value: float | None) -> str:
    """A value with the decimals that papers give."""
    return "–" if value is None else f"{value:.{2 if name == 'psnr' else 3}f}"


def counted(count: int, name: str) -> str:
    """Such as "1 scene" and "2,000 scenes"."""
    return f"{count:,} {name}" + ("" if count == 1 else "s")


def estimate(name: str, values: Mapping[str, float | None], sign: bool = False) -> str:
    """A cell: the mean, and its interval where there is one."""
    text = f"<b>{number(name, values['mean'], sign)}</b>"
    if values["low"] is None or values["high"] is None:
        return text
    low, high = (number(name, values[end], sign) for end in ("low", "high"))
    return f'{text} <span class="interval">[{low}, {high}]</span>'


def heading(name: str) -> str:
    """A column's title: name, unit, and which way is better."""
    unit = f" {UNITS[name]}" if name in UNITS else ""
    arrow = "↓" if name in LOWER_IS_BETTER else "↑"
    better = "lower is better" if name in LOWER_IS_BETTER else "higher is better"
    return f'{TITLES.get(name, name)}{unit} <span title="{better}">{arrow}</span>'


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    style: str = "",
    row_styles: Sequence[str] = (),
    caption: str = "",
) -> str:
    """A table of cells that are HTML already; the first cell of a row is its head.

    style: class of the table; with "sortable" the script sorts it by the column clicked, by a
    cell's number. row_styles: class of each row.
    """
    said = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    top = "".join(f'<th scope="col">{head}</th>' for head in heads)
    lines = []
    for index, (first, *cells) in enumerate(rows):
        kind = f' class="{row_styles[index]}"' if index < len(row_styles) else ""
        inner = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr{kind}><th scope="row">{first}</th>{inner}</tr>')
    return (
        f'<div class="scroll"><table class="{style}">{said}<thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def section(title: str, *parts: str, note: str = "") -> str:
    said = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{said}{''.join(parts)}</section>"


def facts(values: Mapping[str, Any], title: str, is_open: bool = False) -> str:
    """A folding list of nested values."""
    rows = [
        (html.escape(name), html.escape(value if isinstance(value, str) else json.dumps(value)))
        for name, value in flat(values).items()
    ]
    opened = " open" if is_open else ""
    return (
        f"<details{opened}><summary>{html.escape(title)}</summary>"
        f"{table(('field', 'value'), rows, 'facts')}</details>"
    )


def lines(title: str, texts: Sequence[str], most: int = 200) -> str:
    """A folding list of sentences, open; empty for none."""
    if not texts:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts[:most])
    more = f"<li>and {len(texts) - most} more</li>" if len(texts) > most else ""
    return (
        f'<details class="warning" open><summary>{html.escape(title)}</summary>'
        f"<ul>{items}{more}</ul></details>"
    )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by names that are joined by dots (flax's takes seconds to import)."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value
    return values

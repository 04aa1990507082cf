"""One HTML page about a data set: inspect_page.html, filled in. It needs no network."""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from data_prep.inspect.epipolar import Agreement
from escherjax.data import images
from escherjax.data.shards import Scene

THUMBNAIL = 96  # pixels of the longer side
LINES_SHOWN = 10_000


def scene_data(
    scene: Scene, max_views: int, warnings: Sequence[str], agreement: Agreement | None
) -> dict[str, Any]:
    """What the page's script draws of one scene; its pictures can be decoded, its poses are finite.

    Of at most `max_views` views, evenly spread: number, thumbnail (data URI), camera centre `at`,
    axes `right`, `down`, `forward` in the world, and the picture's corners on the plane one unit
    ahead of the camera, as [left, top, right, bottom].
    """
    chosen = np.unique(np.linspace(0, scene.num_views - 1, max_views).round().astype(int))
    views = []
    for view in chosen.tolist():
        K, pose = scene.K[view].astype(float), scene.c2w[view].astype(float)
        corners = (np.array([0, 0, scene.width, scene.height]) - K[[0, 1, 0, 1], 2]) / (
            K[[0, 1, 0, 1], [0, 1, 0, 1]]
        )
        entry = {
            "view": view,
            "picture": thumbnail(scene.images[view]),
            "at": _rounded(pose[:3, 3]),
            "right": _rounded(pose[:3, 0]),
            "down": _rounded(pose[:3, 1]),
            "forward": _rounded(pose[:3, 2]),
            "corners": _rounded(corners),
        }
        if agreement is not None:
            distance = agreement.distance[view]
            entry["epipolar"] = round(float(distance), 2) if np.isfinite(distance) else None
            entry["outlier"] = view in agreement.outliers
        views.append(entry)
    more = [f"... and {len(warnings) - 5} more."] if len(warnings) > 5 else []
    warnings = [*warnings[:5], *more]
    if agreement is not None and agreement.scene_warning:
        warnings.append(agreement.scene_warning)
    return {
        "id": scene.scene_id,
        "about": f"{scene.source}, {scene.num_views} views of {scene.width} x {scene.height}"
        + (f", {len(views)} shown" if len(views) < scene.num_views else ""),
        "warnings": warnings,
        "views": views,
    }


def thumbnail(data: bytes) -> str:
    """A small JPEG of an encoded picture over white, as a data URI."""
    picture = Image.fromarray(
        images.on_background(images.decode_image(data, "picture"), images.WHITE)
    )
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def render(
    title: str,
    rows: Sequence[tuple[str, str]],
    histograms: Sequence[tuple[str, Sequence[tuple[float, float, int]]]],
    lists: Mapping[str, Sequence[str]],
    scenes: Sequence[Mapping[str, Any]],
) -> str:
    """The page: statistics as (name, value) rows, histograms as (from, to, count) bins, lists of
    findings, and scenes as `scene_data` gives them. All text is escaped."""
    template = importlib.resources.files("data_prep.inspect").joinpath("page.html").read_text()
    # "</script>" in a name would end the script
    data = json.dumps(list(scenes), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return string.Template(template).substitute(
        title=html.escape(title),
        rows="".join(
            f"<tr><th>{html.escape(name).replace('  ', '&emsp;')}</th>"
            f"<td>{html.escape(value)}</td></tr>"
            for name, value in rows
        ),
        histograms="".join(_histogram(*entry) for entry in histograms if entry[1]),
        lists="".join(_list(*entry) for entry in lists.items() if entry[1]),
        scenes=data,
    )


def _histogram(title: str, bins: Sequence[tuple[float, float, int]]) -> str:
    most = max(count for _, _, count in bins)
    rows = "".join(
        f"<tr><th>{low:.3f} - {high:.3f}</th>"
        f'<td><i style="width:{130 * count / most:.0f}px"></i>{count}</td></tr>'
        for low, high, count in bins
    )
    return f'<table class="bars"><caption>{html.escape(title)} (views)</caption>{rows}</table>'


def _list(title: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines[:LINES_SHOWN])
    if len(lines) > LINES_SHOWN:
        items += f"<li>... and {len(lines) - LINES_SHOWN} more</li>"
    is_open = " open" if len(lines) <= 20 else ""
    return (
        f'<details class="findings"{is_open}><summary>{html.escape(title)}: {len(lines)}</summary>'
        f"<ul>{items}</ul></details>"
    )


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]

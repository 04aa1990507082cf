"""The page about a data set: statistics, findings, and scenes with thumbnails and cameras."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.inspect.epipolar import Agreement
from escherjax.data import images
from escherjax.data.shards import Scene
from escherjax.reports import page

_KEY = {
    "kind": "note",
    "texts": [
        ("Axes of the world: ", ""),
        ("x", "x"),
        (", ", ""),
        ("y", "y"),
        (", ", ""),
        ("z up", "z"),
        ("; the grid is the plane z = 0. Of each camera: ", ""),
        ("its picture's outline", "outline"),
        (", the ", ""),
        ("direction it looks in", "forward"),
        (" and ", ""),
        ("its up", "up"),
        (
            ". Drag to turn, double click to look from the start again; after a click on a plot "
            "the wheel zooms. Point at a camera or a thumbnail to find the other. Below each "
            "thumbnail: number of the view and, where it was measured, its median epipolar "
            "distance (?: too few matches).",
            "",
        ),
    ],
}
THUMBNAIL = 96  # pixels of the longer side
LINES_SHOWN = 10_000


def scene_data(
    scene: Scene, max_views: int, warnings: Sequence[str], agreement: Agreement | None
) -> dict[str, Any]:
    """What the page shows of one scene; its pictures can be decoded, its poses are finite.

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


def write(
    path: Path,
    title: str,
    rows: Sequence[tuple[str, str]],
    histograms: Sequence[tuple[str, Sequence[tuple[float, float, int]]]],
    lists: Mapping[str, Sequence[str]],
    scenes: Sequence[Mapping[str, Any]],
) -> None:
    """Writes the page.

    Args:
      path: the page's file.
      title: of the page.
      rows: statistics by name.
      histograms: (title, (from, to, number of views) of each bin).
      lists: findings by title.
      scenes: as `scene_data` gives them.
    """
    bars = [
        {"kind": "bars", "title": f"{name} (views)", "bins": bins}
        for name, bins in histograms
        if bins
    ]
    found = [
        page.lines(f"{name}: {len(lines)}", lines, LINES_SHOWN, is_open=len(lines) <= 20)
        for name, lines in lists.items()
        if lines
    ]
    sections = [
        page.section("", page.Table(("statistic", "value"), rows, "facts"), *bars),
        page.section("", *found),
        page.section("Scenes", _KEY, {"kind": "cameras", "scenes": list(scenes)}),
    ]
    page.write(path, title, "", sections)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]

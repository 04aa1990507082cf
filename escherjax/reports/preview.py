"""Plots where cameras stand: from two sides and from above.

References are orange and carry their numbers, targets are blue, a line joins the targets of a path.
The dashed cube about the origin has sides of length 1, the size of the objects that networks are
trained on.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from escherjax import cameras
from escherjax.reports import sheets

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Color = tuple[int, int, int]

PANEL = 440  # pixels a side
_HEADER = 58
_MARGIN = 36
_DPI = 100
# (title, azimuth, elevation) of where one looks from, degrees.
_SIDES = (
    ("seen from azimuth 30°", 30, 20),
    ("seen from azimuth 120°", 120, 20),
    ("seen from above", -90, 90),
)
_AXES: tuple[tuple[str, Color], ...] = (
    ("x", (196, 40, 40)),
    ("y", (34, 139, 58)),
    ("z", (40, 70, 200)),
)
_FAINT, _BOX = (228, 228, 228), (120, 120, 120)
_HALF_FOV = np.tan(np.radians(cameras.PUBLISHED_FOV_DEG / 2))  # of the frusta
_CUBE = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
_CUBE_EDGES = [pair for pair in itertools.combinations(_CUBE, 2) if np.ptp(pair, axis=0).sum() == 1]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One parallel projection: where world points lie on the whole picture."""

    title: str
    right: np.ndarray  # [3] unit vectors of the viewer
    up: np.ndarray
    out: np.ndarray  # towards the viewer
    middle: np.ndarray  # [2], what `project` gives in the middle of the panel
    scale: float  # pixels of a unit of length
    left: int  # pixels to the left of the panel

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points [..., 3] on the panel's plane: [..., 2] to the right and up."""
        return np.stack([points @ self.right, points @ self.up], axis=-1)

    def place(self, points: np.ndarray) -> np.ndarray:
        """Pixels [..., 2] as (u, v) of world points [..., 3]."""
        moved = (self.project(points) - self.middle) * [self.scale, -self.scale]
        return moved + [self.left + PANEL / 2, _HEADER + PANEL / 2]


def save_preview(
    path: Path,
    reference_c2w: np.ndarray,
    target_c2w: np.ndarray,
    reference_names: list[str],
    is_path: bool = False,
    closed: bool = False,
) -> None:
    """Writes the picture as a PNG.

    Args:
        path: of the file.
        reference_c2w: [N, 4, 4].
        target_c2w: [M, 4, 4].
        reference_names: N, one for each reference.
        is_path: whether targets follow each other, and a line joins them.
        closed: whether the line also joins last and first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = render_preview(reference_c2w, target_c2w, reference_names, is_path, closed)
    Image.fromarray(picture).save(path, format="PNG", optimize=True)


def render_preview(
    reference_c2w: np.ndarray,
    target_c2w: np.ndarray,
    reference_names: list[str],
    is_path: bool = False,
    closed: bool = False,
) -> np.ndarray:
    """The picture as uint8 [H, W, 3]; arguments as in `save_preview`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    references, targets = np.asarray(reference_c2w, float), np.asarray(target_c2w, float)
    panels = layout(np.concatenate([references, targets]))
    width, height = PANEL * len(panels), PANEL + _HEADER
    figure = Figure((width / _DPI, height / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    for panel in panels:
        axes = figure.add_axes((panel.left / width, 0, PANEL / width, PANEL / height))
        axes.set_axis_off()
        edges = panel.middle + np.array([[-1], [1]]) * PANEL / 2 / panel.scale
        axes.set(xlim=edges[:, 0], ylim=edges[:, 1])
        figure.text((panel.left + 12) / width, 1 - 48 / height, panel.title, color=_rgb(_BOX))
        if panel.left:
            axes.axvline(edges[0, 0], color=_rgb(_FAINT))
        _plot_world(axes, panel, np.concatenate([references, targets]))
        if is_path:
            line = np.concatenate([targets, targets[:1]]) if closed else targets
            axes.plot(*panel.project(line[:, :3, 3]).T, color=_rgb(sheets.SAMPLE, 0.45), lw=1)
        _plot_cameras(axes, panel, references, targets, is_path)
        _name_cameras(axes, panel, references, reference_names, sheets.REFERENCE, 14)
        if is_path and len(targets) > 1:
            # Two say which way the path leads; the last of a loop stands beside the first. Their
            # names are further out, as a path may begin at a reference.
            ends = [0, max(1, len(targets) // 4) if closed else len(targets) - 1]
            _name_cameras(axes, panel, targets[ends], map(str, ends), sheets.SAMPLE, 28)
    marks = [
        Line2D([], [], color=_rgb(color), marker="o", ls="", label=_describe(views, word))
        for views, color, word in (
            (references, sheets.REFERENCE, "reference"),
            (targets, sheets.SAMPLE, "target"),
        )
    ]
    cube = "a cube of side 1 about the origin; z is up"
    marks.append(Line2D([], [], color=_rgb(_BOX), ls="--", lw=1, label=cube))
    figure.legend(handles=marks, loc="upper left", ncols=3, frameon=False, borderaxespad=0)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def layout(c2w: np.ndarray) -> list[Panel]:
    """The three projections at one scale, which hold cameras [V, 4, 4], the circle and the cube."""
    points = np.concatenate([c2w[:, :3, 3], _level_circle(c2w), _CUBE])
    panels: list[Panel] = []
    for title, azimuth_deg, elevation_deg in _SIDES:
        azimuth, elevation = np.radians([azimuth_deg, elevation_deg])
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
        level = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        out = np.cos(elevation) * level + np.sin(elevation) * np.array([0.0, 0.0, 1.0])
        left = PANEL * len(panels)
        panels.append(Panel(title, right, np.cross(out, right), out, np.zeros(2), 1.0, left))
    placed = [panel.project(points) for panel in panels]
    scale = float((PANEL - 2 * _MARGIN) / max(np.ptp(each, axis=0).max() for each in placed))
    return [
        dataclasses.replace(panel, middle=(each.min(0) + each.max(0)) / 2, scale=scale)
        for panel, each in zip(panels, placed, strict=True)
    ]


def _plot_world(axes: Axes, panel: Panel, c2w: np.ndarray) -> None:
    """The level circle, the cube and the axes."""
    from matplotlib.collections import LineCollection

    axes.plot(*panel.project(_level_circle(c2w)).T, color=_rgb(_FAINT), lw=0.7)
    edges = [panel.project(np.array(edge)) for edge in _CUBE_EDGES]
    dashed = LineCollection(edges, colors=[_rgb(_BOX)], linestyles=[(0, (6, 6))], linewidths=0.7)
    axes.add_collection(dashed)
    for axis, (name, color) in zip(np.eye(3), _AXES, strict=True):
        ends = panel.project(0.45 * _reach(c2w) * np.array([0 * axis, axis]))
        if np.ptp(ends, axis=0).max() * panel.scale > 2:  # else it points at the viewer
            axes.plot(*ends.T, color=_rgb(color), lw=1)
            _write(axes, ends[1] * 0.53 / 0.45, name, color)


def _plot_cameras(
    axes: Axes, panel: Panel, references: np.ndarray, targets: np.ndarray, is_path: bool
) -> None:
    """Frusta and dots, the far ones first and paler; references above targets."""
    from matplotlib.collections import LineCollection, PolyCollection

    reach, spacing = _reach(targets), np.inf
    if is_path and len(targets) > 1:
        steps = np.linalg.norm(np.diff(targets[:, :3, 3], axis=0), axis=-1)
        spacing = float(np.median(steps))
    elif len(targets) > 1:
        spacing = 3 * reach / np.sqrt(len(targets))
    length = float(np.clip(1.2 * spacing, 0.05 * reach, 0.13 * reach))
    depth = np.concatenate([targets, references])[:, :3, 3] @ panel.out
    for order, (views, color, size, dot) in enumerate(
        ((targets, sheets.SAMPLE, length, 2.5), (references, sheets.REFERENCE, 0.2 * reach, 5.0)),
        start=3,
    ):
        views = views[np.argsort(views[:, :3, 3] @ panel.out)]
        away = (depth.max() - views[:, :3, 3] @ panel.out) / max(np.ptp(depth), 1e-9)
        shades = [_rgb(color, 0.6 * float(share)) for share in away]
        lines, roofs = zip(*(_frustum(panel, c2w, size) for c2w in views), strict=True)
        axes.add_collection(LineCollection(lines, colors=shades, linewidths=0.7, zorder=order))
        axes.add_collection(PolyCollection(roofs, facecolors=shades, zorder=order))
        x, y = panel.project(views[:, :3, 3]).T
        area = (2 * dot * 72 / _DPI) ** 2  # in points
        axes.scatter(x, y, area, color=_rgb(color), linewidths=0, zorder=order)


def _frustum(panel: Panel, c2w: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """One line along all edges, and the triangle on the side that is up."""
    half = length * _HALF_FOV
    corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    roof = half * np.array([[-0.6, -1], [0.6, -1], [0, -1.7]])
    flat = np.concatenate([corners, roof])
    points = np.concatenate([flat, np.full((7, 1), length)], axis=1) @ c2w[:3, :3].T + c2w[:3, 3]
    placed = panel.project(np.concatenate([points, c2w[None, :3, 3]]))
    return placed[[0, 1, 2, 3, 0, 7, 1, 2, 7, 3]], placed[4:7]


def _name_cameras(
    axes: Axes,
    panel: Panel,
    c2w: np.ndarray,
    names: list[str] | map[str],
    color: Color,
    distance: float,
) -> None:
    """Names beside cameras, so many pixels further from the origin."""
    for position, name in zip(c2w[:, :3, 3], names, strict=True):
        away = panel.project(position)
        away = away / np.linalg.norm(away) if np.linalg.norm(away) > 1e-9 else np.array([0.0, 1.0])
        _write(axes, panel.project(position) + distance / panel.scale * away, name, color)


def _write(axes: Axes, place: np.ndarray, text: str, color: Color) -> None:
    """Text about a place, above everything; a white rim keeps it legible on lines."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=3, foreground="white")]
    style: dict[str, Any] = {"ha": "center", "va": "center", "path_effects": rim, "zorder": 9}
    axes.text(place[0], place[1], text, color=_rgb(color), **style)


def _describe(c2w: np.ndarray, word: str) -> str:
    """How many cameras there are, and how far from the origin."""
    distance = np.linalg.norm(c2w[:, :3, 3], axis=-1)
    span = " to ".join(dict.fromkeys([f"{distance.min():.2f}", f"{distance.max():.2f}"]))
    return f"{len(c2w)} {word}{'s' if len(c2w) > 1 else ''}, {span} from the origin"


def _reach(c2w: np.ndarray) -> float:
    """Median distance of cameras from the origin."""
    return float(np.median(np.linalg.norm(c2w[:, :3, 3], axis=-1))) or 1.0


def _level_circle(c2w: np.ndarray) -> np.ndarray:
    """Points [97, 3] of a circle in the plane z = 0, as far from the origin as the cameras are."""
    turn = np.linspace(0, 2 * np.pi, 97)
    return _reach(c2w) * np.stack([np.cos(turn), np.sin(turn), np.zeros_like(turn)], axis=-1)


def _rgb(color: Color, white: float = 0.0) -> tuple[float, float, float]:
    """The colour as matplotlib takes it, mixed with a share of white."""
    red, green, blue = (value / 255 * (1 - white) + white for value in color)
    return red, green, blue

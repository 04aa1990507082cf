"""A picture of where cameras stand: from two sides and from above, drawn with Pillow alone.

References are orange and carry their numbers, targets are blue, a line joins the targets of a path.
The dashed cube about the origin has sides of length 1, the size of the objects that networks are
trained on.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from escherjax.reports import sheets

PANEL = 440  # pixels a side
_HEADER = 58
_MARGIN = 36
_SHARPNESS = 2  # drawn larger, then shrunk, so that lines are smooth
# (title, azimuth, elevation) of where one looks from, degrees.
_SIDES = (
    ("seen from azimuth 30°", 30, 20),
    ("seen from azimuth 120°", 120, 20),
    ("seen from above", -90, 90),
)
_AXES = (("x", (196, 40, 40)), ("y", (34, 139, 58)), ("z", (40, 70, 200)))
_FAINT, _BOX, _INK = (228, 228, 228), (120, 120, 120), (40, 40, 40)
_HALF_FOV = np.tan(np.radians(49.13 / 2))  # of the frusta, that of the published networks
_CUBE = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
_CUBE_EDGES = [
    (a, b) for a, b in itertools.combinations(range(8), 2) if np.abs(_CUBE[a] - _CUBE[b]).sum() == 1
]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One parallel projection: where world points lie on the whole picture.

    right, up, out: unit vectors, `out` towards the viewer; middle: [3], shown at `center`
    (u, v); scale: pixels of a unit of length.
    """

    title: str
    right: np.ndarray
    up: np.ndarray
    out: np.ndarray
    middle: np.ndarray
    center: tuple[float, float]
    scale: float

    def place(self, points: np.ndarray) -> np.ndarray:
        """Pixels [..., 2] as (u, v) of world points [..., 3]."""
        moved = points - self.middle
        pixels = self.scale * np.stack([moved @ self.right, -(moved @ self.up)], axis=-1)
        return pixels + np.asarray(self.center)


def save_preview(
    path: Path,
    reference_c2w: np.ndarray,
    target_c2w: np.ndarray,
    reference_names: list[str],
    is_path: bool = False,
    closed: bool = False,
) -> None:
    """Writes the picture as a PNG.

    reference_c2w: [N, 4, 4]; target_c2w: [M, 4, 4]; reference_names: N, one for each reference.
    is_path: targets follow each other and a line joins them; closed: also last and first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = draw_preview(reference_c2w, target_c2w, reference_names, is_path, closed)
    Image.fromarray(drawn).save(path, format="PNG", optimize=True)


def draw_preview(
    reference_c2w: np.ndarray,
    target_c2w: np.ndarray,
    reference_names: list[str],
    is_path: bool = False,
    closed: bool = False,
) -> np.ndarray:
    """The picture as uint8 [H, W, 3]; arguments as in `save_preview`."""
    references, targets = np.asarray(reference_c2w, float), np.asarray(target_c2w, float)
    panels = layout(np.concatenate([references, targets]))
    size = (PANEL * len(panels), PANEL + _HEADER)
    image = Image.new("RGB", (size[0] * _SHARPNESS, size[1] * _SHARPNESS), "white")
    pen = _Pen(ImageDraw.Draw(image))
    for panel in panels:
        _draw_world(pen, panel, np.concatenate([references, targets]))
        if is_path:
            _draw_path(pen, panel, targets, closed)
        _draw_cameras(pen, panel, references, targets, is_path)
    for panel in panels:  # names stand above everything
        _draw_names(pen, panel, references, targets, reference_names, is_path, closed)
    _draw_header(pen, panels, references, targets)
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def layout(c2w: np.ndarray) -> list[Panel]:
    """The three projections at one scale, which hold cameras [V, 4, 4], the circle and the cube."""
    points = np.concatenate([c2w[:, :3, 3], _level_circle(c2w), _CUBE])
    sides = []
    for title, azimuth_deg, elevation_deg in _SIDES:
        azimuth, elevation = np.radians([azimuth_deg, elevation_deg])
        level = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        out = np.cos(elevation) * level + np.sin(elevation) * np.array([0.0, 0.0, 1.0])
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
        up = np.cross(out, right)
        low, high = (f(points @ np.stack([right, up], axis=1), axis=0) for f in (np.min, np.max))
        sides.append((title, right, up, out, low, high))
    largest = max((high - low).max() for *_, low, high in sides)
    scale = (PANEL - 2 * _MARGIN) / largest
    panels = []
    for number, (title, right, up, out, low, high) in enumerate(sides):
        middle = (low + high) / 2
        panels.append(
            Panel(
                title,
                right,
                up,
                out,
                middle[0] * right + middle[1] * up,
                (PANEL * (number + 0.5), _HEADER + PANEL / 2),
                float(scale),
            )
        )
    return panels


class _Pen:
    """Draws in pixels of the finished picture on one that is `_SHARPNESS` times as large."""

    def __init__(self, drawing: ImageDraw.ImageDraw):
        self._drawing = drawing

    def line(self, points: np.ndarray, color: tuple[int, ...], width: float = 1.0) -> None:
        self._drawing.line(
            [tuple(p) for p in np.asarray(points) * _SHARPNESS],
            fill=color,
            width=max(1, round(width * _SHARPNESS)),
            joint="curve",
        )

    def polygon(self, points: np.ndarray, color: tuple[int, ...]) -> None:
        self._drawing.polygon([tuple(p) for p in np.asarray(points) * _SHARPNESS], fill=color)

    def dot(self, place: np.ndarray, radius: float, color: tuple[int, ...]) -> None:
        u, v = np.asarray(place) * _SHARPNESS
        reach = radius * _SHARPNESS
        self._drawing.ellipse((u - reach, v - reach, u + reach, v + reach), fill=color)

    def text(
        self,
        place: tuple[float, float],
        text: str,
        color: tuple[int, ...] = _INK,
        size: int = 13,
        anchor: str = "lm",
    ) -> float:
        """Writes and returns the width; a white rim keeps text legible on lines."""
        font = ImageFont.load_default(size * _SHARPNESS)
        u, v = (float(x) * _SHARPNESS for x in place)
        self._drawing.text(
            (u, v),
            text,
            fill=color,
            font=font,
            anchor=anchor,
            stroke_width=2 * _SHARPNESS,
            stroke_fill="white",
        )
        return self._drawing.textlength(text, font=font) / _SHARPNESS


def _draw_world(pen: _Pen, panel: Panel, c2w: np.ndarray) -> None:
    """The level circle, the cube and the axes."""
    reach = _reach(c2w)
    pen.line(panel.place(_level_circle(c2w)), _FAINT)
    for a, b in _CUBE_EDGES:
        ends = np.linspace(_CUBE[a], _CUBE[b], 12)
        for start in range(0, 12, 2):
            pen.line(panel.place(ends[start : start + 2]), _BOX)
    for axis, (name, color) in zip(np.eye(3), _AXES, strict=True):
        end = panel.place(0.45 * reach * axis)
        if np.linalg.norm(end - panel.place(np.zeros(3))) < 2:
            continue  # it points at the viewer
        pen.line(np.stack([panel.place(np.zeros(3)), end]), color, 1.5)
        pen.text(tuple(panel.place(0.53 * reach * axis)), name, color, anchor="mm")


def _draw_path(pen: _Pen, panel: Panel, targets: np.ndarray, closed: bool) -> None:
    positions = targets[:, :3, 3]
    if closed:
        positions = np.concatenate([positions, positions[:1]])
    pen.line(panel.place(positions), _pale(sheets.SAMPLE, 0.45), 1.5)


def _draw_cameras(
    pen: _Pen, panel: Panel, references: np.ndarray, targets: np.ndarray, is_path: bool
) -> None:
    """Frusta and dots, the far ones first and paler; references above targets."""
    reach = _reach(targets)
    spacing = np.inf
    if is_path and len(targets) > 1:
        steps = np.linalg.norm(np.diff(targets[:, :3, 3], axis=0), axis=-1)
        spacing = float(np.median(steps))
    elif len(targets) > 1:
        spacing = 3 * reach / np.sqrt(len(targets))
    length = float(np.clip(1.2 * spacing, 0.05 * reach, 0.13 * reach))
    depth = np.concatenate([targets, references])[:, :3, 3] @ panel.out
    near, far = depth.max(), depth.min()
    for cameras, color, size, dot in (
        (targets, sheets.SAMPLE, length, 2.5),
        (references, sheets.REFERENCE, 0.2 * reach, 5.0),
    ):
        order = np.argsort(cameras[:, :3, 3] @ panel.out)
        for c2w in cameras[order]:
            away = (near - c2w[:3, 3] @ panel.out) / max(near - far, 1e-9)
            shade = _pale(color, 0.6 * float(away))
            _draw_frustum(pen, panel, c2w, size, shade)
        for c2w in cameras[order]:
            pen.dot(panel.place(c2w[:3, 3]), dot, color)


def _draw_frustum(
    pen: _Pen, panel: Panel, c2w: np.ndarray, length: float, color: tuple[int, ...]
) -> None:
    half = length * _HALF_FOV
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    base = np.concatenate([corners, np.full((4, 1), length)], axis=1)
    roof = np.array(
        [[-0.6 * half, -half, length], [0.6 * half, -half, length], [0.0, -1.7 * half, length]]
    )
    world = np.concatenate([base, roof, np.zeros((1, 3))]) @ c2w[:3, :3].T + c2w[:3, 3]
    placed = panel.place(world)
    pen.line(placed[[0, 1, 2, 3, 0]], color)
    for corner in range(4):
        pen.line(placed[[7, corner]], color)
    pen.polygon(placed[4:7], color)  # the side that is up


def _draw_names(
    pen: _Pen,
    panel: Panel,
    references: np.ndarray,
    targets: np.ndarray,
    reference_names: list[str],
    is_path: bool,
    closed: bool,
) -> None:
    named = [
        (c2w, name, sheets.REFERENCE, 14)
        for c2w, name in zip(references, reference_names, strict=True)
    ]
    if is_path and len(targets) > 1:
        # Two say which way the path leads; the last of a loop stands beside the first.
        numbers = (0, max(1, len(targets) // 4) if closed else len(targets) - 1)
        # Further out, as a path may begin at a reference.
        named += [(targets[number], str(number), sheets.SAMPLE, 28) for number in numbers]
    middle = panel.place(np.zeros(3))
    for c2w, name, color, distance in named:
        place = panel.place(c2w[:3, 3])
        away = place - middle
        away = away / max(float(np.linalg.norm(away)), 1e-9) if away.any() else np.array([0.0, -1])
        pen.text(tuple(place + distance * away), name, color, anchor="mm")


def _draw_header(
    pen: _Pen, panels: list[Panel], references: np.ndarray, targets: np.ndarray
) -> None:
    left = 12.0
    for cameras, color, word in (
        (references, sheets.REFERENCE, "reference"),
        (targets, sheets.SAMPLE, "target"),
    ):
        pen.dot(np.array([left + 5, 16]), 5, color)
        distance = np.linalg.norm(cameras[:, :3, 3], axis=-1)
        low, high = f"{distance.min():.2f}", f"{distance.max():.2f}"
        span = low if low == high else f"{low} to {high}"
        plural = "s" if len(cameras) > 1 else ""
        text = f"{len(cameras)} {word}{plural}, {span} from the origin"
        left += 16 + pen.text((left + 15, 16), text) + 22
    pen.text((left, 16), "dashed: a cube of side 1 about the origin; z is up", _BOX)
    for number, panel in enumerate(panels):
        pen.text((PANEL * number + 12, 44), panel.title, _BOX)
        if number:
            edge = float(PANEL * number)
            pen.line(np.array([[edge, 36], [edge, _HEADER + PANEL]]), _FAINT)


def _reach(c2w: np.ndarray) -> float:
    """Median distance of cameras from the origin."""
    return float(np.median(np.linalg.norm(c2w[:, :3, 3], axis=-1))) or 1.0


def _level_circle(c2w: np.ndarray) -> np.ndarray:
    """Points [97, 3] of a circle in the plane z = 0, as far from the origin as the cameras are."""
    turn = np.linspace(0, 2 * np.pi, 97)
    return _reach(c2w) * np.stack([np.cos(turn), np.sin(turn), np.zeros_like(turn)], axis=-1)


def _pale(color: tuple[int, int, int], share: float) -> tuple[int, ...]:
    """The colour mixed with white, by `share` of white."""
    return tuple(round(value + share * (255 - value)) for value in color)

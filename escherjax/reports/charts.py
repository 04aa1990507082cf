"""Curves with intervals as inline SVG: no script, no network, colours from the page's style."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 400, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 40


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve. points: (x, y, low, high), low and high None where no interval is known.

    style: CSS class of the curve, of its markers and its band; title: for the legend.
    """

    title: str
    style: str
    points: Sequence[tuple[float, float, float | None, float | None]]
    markers_only: bool = False


def chart(name: str, series: Sequence[Series], x_label: str, y_label: str, log_x: bool) -> str:
    """An <svg> of curves over x; every marker says its values when pointed at.

    name: what a screen reader says it is. log_x: equal ratios of x are equally wide.
    """
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    xs = sorted({x for x, *_ in points})
    values = [v for _, y, low, high in points for v in (y, low, high) if v is not None]
    y_ticks = ticks(min(values), max(values))
    low, high = y_ticks[0], y_ticks[-1]
    place_x = math.log if log_x and xs[0] > 0 else float
    first, span = place_x(xs[0]), place_x(xs[-1]) - place_x(xs[0])

    def u(x: float) -> float:
        part = (place_x(x) - first) / span if span else 0.5
        return _LEFT + 14 + part * (WIDTH - _LEFT - _RIGHT - 28)

    def v(y: float) -> float:
        return _TOP + (high - y) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(name)}">'
    ]
    for tick in y_ticks:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{v(tick):.1f}" '
            f'y2="{v(tick):.1f}"/><text class="tick" x="{_LEFT - 7}" y="{v(tick) + 4:.1f}" '
            f'text-anchor="end">{tick:g}</text>'
        )
    last = -math.inf
    for x in xs if len(xs) <= 12 else ticks(xs[0], xs[-1]):
        if not xs[0] <= x <= xs[-1] or u(x) - last < 8 * len(f"{x:g}") + 4:
            continue  # labels would touch
        last = u(x)
        parts.append(
            f'<text class="tick" x="{u(x):.1f}" y="{HEIGHT - _BOTTOM + 18}" '
            f'text-anchor="middle">{x:g}</text>'
        )
    parts.append(
        f'<text class="axis" x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text class="axis" transform="translate(12 {(_TOP + HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{html.escape(y_label)}</text>'
    )
    parts += [_curve(one, u, v) for one in series]
    return "".join(parts) + "</svg>"


def legend(series: Sequence[Series]) -> str:
    """What the curves of a chart are, once for several charts."""
    keys = "".join(
        f'<li><svg class="key" viewBox="0 0 28 12" aria-hidden="true">{_key(one)}</svg>'
        f"{html.escape(one.title)}</li>"
        for one in series
    )
    return f'<ul class="legend">{keys}</ul>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers, evenly spaced, the first <= low and the last >= high."""
    span = high - low or abs(high) or 1.0
    raw = span / (count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    end = max(end, start + 1)
    return [float(f"{i * step:.10g}") for i in range(start, end + 1)]


def _curve(series: Series, u, v) -> str:
    points = sorted(series.points)
    style = html.escape(series.style)
    bounds = [(x, low, high) for x, _, low, high in points if low is not None and high is not None]
    parts = []
    if len(bounds) > 1:
        ring = [f"{u(x):.1f},{v(high):.1f}" for x, _, high in bounds]
        ring += [f"{u(x):.1f},{v(low):.1f}" for x, low, _ in reversed(bounds)]
        parts.append(f'<polygon class="band {style}" points="{" ".join(ring)}"/>')
    elif bounds:
        x, bottom, top = bounds[0]
        parts.append(
            f'<line class="whisker {style}" x1="{u(x):.1f}" x2="{u(x):.1f}" y1="{v(bottom):.1f}" '
            f'y2="{v(top):.1f}"/>'
        )
    if len(points) > 1 and not series.markers_only:
        line = " ".join(f"{u(x):.1f},{v(y):.1f}" for x, y, *_ in points)
        parts.append(f'<polyline class="line {style}" points="{line}"/>')
    for x, y, low, high in points:
        known = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
        said = html.escape(f"{series.title}, {x:g}: {y:.4g}{known}")
        parts.append(
            f'<circle class="marker {style}" cx="{u(x):.1f}" cy="{v(y):.1f}" r="3.2">'
            f"<title>{said}</title></circle>"
        )
    return "".join(parts)


def _key(series: Series) -> str:
    style = html.escape(series.style)
    line = (
        ""
        if series.markers_only
        else (f'<line class="line {style}" x1="1" x2="27" y1="6" y2="6"/>')
    )
    return f'{line}<circle class="marker {style}" cx="14" cy="6" r="3.2"/>'

"""Pieces of HTML and pictures that the page shows; all text in them is escaped."""

from __future__ import annotations

import base64
import html
import importlib.resources
from collections.abc import Sequence

import numpy as np
from PIL import Image

from escherjax.data import images

ACCEPT = "image/png,image/jpeg,image/webp,application/json,.json"
GREY, RED = "#44546a", "#b02a1a"  # of lines of text; red for failures

_PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
_ZONE = """
<style>
  #escherjax-zone {{ display: block; margin: 2px 12px 8px; padding: 14px 8px; text-align: center;
    border: 2px dashed #9db8dc; border-radius: 8px; font-size: 13px; line-height: 1.4;
    color: #33507a; background: #f4f8fd; cursor: pointer; }}
  #escherjax-zone:hover, #escherjax-zone.escherjax-over, #escherjax-zone:focus-within
    {{ border-color: #1f69c4; background: #e4effb; }}
  #escherjax-zone input {{ position: absolute; opacity: 0; width: 1px; height: 1px; }}
  #escherjax-zone small {{ color: #66788f; }}
  div:has(> input[type=file][accept="{accept}"]) {{ display: none; }}
</style>
<label id="escherjax-zone">
  <input type="file" multiple accept="{accept}" aria-label="choose pictures">
  <b>Drop pictures here</b>, or click to choose<br>
  <small>PNG, JPEG, WebP; a transforms.json after them gives their cameras</small>
</label>
<img src="{pixel}" alt="" style="display: none" onload="{script}">
"""


def drop_zone() -> str:
    """A place to drop files on, which hides viser's own upload button and uses it."""
    script = importlib.resources.files("escherjax.demo").joinpath("drop_zone.js").read_text()
    script = html.escape(script.replace("ACCEPT", ACCEPT), quote=True)
    return _ZONE.format(accept=ACCEPT, pixel=_PIXEL, script=script)


def thumbnails(
    pictures: Sequence[np.ndarray],
    labels: Sequence[str],
    color: tuple[int, int, int] = (0, 0, 0),
    selected: int | None = None,
) -> str:
    """Small pictures uint8 [R, R, 3] in rows; the selected one is framed in the colour."""
    tiles = []
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        small = np.asarray(Image.fromarray(picture).resize((56, 56), Image.Resampling.BOX))
        data = base64.b64encode(images.encode_png(small)).decode()
        frame = "rgb({},{},{})".format(*color) if i == selected else "#dde3ea"
        text = html.escape(label, quote=True)
        tiles.append(
            f'<img src="data:image/png;base64,{data}" alt="{text}" title="{text}" '
            f'style="width:50px;height:50px;border:3px solid {frame};border-radius:4px;">'
        )
    style = "display:flex;flex-wrap:wrap;gap:4px;margin:0 12px 8px"
    return f'<div style="{style}">{"".join(tiles)}</div>'


def line(text: str, color: str = GREY) -> str:
    """One line of small text."""
    return (
        f'<div style="margin:0 12px 8px;font-size:13px;line-height:1.4;color:{color};'
        f'overflow-wrap:anywhere">{html.escape(text)}</div>'
    )


def enlarged(pictures: np.ndarray, least: int) -> np.ndarray:
    """Pictures [..., R, R, 3] enlarged by the smallest whole number that gives `least` pixels."""
    zoom = max(1, -(-least // pictures.shape[-2]))
    return pictures.repeat(zoom, axis=-3).repeat(zoom, axis=-2)

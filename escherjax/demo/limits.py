"""What one visitor may ask of the machine."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of the web page; every one is checked on the server, whatever a browser sends.

    upload_bytes, picture_pixels: of one file. references, targets, viewpoints, steps: of one
    drawing.
    drawing_sec: from the start of a drawing, the first compilation included. waiting: drawings in
    the queue, the running one not counted. visitors: pages open at a time.
    """

    upload_bytes: int = 20 * 2**20
    picture_pixels: int = 50_000_000
    references: int = 12
    targets: int = 48
    viewpoints: int = 24
    steps: int = 100
    drawing_sec: float = 900.0
    waiting: int = 8
    visitors: int = 16
